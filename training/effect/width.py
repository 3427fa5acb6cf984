"""How much the spread of the heads must be widened for intervals of group means to cover.

For a group g of n_g rows the interval for its mean outcome is

    m_g ± sqrt( (s · t · d_g)² + z² · v_g / n_g )

m_g and d_g: mean and standard deviation, over the heads, of the group's mean prediction; s: the width
scale fitted here; t: Student's quantile with H − 1 degrees of freedom, as in `interval_of`; z: the
normal quantile; v_g: variance of a single outcome around its prediction. The first term is what the
model does not know, the second what no model can know about n_g users. Only s is fitted: an interval
for a large audience then shrinks to the first term, as it should, and s does not depend on the size of
the groups it was fitted on. Method: split conformal scaling (Lei et al., 2018) on group means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Draws = NDArray[np.float32]
Index = NDArray[np.intp]

MIN_GROUP = 500
_PARTITIONS = 5
# Below this many non-zero outcomes a group's own variance says little; the pooled one stands in.
_MIN_EVENTS = 10


@dataclass(frozen=True, slots=True)
class Width:
    """The fitted scale.

    scale: smallest factor ≥ 1 with which enough of all groups × tasks are covered.
    scales: the same for each task alone. groups: number of groups per task.
    """

    scale: float
    scales: Mapping[str, float]
    groups: int


def make_groups(
    predictions: Mapping[str, NDArray[np.float64]], natural: Sequence[NDArray[np.str_]], seed: int
) -> list[Index]:
    """Groups of rows to cover: at random, by predicted value, and natural ones.

    predictions: task → mean prediction `[n]`. Rows next to each other in predicted value form groups
    because decisions pick the highest: errors there matter most. natural: value per row, `[n]` each;
    values with at least 500 rows count. With fewer than 500 rows all rows are one group.
    """
    n = len(next(iter(predictions.values())))
    parts = max(1, n // MIN_GROUP)
    random = np.random.default_rng(seed)
    groups: list[Index] = []
    for _ in range(_PARTITIONS if parts > 1 else 1):
        groups += np.array_split(random.permutation(n), parts)
    for values in predictions.values() if parts > 1 else ():
        groups += np.array_split(np.argsort(values, kind="stable"), parts)
    for labels in natural:
        found, counts = np.unique(labels, return_counts=True)
        groups += [np.flatnonzero(labels == value) for value in found[counts >= MIN_GROUP]]
    return groups


def fit_width(
    draws: Mapping[str, Draws],
    labels: Mapping[str, NDArray[np.float64]],
    groups: Sequence[Index],
    confidence: float = 0.9,
    design: float = 1.0,
) -> Width:
    """The smallest factors ≥ 1 with which at least `confidence` of the groups are covered.

    draws: task → `[n, H]`; labels: task → `[n]`. design: see `design_effect`; it multiplies v_g.
    """
    needed = {
        task: _needed_scales(values, labels[task], groups, confidence, design)
        for task, values in draws.items()
    }
    scales = {task: _smallest(values, confidence) for task, values in needed.items()}
    return Width(_smallest(np.concatenate(list(needed.values())), confidence), scales, len(groups))


def coverage(
    draws: Draws,
    labels: NDArray[np.float64],
    groups: Sequence[Index],
    scale: float,
    confidence: float = 0.9,
) -> float:
    """Share of the groups whose mean outcome lies in the interval widened by `scale`."""
    return float(np.mean(_needed_scales(draws, labels, groups, confidence) <= scale))


def design_effect(residual: NDArray[np.float64], units: NDArray[np.str_]) -> float:
    """How much more the sum over rows varies than if they were independent: Σ_u (Σ r)² / Σ r², at least 1.

    Rows of a user go together: one who redeems a coupon redeems several. Source: Kish (1965), Survey
    sampling.
    """
    _, place = np.unique(units, return_inverse=True)
    together = float((np.bincount(place.ravel(), residual) ** 2).sum())
    return max(1.0, together / max(float((residual**2).sum()), 1e-300))


def _smallest(needed: NDArray[np.float64], confidence: float) -> float:
    """The conformal quantile: rank ⌈c · (G + 1)⌉ of the needed scales, at least 1."""
    rank = min(int(np.ceil(confidence * (len(needed) + 1))), len(needed)) - 1
    return max(1.0, float(np.sort(needed)[rank]))


def _needed_scales(
    draws: Draws,
    labels: NDArray[np.float64],
    groups: Sequence[Index],
    confidence: float,
    design: float = 1.0,
) -> NDArray[np.float64]:
    """Per group the scale at which its interval just reaches its mean outcome, `[G]`; 0 if noise suffices."""
    heads = draws.shape[1]
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    t = float(stats.t.ppf(0.5 + confidence / 2, max(heads - 1, 1)))
    residual = labels - draws.mean(axis=1, dtype=np.float64)
    pooled = float(residual.var())
    needed = np.zeros(len(groups))
    for place, rows in enumerate(groups):
        own = float(residual[rows].var()) if np.count_nonzero(labels[rows]) >= _MIN_EVENTS else pooled
        spread = float(draws[rows].mean(axis=0, dtype=np.float64).std(ddof=1)) if heads > 1 else 0.0
        beyond = max(0.0, float(residual[rows].mean()) ** 2 - z * z * design * own / len(rows))
        needed[place] = np.sqrt(beyond) / max(t * spread, 1e-12)
    return needed
