"""Train, validation and test rows, split so that nothing of one leaks into another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.effect.randomness import text_hash, uniform

Mask = NDArray[np.bool_]
_SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True, slots=True)
class Split:
    """Which of n rows train, choose (valid) and judge (test) a model; masks `[n]`, disjoint."""

    train: Mask
    valid: Mask
    test: Mask

    def __post_init__(self) -> None:
        if not self.train.shape == self.valid.shape == self.test.shape:
            raise ValueError(
                f"split: masks have {self.train.size}, {self.valid.size} and {self.test.size} rows; "
                "they must be masks of the same table"
            )
        overlap = self.train.astype(int) + self.valid + self.test > 1
        if overlap.any():
            raise ValueError(f"split: row {int(np.argmax(overlap))} is in more than one part")
        for name in ("train", "valid", "test"):
            if not getattr(self, name).any():
                raise ValueError(f"split.{name}: has no row; give more data or another share")

    def __len__(self) -> int:
        return int(self.train.size)


def split_by_unit(unit_ids: ArrayLike, seed: int = 0, shares: Sequence[float] = _SHARES) -> Split:
    """All rows of a unit (user, household) fall into one part, by a hash of its id and `seed`.

    A unit keeps its part when rows or other units are added. shares: of units, train, valid, test.
    """
    bounds = _bounds(shares)
    units, inverse = np.unique(np.asarray(unit_ids).astype(np.str_), return_inverse=True)
    place = np.searchsorted(bounds, uniform(text_hash(units), seed), side="right")[inverse.ravel()]
    return Split(place == 0, place == 1, place == 2)


def split_by_time(times: ArrayLike, shares: Sequence[float] = _SHARES) -> Split:
    """The oldest rows train, the next choose, the newest judge; rows of one instant stay together."""
    bounds = _bounds(shares)
    moments = np.asarray(times)
    if moments.size == 0:
        raise ValueError("times: is empty; at least one row per part is needed")
    rank = np.searchsorted(np.sort(moments), moments, side="left") / moments.size
    place = np.searchsorted(bounds, rank, side="right")
    return Split(place == 0, place == 1, place == 2)


def _bounds(shares: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(shares, dtype=np.float64)
    if values.shape != (3,) or (values <= 0).any() or abs(values.sum() - 1) > 1e-9:
        raise ValueError(f"shares: {tuple(shares)} are not three positive fractions that sum to 1")
    return np.cumsum(values)[:2]
