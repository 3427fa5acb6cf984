"""Values to allocate on when values are estimates: who looks best is also who was overestimated most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import FloatArray, finite_matrix, refuse_where


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """How an action's true values differ between users. mean, variance: `[A]`; column 0 is doing nothing."""

    mean: FloatArray
    variance: FloatArray

    @classmethod
    def of(cls, value: ArrayLike, spread: ArrayLike) -> Prior:
        """From estimates `[U, A]` and their standard errors `[U, A]` ≥ 0, e.g. over bootstrap heads.

        τ_a² = max(var(value) − mean(spread²), 0): what estimates differ by beyond their own error.
        """
        worth, error = _checked(value, spread)
        return cls(worth.mean(axis=0), np.maximum(worth.var(axis=0) - (error**2).mean(axis=0), 0.0))

    def posterior(self, value: ArrayLike, spread: ArrayLike) -> FloatArray:
        """`[n, A]` posterior means of estimates with standard errors: a cure for the winner's curse.

        μ_a + τ_a² ÷ (τ_a² + spread²) · (value − μ_a); column 0 stays. What shrinks is how different users are
        believed to be.
        Source: Efron & Morris, J. American Statistical Association 70 (1975), 311-319; Efron, J. American
        Statistical Association 106 (2011), 1602-1614, for its use against selection bias.
        """
        worth, error = _checked(value, spread)
        total = self.variance + error**2
        share = np.divide(self.variance, total, out=np.ones_like(total), where=total > 0)
        found = self.mean + share * (worth - self.mean)
        found[:, 0] = worth[:, 0]
        return np.asarray(found, dtype=np.float64)


def lower_bound(value: ArrayLike, spread: ArrayLike, deviations: float) -> FloatArray:
    """value − deviations · spread, `[n, A]`; column 0 stays. For who would rather miss a gain than pay for
    none: it prefers actions and users that are known well.
    """
    worth, error = _checked(value, spread)
    if not 0 <= deviations < np.inf:
        raise ValueError(f"deviations: {deviations} is not a number ≥ 0")
    careful = worth - deviations * error
    careful[:, 0] = worth[:, 0]
    return np.asarray(careful, dtype=np.float64)


def _checked(value: ArrayLike, spread: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    worth = finite_matrix("value", value).astype(np.float64)
    error = finite_matrix("spread", spread, worth.shape).astype(np.float64)
    refuse_where("spread", error, error < 0, "must be ≥ 0: a standard error")
    return worth, error
