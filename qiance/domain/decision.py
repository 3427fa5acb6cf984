"""What was decided for a user, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class OutcomeType(StrEnum):
    """Kinds of outcome event; `value` is minor units for conversion and refund, else 0."""

    IMPRESSION = "impression"
    CLICK = "click"
    CONVERSION = "conversion"
    REFUND = "refund"


@dataclass(frozen=True, slots=True)
class Decision:
    """One logged decision.

    pseudonym: random stand-in for the user id.
    candidates, scores, costs, probabilities: same length; candidate action ids, value − λ·cost in
        minor units (float32), expected cost in minor units, and the probability of each choice.
    chosen: index into `candidates`; propensity: probabilities[chosen].
    holdout: assigned to do-nothing outside the propensity.
    snapshot: serial of the version row that the candidates came from. uniform: the number in [0, 1) that
        the choice was drawn with. degraded: parts that were missing.
    """

    decision_id: str
    tenant_id: str
    request_id: str | None
    pseudonym: str
    surface: str
    decided_at: datetime
    candidates: tuple[str, ...]
    scores: tuple[float, ...]
    costs: tuple[float, ...]
    probabilities: tuple[float, ...]
    chosen: int
    holdout: bool
    model_version: str
    policy_version: str
    degraded: tuple[str, ...] = ()
    snapshot: str = ""
    uniform: float = 0.0

    @property
    def action_id(self) -> str:
        return self.candidates[self.chosen]

    @property
    def propensity(self) -> float:
        return self.probabilities[self.chosen]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome event of a decision; `event_id` makes a repeat harmless."""

    event_id: str
    decision_id: str
    type: OutcomeType
    occurred_at: datetime
    value: int = 0
