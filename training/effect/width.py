"""How much the spread of the heads must be widened for intervals of group means to cover.

For a group g of n_g rows the interval for its mean outcome is

    m_g ± sqrt( (s · t · d_g)² + z² · v_g / n_g )

m_g and d_g: mean and standard deviation, over the heads, of the group's mean prediction; s: the width
scale fitted here; t: Student's quantile with H − 1 degrees of freedom, as in `interval_of`; z: the
normal quantile; v_g: variance of a single outcome around its prediction. The first term is what the
model does not know, the second what no model can know about n_g users. Only s is fitted: an interval
for a large audience then shrinks to the first term, as it should, and s does not depend on the size of
the groups it was fitted on. Method: split conformal scaling (Lei et al., 2018) on group means.

What is guaranteed: if s came from G ≥ 9 groups without a common row, and a further group were drawn as they
were, its mean would be in the interval with probability 0.9 at least, whatever the model is. The groups here
overlap (five partitions, by prediction, by category), so that a small log is used better and groups count
that decisions pick; overlapping groups are not exchangeable, so it holds about, not exactly. In simulations
intervals hold 90 to 95 % of further groups at random, and of groups by prediction fewer, 80 % at worst (70 %
with 1,000 rows), where errors go along with it (tests/training/test_effect_width.py). With G < 9 nothing is
guaranteed, and s is at least what the largest error of the mean that all rows together leave possible would
need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from qiance.artifacts.width import CONFIDENCE, GROUP, WidthScale, enough_groups

Draws = NDArray[np.float32]
Index = NDArray[np.intp]

MIN_GROUP = GROUP
_PARTITIONS = 5
# Below this many non-zero outcomes a group's own variance says little; the pooled one stands in.
_MIN_EVENTS = 10
_SAME = 1e-12  # heads that differ by less do not differ


@dataclass(frozen=True, slots=True)
class Width:
    """The fitted scale.

    scale: smallest factor ≥ 1 with which enough of all groups × tasks are covered.
    scales: the same for each task alone. groups: number of groups per task; disjoint: of those without a
    common row. segments: scale by segment, of those with enough disjoint groups.
    """

    scale: float
    scales: Mapping[str, float]
    groups: int
    disjoint: int
    segments: Mapping[str, float] = field(default_factory=dict)

    @property
    def served(self) -> WidthScale:
        """As the artifact has it."""
        return WidthScale(self.scale, self.segments, self.disjoint)


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


def fit_widths(
    draws: Mapping[str, Draws],
    labels: Mapping[str, NDArray[np.float64]],
    natural: Sequence[NDArray[np.str_]],
    segments: NDArray[np.str_] | None,
    seed: int,
    design: float = 1.0,
) -> Width:
    """`fit_width` on all rows, and on those of each segment that has enough groups of its own.

    natural: see `make_groups`. segments: `[n]`, by which calibration differs. A segment's factor is that of
    groups of its rows alone (Mondrian: Vovk, 2012), so it holds where the model is worse than elsewhere too.
    """

    def fit(rows: Index) -> Width:
        own = {task: values[rows] for task, values in draws.items()}
        means = {task: values.mean(axis=1, dtype=np.float64) for task, values in own.items()}
        groups = make_groups(means, [values[rows] for values in natural], seed)
        return fit_width(own, {task: labels[task][rows] for task in own}, groups, design=design)

    everything = np.arange(len(next(iter(labels.values()))))
    if segments is None:
        return fit(everything)
    names, counts = np.unique(segments, return_counts=True)
    large = names[[enough_groups(count // MIN_GROUP) for count in counts]]
    found = {str(name): fit(np.flatnonzero(segments == name)).scale for name in large}
    return replace(fit(everything), segments=found)


def fit_width(
    draws: Mapping[str, Draws],
    labels: Mapping[str, NDArray[np.float64]],
    groups: Sequence[Index],
    confidence: float = CONFIDENCE,
    design: float = 1.0,
) -> Width:
    """The smallest factors ≥ 1 with which at least `confidence` of the groups are covered.

    draws: task → `[n, H]`; labels: task → `[n]`. design: see `design_effect`; it multiplies v_g. Of rows for
    too few disjoint groups no quantile says that much: then the largest error that all rows leave possible
    counts as well.
    """
    needed = {
        task: _needed_scales(values, labels[task], groups, confidence, design)
        for task, values in draws.items()
    }
    scales = {task: _smallest(values, confidence) for task, values in needed.items()}
    scale = _smallest(np.concatenate(list(needed.values())), confidence)
    disjoint = max(1, len(next(iter(labels.values()))) // MIN_GROUP)
    if not enough_groups(disjoint, confidence):
        least = {task: _for_all(values, labels[task], confidence, design) for task, values in draws.items()}
        scales = {task: max(own, least[task]) for task, own in scales.items()}
        scale = max(scale, *least.values())
    return Width(scale, scales, len(groups), disjoint)


def coverage(
    draws: Draws,
    labels: NDArray[np.float64],
    groups: Sequence[Index],
    scale: float | NDArray[np.float64],
    confidence: float = CONFIDENCE,
) -> float:
    """Share of the groups whose mean outcome lies in the interval widened by `scale`, one or `[G]`."""
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


def _for_all(draws: Draws, labels: NDArray[np.float64], confidence: float, design: float) -> float:
    """The scale that reaches the largest error of the mean over all rows that their outcomes leave possible.

    0 where heads do not differ: nothing could widen them.
    """
    heads, residual = draws.shape[1], labels - draws.mean(axis=1, dtype=np.float64)
    spread = float(draws.mean(axis=0, dtype=np.float64).std(ddof=1)) if heads > 1 else 0.0
    z, t = _quantiles(heads, confidence)
    error = abs(float(residual.mean())) + z * np.sqrt(design * float(residual.var()) / len(residual))
    return float(error / (t * spread)) if t * spread > _SAME else 0.0


def _quantiles(heads: int, confidence: float) -> tuple[float, float]:
    """z and t of the module's formula."""
    edge = 0.5 + confidence / 2
    return float(stats.norm.ppf(edge)), float(stats.t.ppf(edge, max(heads - 1, 1)))


def _needed_scales(
    draws: Draws,
    labels: NDArray[np.float64],
    groups: Sequence[Index],
    confidence: float,
    design: float = 1.0,
) -> NDArray[np.float64]:
    """Per group the scale at which its interval just reaches its mean outcome, `[G]`; 0 if noise suffices."""
    heads = draws.shape[1]
    z, t = _quantiles(heads, confidence)
    residual = labels - draws.mean(axis=1, dtype=np.float64)
    pooled = float(residual.var())
    needed = np.zeros(len(groups))
    for place, rows in enumerate(groups):
        own = float(residual[rows].var()) if np.count_nonzero(labels[rows]) >= _MIN_EVENTS else pooled
        spread = float(draws[rows].mean(axis=0, dtype=np.float64).std(ddof=1)) if heads > 1 else 0.0
        beyond = max(0.0, float(residual[rows].mean()) ** 2 - z * z * design * own / len(rows))
        needed[place] = np.sqrt(beyond) / max(t * spread, _SAME)
    return needed
