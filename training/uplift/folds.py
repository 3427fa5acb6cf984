"""How rows are dealt into folds and halves: units stay whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.response.rows import ResponseRows

Mask = NDArray[np.bool_]


def folds_by_arm(rows: ResponseRows, arm: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """`[N]` fold of each row, in [0, folds); arms and outcomes are alike in all."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names, units = np.unique(rows.units, return_inverse=True)
    strata = arm * 2 + rows.target.astype(np.int64)
    shuffled: dict[str, Any] = {"n_splits": folds, "shuffle": True, "random_state": seed}
    if len(names) == len(rows):
        parts = StratifiedKFold(**shuffled).split(np.zeros(len(rows)), strata)
    else:
        parts = StratifiedGroupKFold(**shuffled).split(np.zeros(len(rows)), strata, units.ravel())
    fold = np.empty(len(rows), dtype=np.int64)
    for number, (_, held) in enumerate(parts):
        fold[held] = number
    return fold


def halves_of(rows: ResponseRows, count: int, seed: int) -> Iterator[Mask]:
    """`count` masks `[N]`, each of half of the units, drawn anew.

    Not stratified: halves with the same outcomes would agree on the mean effect, and hide how uncertain it
    is.
    """
    names, units = np.unique(rows.units, return_inverse=True)
    for number in range(count):
        half = np.zeros(len(names), dtype=np.bool_)
        half[np.random.default_rng([seed, number]).permutation(len(names))[: len(names) // 2]] = True
        yield half[units.ravel()]
