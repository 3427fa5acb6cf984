"""Is the model as good to every group: error, exposure and offer depth by protected attribute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.prediction import auc, log_loss
from training.response.group_means import Gap, Groups

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

TOP = 0.2  # share of all rows that counts as being chosen
MAX_GAP = 0.05


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How far a group may be off; None lets any distance through.

    max_gap: largest |predicted − observed rate|. max_exposure_gap, max_depth_gap: largest distance of a
    group's exposure and depth from those of all rows. What distance of these is fair hangs on what is
    offered and to whom, so they have no default.
    """

    max_gap: float = MAX_GAP
    max_exposure_gap: float | None = None
    max_depth_gap: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_gap", "max_exposure_gap", "max_depth_gap"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name}: {value} is not 0 or more")


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One group of one attribute, on rows that the model has not seen; each gap has a 95 % interval.

    observed, predicted: mean outcome and prediction; gap: predicted − observed: above 0 the group is promised
    too much. exposure: share of its rows that belong to the fifth of all rows with the highest predictions,
    which stand for those whom the model would choose. depth: mean depth of the offers of its rows in that
    fifth, offered: of all its rows, both as logged. Their gaps are to the same figure of all rows. What
    cannot be told is None: without depths, with fewer than 30 users among the chosen, and auc where the group
    has one outcome only.
    """

    group: str
    rows: int
    observed: float
    predicted: float
    gap: float
    gap_low: float
    gap_high: float
    exposure: float
    exposure_gap: float
    exposure_gap_low: float
    exposure_gap_high: float
    depth: float | None
    depth_gap: float | None
    depth_gap_low: float | None
    depth_gap_high: float | None
    offered: float | None
    offered_gap: float | None
    offered_gap_low: float | None
    offered_gap_high: float | None
    log_loss: float
    auc: float | None


@dataclass(frozen=True, slots=True)
class Fairness:
    """groups: by attribute. exposure, depth, offered: of all rows, as in `GroupReport`.

    broken: a sentence per group and measure that is surely beyond its threshold.
    """

    thresholds: Thresholds
    exposure: float
    depth: float | None
    offered: float | None
    groups: Mapping[str, tuple[GroupReport, ...]]
    broken: tuple[str, ...]


@dataclass(frozen=True)
class _Rows:
    """`[N]` each. unit: number of the user; chosen: among the fifth; known: whether its depth is."""

    target: Floats
    prediction: Floats
    unit: NDArray[np.intp]
    chosen: Mask
    depth: Floats
    known: Mask

    @classmethod
    def of(cls, target: Floats, prediction: Floats, units: ArrayLike | None, depth: Floats | None) -> _Rows:
        names = np.arange(target.size) if units is None else np.asarray(units).astype(np.str_)
        unit = np.unique(names, return_inverse=True)[1].ravel()
        chosen = prediction >= np.quantile(prediction, 1 - TOP)
        given = np.full(target.size, np.nan) if depth is None else np.asarray(depth, dtype=np.float64)
        return cls(target, prediction, unit, chosen, given, np.isfinite(given))

    def mean_depth(self, rows: Mask) -> float | None:
        """Of the offers of some rows; None where no depth is known."""
        found = self.depth[rows & self.known]
        return float(found.mean()) if found.size else None


def audit(
    target: Floats,
    prediction: Floats,
    protected: Mapping[str, NDArray[Any]],
    thresholds: Thresholds | None = None,
    *,
    units: ArrayLike | None = None,
    depth: Floats | None = None,
    seed: int = 0,
) -> Fairness:
    """By group of every protected attribute: figures by fairlearn's `MetricFrame`, intervals over users.

    target, prediction: `[N]`; protected: attribute → `[N]` values, of which a missing one is a group too;
    units: `[N]` ids of users, by default each row its own; depth: `[N]` depth of the offer that was logged
    for the row, 0 without one, NaN where it is not known. A group breaks a threshold when the whole interval
    of its gap lies beyond. Which rows are the fifth is taken as it is.
    """
    limits = thresholds or Thresholds()
    rows = _Rows.of(target, prediction, units, depth)
    groups = {name: _by_group(rows, values, seed) for name, values in protected.items()}
    whole = float(rows.chosen.mean()), rows.mean_depth(rows.chosen), rows.mean_depth(rows.known)
    broken = [
        f"{name} {one.group!r}: {sentence}"
        for name, found in groups.items()
        for one in found
        for sentence in _broken(one, limits, whole[0], whole[1])
    ]
    return Fairness(limits, *whole, groups, tuple(broken))


def _broken(one: GroupReport, limits: Thresholds, exposure: float, depth: float | None) -> Iterator[str]:
    if _beyond(one.gap_low, one.gap_high, limits.max_gap):
        yield (
            f"predicted {one.predicted:.1%} where {one.observed:.1%} were observed (gap {one.gap:+.1%}, "
            f"95 % interval {one.gap_low:+.1%} to {one.gap_high:+.1%}; allowed ±{limits.max_gap:.1%})"
        )
    if _beyond(one.exposure_gap_low, one.exposure_gap_high, limits.max_exposure_gap):
        interval = f"{one.exposure_gap_low:+.1%} to {one.exposure_gap_high:+.1%}"
        yield (
            f"exposure {one.exposure:.1%} where it is {exposure:.1%} of all rows (gap "
            f"{one.exposure_gap:+.1%}, 95 % interval {interval}; allowed ±{limits.max_exposure_gap:.1%})"
        )
    if _beyond(one.depth_gap_low, one.depth_gap_high, limits.max_depth_gap):
        interval = f"{one.depth_gap_low:+.3g} to {one.depth_gap_high:+.3g}"
        yield (
            f"offer depth {one.depth:.3g} where it is {depth:.3g} of all that would be chosen (gap "
            f"{one.depth_gap:+.3g}, 95 % interval {interval}; allowed ±{limits.max_depth_gap:.3g})"
        )


def _beyond(low: float | None, high: float | None, allowed: float | None) -> bool:
    if low is None or high is None or allowed is None:
        return False
    return low > allowed or high < -allowed


def _by_group(rows: _Rows, values: NDArray[Any], seed: int) -> tuple[GroupReport, ...]:
    groups = Groups.of(values, rows.unit)
    everywhere = np.ones(rows.target.size, dtype=np.bool_)
    gaps = groups.gaps(rows.prediction - rows.target, everywhere, seed, to_all=False)
    exposures = groups.gaps(rows.chosen.astype(np.float64), everywhere, seed)
    offered = groups.gaps(rows.depth, rows.known, seed)
    depths = groups.gaps(rows.depth, rows.known & rows.chosen, seed)
    reports = []
    for name, gap in gaps.items():
        here = groups.rows_of(name)
        y, p = rows.target[here], rows.prediction[here]
        reports.append(
            GroupReport(
                group=name,
                rows=int(y.size),
                observed=float(y.mean()),
                predicted=float(p.mean()),
                gap=gap.mean,
                gap_low=gap.low,
                gap_high=gap.high,
                **_figures("exposure", exposures.get(name)),
                **_figures("depth", depths.get(name)),
                **_figures("offered", offered.get(name)),
                log_loss=log_loss(y, p),
                auc=auc(y, p) if 0 < y.mean() < 1 else None,
            )
        )
    return tuple(reports)


def _figures(name: str, found: Gap | None) -> dict[str, Any]:
    values = (None,) * 4 if found is None else (found.mean, found.gap, found.low, found.high)
    return dict(zip((name, f"{name}_gap", f"{name}_gap_low", f"{name}_gap_high"), values, strict=True))
