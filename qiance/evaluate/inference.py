"""Standard errors and intervals shared by off-policy evaluation and A/B comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qiance.evaluate.arrays import FloatArray, refuse_where

# Bootstrap over more units than this works on random groups of units instead (see `bootstrap_interval`).
_MAX_BOOTSTRAP_UNITS = 10_000
_REPLICATES = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The independent units of a sample: its rows, or the clusters (users) that rows belong to.

    codes: `[n]` unit number of each row, or None when every row is a unit of its own.
    count: number of units G.
    """

    codes: NDArray[np.intp] | None
    count: int

    def total(self, values: FloatArray) -> FloatArray:
        """Sum of `values` `[n]` within each unit, `[G]`."""
        if self.codes is None:
            return values
        return np.bincount(self.codes, weights=values, minlength=self.count).astype(np.float64, copy=False)

    def spread(self, totals: FloatArray) -> FloatArray:
        """The unit's number for each of its rows: `[G]` → `[n]`."""
        return totals if self.codes is None else totals[self.codes]


def cluster_codes(name: str, cluster: ArrayLike, rows: int) -> tuple[NDArray[np.intp], int]:
    """`(codes [n], count)` of cluster ids (integers or strings); ValueError on a length mismatch or a gap."""
    ids = np.asarray(cluster)
    if ids.shape != (rows,):
        raise ValueError(f"{name}: has shape {ids.shape}; must be ({rows},), one id per row")
    if ids.dtype.kind == "f":
        refuse_where(name, ids, ~np.isfinite(ids), "must be a cluster id, such as a pseudonym")
    elif ids.dtype.kind == "O":
        missing = np.fromiter((i is None or i != i for i in ids), dtype=np.bool_, count=rows)
        refuse_where(name, ids, missing, "must be a cluster id, such as a pseudonym")
        ids = ids.astype(str)
    unique, codes = np.unique(ids, return_inverse=True)
    return codes, int(unique.size)


def units_of(name: str, cluster: ArrayLike | None, rows: int) -> Units:
    """Units by `cluster`, or one per row when it is None."""
    if cluster is None:
        return Units(None, rows)
    return Units(*cluster_codes(name, cluster, rows))


def standard_error(influence: FloatArray, units: Units) -> float:
    """Standard error of a mean-like estimate from its per-row influence `[n]`, clustered by unit.

        se = sqrt(G/(G−1) · Σ_g (Σ_{i∈g} ψ_i)²) / n

    which for one row per unit is s/√n. Source: Liang & Zeger, Biometrika 73 (1986), 13-22. ValueError for
    fewer than two units: nothing can be said about spread from one.
    """
    if units.count < 2:
        raise ValueError(f"rows: {units.count} independent unit gives no interval; at least 2 are needed")
    totals = units.total(influence)
    return float(np.sqrt(units.count / (units.count - 1) * np.square(totals).sum()) / influence.size)


def student_interval(value: float, error: float, freedom: float, confidence: float) -> tuple[float, float]:
    """`value ± t · error` with `freedom` (at least 1) degrees of freedom, two-sided at `confidence`."""
    half = float(stats.t.ppf(0.5 + confidence / 2, max(freedom, 1.0))) * error
    return value - half, value + half


def normal_interval(value: float, error: float, confidence: float) -> tuple[float, float]:
    """`value ± z · error`, two-sided at `confidence`: for large samples without heavy rows."""
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return value - half, value + half


def influence_freedom(influence: FloatArray, units: Units) -> float:
    """Degrees of freedom of the standard error of a per-row influence `[n]`, in [1, G − 1].

        2 G / (κ − 1),  κ = mean(ψ⁴) / mean(ψ²)² over the units' totals

    the Satterthwaite match of the variance's own variance: G for normal influence, few where a few units
    carry the spread, whose error would otherwise pass for well known.
    Source: Satterthwaite, Biometrics 2 (1946), 110-114, with the variance of s² from the fourth moment.
    """
    squares = np.square(units.total(influence))
    if not squares.any():
        return max(units.count - 1.0, 1.0)
    scaled = squares / squares.mean()
    excess = float(np.square(scaled).mean()) - 1
    freedom = 2 * units.count / excess if excess > 0 else np.inf
    return float(min(max(freedom, 1.0), max(units.count - 1.0, 1.0)))


def skewed_interval(
    value: float, influence: FloatArray, units: Units, freedom: float, confidence: float
) -> tuple[float, float]:
    """Student-t interval corrected for the skewness of the influence: longer on the side of its long tail.

    With k = skewness/√G of the units' totals, the bounds are value − se·g(±t) with
    g(x) = (3/k)(∛(1 + k(x − k/6)) − 1).
    Source: Hall, J. R. Stat. Soc. B 54 (1992), 221-228.
    """
    error, totals = standard_error(influence, units), units.total(influence)
    spread = float(totals.std())
    skew = float((((totals - totals.mean()) / spread) ** 3).mean()) if spread > 0 else 0.0
    k = skew / np.sqrt(units.count)
    if abs(k) < 1e-6:
        return student_interval(value, error, freedom, confidence)
    t = float(stats.t.ppf(0.5 + confidence / 2, max(freedom, 1.0)))
    above, below = (float(3 / k * (np.cbrt(1 + k * (x - k / 6)) - 1)) for x in (t, -t))
    return value - error * above, value - error * below


def bootstrap_interval(
    rows: FloatArray, units: Units, confidence: float, seed: int
) -> tuple[float, float, float]:
    """`(standard error, low, high)` of the mean of `rows` `[n]` by the percentile bootstrap over units.

    More than 10,000 units are first put into 10,000 random groups, which are again exchangeable, so that the
    cost does not grow with the log. Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993).
    """
    if units.count < 2:
        raise ValueError(f"rows: {units.count} independent unit gives no interval; at least 2 are needed")
    rng = np.random.default_rng(seed)
    sums, sizes = units.total(rows), units.total(np.ones_like(rows))
    groups = min(units.count, _MAX_BOOTSTRAP_UNITS)
    if groups < units.count:
        grouped = Units(rng.permutation(units.count) % groups, groups)
        sums, sizes = grouped.total(sums), grouped.total(sizes)
    means = np.empty(_REPLICATES)
    for replicate in range(_REPLICATES):
        drawn = rng.integers(groups, size=groups)
        means[replicate] = sums[drawn].sum() / sizes[drawn].sum()
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(means.std(ddof=1)), float(low), float(high)
