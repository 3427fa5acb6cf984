"""How good effects are: what targeting by them is worth, how they rank, how far they are from the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.uplifting.cases import TEST_SHARE, Case
from qiance.evaluate.uplift import (
    cumulative_gain,
    effect_scores,
    qini_radcliffe,
    rate,
    resampled_interval,
    targeting_value,
)

BUDGETS = (0.1, 0.3, 0.5)

Floats = NDArray[np.float64]
Values = Mapping[str, Sequence[float]]


def of_real(case: Case, effects: Floats) -> dict[str, float]:
    """Of the test rows: `value_B` by budget (SNIPS), and means over arms of `qini_a`, `qini_b`, `rate`."""
    values = targeting_value(case.log(), effects, BUDGETS)
    found = {f"value_{budget:g}": one.value for budget, one in values.items()}
    ranks = [_ranks(case, effects[:, arm], arm) for arm in range(1, len(case.share))]
    return found | {name: float(np.mean([one[name] for one in ranks])) for name in ranks[0]}


def _ranks(case: Case, score: Floats, arm: int) -> dict[str, float]:
    """Of the effect of one arm, among those who got it or nothing."""
    given = case.arm[case.test]
    rows = (given == 0) | (given == arm)
    y, t, s = case.outcome[case.test][rows], given[rows] == arm, score[rows]
    e = np.full(len(y), case.share[arm] / (case.share[0] + case.share[arm]))
    return {
        "qini_a": qini_radcliffe(y, t, s).above_line,
        "qini_b": cumulative_gain(y, t, s).above_line,
        "rate": rate(s, effect_scores(y, t, e), draws=2).value,
    }


def pehe(case: Case, effects: Floats) -> float:
    """Root mean square error of the effects of all arms but control, on the test rows (Hill, 2011)."""
    assert case.truth is not None
    return float(np.sqrt(((effects - case.truth[case.test])[:, 1:] ** 2).mean()))


def by_configuration(
    cases: Sequence[Case], effects: Mapping[str, Mapping[str, Floats]], planted: bool
) -> dict[str, dict[str, list[float]]]:
    """Configuration → score → value per case."""
    found: dict[str, dict[str, list[float]]] = {}
    for case in cases:
        for name, own in effects[case.name].items():
            one = {"pehe": pehe(case, own)} if planted else of_real(case, own)
            for score, value in one.items():
                found.setdefault(name, {}).setdefault(score, []).append(value)
    return found


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over the splits with its 95 % corrected resampled t interval; without one of a single split."""
    if len(values) < 2:
        return {"value": float(np.mean(values)), "low": None, "high": None}
    found = resampled_interval(values, TEST_SHARE)
    return {"value": found.value, "low": found.low, "high": found.high}


def summary(values: Values) -> dict[str, Any]:
    """Intervals of every score."""
    return {name: interval(own) for name, own in values.items()}


def differences(ours: Values, theirs: Values) -> dict[str, Any]:
    """Intervals of ours − theirs, split by split."""
    return {name: interval(np.subtract(ours[name], theirs[name]).tolist()) for name in ours}
