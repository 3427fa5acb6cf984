"""Shadow mode: how the estimate of a policy that decides in thought only developed, day by day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.gate import GateRule
from qiance.evaluate.ope_sequence import DifferenceSequence, difference_sequence
from qiance.launch.log import Bools, Floats, PolicyLog
from qiance.ledger.schema import from_micros

_DAY_US = 86_400_000_000
_FIRST, _LEAST_SHARE = 500, 5  # decisions that settle the range of rewards: so many, or one in five
_QUANTILE = 0.995


@dataclass(frozen=True, slots=True)
class ShadowDay:
    """What was known of a policy at the end of a day.

    decisions: until then. value, low, high: improvement per decision over the live policy, minor units; the
    interval holds on all days at once. opens: whether every campaign's lower bound exceeded its margin.
    """

    day: date
    decisions: int
    value: float
    low: float
    high: float
    opens: bool


def development(log: PolicyLog, rule: GateRule, largest: float | None = None) -> tuple[ShadowDay, ...]:
    """The estimate at the end of every day (UTC) of the log, with an interval for who looks every day.

    largest: margin of one decision beyond which it counts as that much, minor units. The interval needs a
    range of rewards that is known beforehand: the first 500 decisions (at most a fifth) settle its lower end,
    and the upper one where `largest` is None (all but the largest 0.5 %), and are not counted. Empty where
    that leaves nothing. See `difference_sequence` for what the interval covers.
    """
    first = min(_FIRST, len(log.bandit) // _LEAST_SHARE)
    if not first:
        return ()
    settling = log.bandit.reward[:first]
    span = float(settling.min()), float(largest or np.quantile(settling, _QUANTILE))
    if not span[0] < span[1]:
        return ()
    counted = np.arange(len(log.bandit)) >= first
    day = log.at[counted] // _DAY_US
    ends = np.flatnonzero(np.append(day[1:] != day[:-1], True)) + 1
    whole = _sequence(log, counted, ends, span, rule.confidence)
    opens = np.full(len(ends), bool(log.campaigns))
    for name, inside in log.campaigns.items():
        opens &= _lower(log, inside & counted, first, ends, span, rule.confidence) > rule.margin_of(name)
    return tuple(
        ShadowDay(from_micros(int(log.at[first + end - 1])).date(), end, *found)
        for end, *found in zip(
            ends.tolist(),
            whole.value.tolist(),
            whole.low.tolist(),
            whole.high.tolist(),
            opens.tolist(),
            strict=True,
        )
    )


def _lower(
    log: PolicyLog,
    rows: Bools,
    first: int,
    ends: NDArray[np.int64],
    span: tuple[float, float],
    confidence: float,
) -> Floats:
    """`[days]` lower bound of the improvement in `rows`; minus infinity before there is one."""
    marks = np.cumsum(rows[first:], dtype=np.int64)[ends - 1]
    found, some = np.full(len(ends), -np.inf), marks > 0
    if some.any():
        found[some] = _sequence(log, rows, np.asarray(marks[some]), span, confidence).low
    return found


def _sequence(
    log: PolicyLog, rows: Bools, ends: NDArray[np.int64], span: tuple[float, float], confidence: float
) -> DifferenceSequence:
    bandit = log.bandit
    part = BanditLog(bandit.action[rows], np.clip(bandit.reward[rows], *span), bandit.propensity[rows])
    return difference_sequence(part, log.policy[rows], log.live[rows], ends, confidence, span)
