"""Regression on features, squares and products."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rllib.lockstep import Floats

_RIDGE, _FAR = 1.0, 5.0


def expanded(features: NDArray[Any]) -> Floats:
    """`[n, m]` 1, features `[n, d]`, their squares and products."""
    x = np.asarray(features, dtype=np.float64)
    left, right = np.triu_indices(x.shape[1])
    return np.hstack([np.ones((len(x), 1)), x, x[:, left] * x[:, right]])


class Quadratic:
    """Ridge regression on features, squares and products, standardised; scikit-learn's form."""

    def fit(self, x: Floats, y: Floats, /) -> Self:
        """Learn `[m, d]` → `[m]`."""
        self._mean, self._spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        wide = self._wide(x)
        penalty = _RIDGE * np.diag(np.arange(wide.shape[1]) > 0)
        self._weights = np.linalg.solve(wide.T @ wide + penalty, wide.T @ y)
        return self

    def predict(self, x: Floats, /) -> Floats:
        """`[m, d]` → `[m]`."""
        return np.asarray(self._wide(x) @ self._weights)

    def _wide(self, x: Floats) -> Floats:
        return expanded(np.clip((x - self._mean) / self._spread, -_FAR, _FAR))
