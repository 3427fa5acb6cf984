"""What policies are judged by: the gate's rule, and how the log is read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from qiance.domain import Purpose
from qiance.evaluate.gate import GateRule
from qiance.settings import Settings


@dataclass(frozen=True, slots=True)
class GateSetup:
    """How a policy is judged by the decisions in the ledger.

    rule: what it has to show, in minor units of margin per decision. epsilon: share of exploration with which
    the service would decide. margin_rate: margin as a fraction of sales, of all that was not on offer.
    window: after which an outcome no longer counts; younger decisions are not used. days, max_rows: how far
    back, and how many decisions at most. largest: the margin of one decision that the anytime interval counts
    at most, minor units; None: chosen by the first decisions. unrecorded: purposes that a user who was never
    asked counts as having agreed to.
    """

    rule: GateRule
    epsilon: float
    margin_rate: float
    window: timedelta
    days: float
    max_rows: int
    largest: float | None = None
    unrecorded: frozenset[Purpose] = frozenset()
    seed: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say."""
        gate = settings.gate
        return cls(
            GateRule(gate.margin, gate.margins, gate.confidence),
            settings.serve.epsilon,
            1.0 - settings.data.cost_fraction,
            timedelta(hours=settings.serve.outcome_window_hours),
            gate.days,
            gate.max_rows,
            gate.largest,
            settings.privacy.unrecorded,
            settings.seed,
        )
