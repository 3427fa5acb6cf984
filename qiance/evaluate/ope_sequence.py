"""The improvement over a baseline while a log grows, with an interval that holds however often one looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import FloatArray, IndexArray, fraction
from qiance.evaluate.bandit_log import BanditLog, checked_policy
from qiance.evaluate.ope_intervals import Range, drifting_bounds, known_range


@dataclass(frozen=True, slots=True, eq=False)
class DifferenceSequence:
    """An improvement per decision on each of k beginnings of a log.

    rows: `[k]` length of the beginning. value, low, high: `[k]`, in the units of the reward.
    """

    rows: IndexArray
    value: FloatArray
    low: FloatArray
    high: FloatArray
    confidence: float


def difference_sequence(
    log: BanditLog,
    policy_probs: NDArray[Any],
    baseline_probs: NDArray[Any],
    ends: IndexArray,
    confidence: float = 0.95,
    reward_range: Range | None = None,
) -> DifferenceSequence:
    """Improvement of a policy over a baseline on the first `ends[0]`, `ends[1]`, … rows of a log.

    Arguments as for `qiance.evaluate.ope.difference`; rows in the order in which they came. ends: `[k]` ints
    in [1, n], ascending. reward_range: (least, largest) possible reward, known before the log was seen; not
    needed for 0 and 1. The estimate is the plain importance-weighted one.

    With probability `confidence` the interval holds at every row at once, so one may look as often as one
    likes and stop when one likes. Only the draw of each action is taken for random, given all that came
    before: rows of one user may resemble each other, and what users do may drift. So what is covered is the
    mean improvement on the decisions that were logged; for other users see `difference`.

    Rewards r are put on [0, 1]; x_i = π/p · r + b/p · (1 − r) is ≥ 0, and given the past its mean is 1 + the
    improvement on row i. `ope_intervals.drifting_bounds` bounds that from below; the upper bound is that of
    the baseline over the policy.
    """
    error = 1.0 - fraction("confidence", confidence, open_ends=True)
    row = np.arange(len(log))
    mine, base = (
        checked_policy(name, probs, log)[row, log.action] / log.propensity
        for name, probs in (("policy_probs", policy_probs), ("baseline_probs", baseline_probs))
    )
    marks, (least, most) = _checked_ends(ends, len(log)), known_range(log.reward, reward_range)
    reward = (log.reward - least) / (most - least)
    low = drifting_bounds(mine * reward + base * (1.0 - reward), error / 2)[marks - 1] - 1.0
    high = 1.0 - drifting_bounds(base * reward + mine * (1.0 - reward), error / 2)[marks - 1]
    # Few rows of much weight can lead the plain estimate out of what is possible.
    value = np.clip(np.cumsum((mine - base) * reward)[marks - 1] / marks, -1.0, 1.0)
    width = most - least
    return DifferenceSequence(
        marks,
        width * value,
        width * np.maximum(np.minimum(low, value), -1.0),
        width * np.minimum(np.maximum(high, value), 1.0),
        confidence,
    )


def _checked_ends(ends: IndexArray, rows: int) -> IndexArray:
    marks = np.asarray(ends, dtype=np.int64)
    if marks.ndim != 1 or not marks.size or marks[0] < 1 or marks[-1] > rows or (np.diff(marks) < 0).any():
        raise ValueError(f"ends: {marks.tolist()[:10]} must be ascending numbers of rows in [1, {rows}]")
    return marks
