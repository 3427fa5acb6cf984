"""Means by group of an attribute, and how far they surely lie from the mean of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MIN_GROUP = 100  # rows; of fewer nothing is claimed
MIN_UNITS = 30  # users; of fewer nothing is claimed
_DRAWS = 400
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Gap:
    """Mean of a group; gap: how far it lies from the mean of all rows, with its interval."""

    mean: float
    gap: float
    low: float
    high: float


@dataclass(frozen=True)
class Groups:
    """names: `[G]` groups of 100 rows or more; code: `[N]` place in names, G for the rest; unit: `[N]`."""

    names: NDArray[np.str_]
    code: NDArray[np.intp]
    unit: NDArray[np.intp]

    @classmethod
    def of(cls, values: NDArray[Any], unit: NDArray[np.intp]) -> Groups:
        """values: `[N]` of the attribute; unit: `[N]` number of the user from 0."""
        names = np.asarray(values, dtype=object).astype(np.str_)
        found, counts = np.unique(names, return_counts=True)
        large = found[counts >= MIN_GROUP]
        place = np.searchsorted(large, names)
        return cls(large, np.where(np.isin(names, large), place, large.size), unit)

    def rows_of(self, name: str) -> Mask:
        """`[N]`."""
        return np.asarray(self.code == np.searchsorted(self.names, name))

    def gaps(self, values: Floats, rows: Mask, seed: int, to_all: bool = True) -> dict[str, Gap]:
        """By group with enough users among `rows`: mean of `values` there, and its gap to that of all `rows`.

        values: `[N]`; without `to_all` the gap is to 0. By the bootstrap over users.
        """
        from fairlearn.metrics import MetricFrame

        enough = self._with_enough_users(rows)
        told = rows & np.isin(self.code, enough)
        if not told.any():
            return {}
        mean = MetricFrame(
            metrics=lambda _truth, value: float(np.mean(value)),
            y_true=values[told],
            y_pred=values[told],
            sensitive_features=self.names[self.code[told]],
        ).by_group
        whole = float(values[rows].mean()) if to_all else 0.0
        low, high = self._bounds(values, rows, seed, to_all)
        return {
            str(self.names[k]): Gap(own, own - whole, float(low[k]), float(high[k]))
            for k, own in zip(enough, map(float, mean[self.names[enough]]), strict=True)
        }

    def _with_enough_users(self, rows: Mask) -> NDArray[np.intp]:
        """Places in names."""
        pairs = np.unique(np.stack([self.code[rows], self.unit[rows]]), axis=1)
        users = np.bincount(pairs[0], minlength=self.names.size + 1)[:-1]
        return np.flatnonzero(users >= MIN_UNITS)

    def _bounds(self, values: Floats, rows: Mask, seed: int, to_all: bool) -> tuple[Floats, Floats]:
        """`[G + 1]` bounds of the gaps, by draws of a Poisson(1) weight per user; NaN without rows.

        Source: Chamandy et al. (2012), Estimating uncertainty for massive data streams.
        """
        random, size = np.random.default_rng(seed), self.names.size + 1
        own, code, unit = values[rows], self.code[rows], self.unit[rows]
        drawn = np.empty((_DRAWS, size))
        for draw in drawn:
            weight = random.poisson(1.0, int(self.unit.max()) + 1)[unit].astype(np.float64)
            sums, counts = np.bincount(code, weight * own, size), np.bincount(code, weight, size)
            whole = sums.sum() / max(float(counts.sum()), 1.0) if to_all else 0.0
            draw[:] = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0) - whole
        known = ~np.isnan(drawn).all(axis=0)
        bounds = np.full((2, size), np.nan)
        edge = (1 - _CONFIDENCE) / 2
        bounds[:, known] = np.nanquantile(drawn[:, known], [edge, 1 - edge], axis=0)
        return bounds[0], bounds[1]
