"""Values to allocate on when values are estimates: who looks best is also who was overestimated most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from qiance.evaluate.arrays import FloatArray, finite_matrix, refuse_where


@dataclass(frozen=True, slots=True, eq=False)
class Shrunken:
    """value: `[U, A]` posterior means. kept: `[A]` mean share of an estimate's distance from its action's
    mean that is believed; 1 where estimates have no error, 0 where they are all noise."""

    value: FloatArray
    kept: FloatArray


def shrink(value: ArrayLike, spread: ArrayLike) -> Shrunken:
    """Empirical-Bayes posterior means of estimated values: a cure for the winner's curse.

    value: `[U, A]` estimates. spread: `[U, A]` their standard errors ≥ 0, e.g. the standard deviation over
    bootstrap heads. Each action's true values are taken as normal around the action's mean μ_a with variance
    τ_a² = max(var(value) − mean(spread²), 0), and value_ua becomes μ_a + τ_a² ÷ (τ_a² + spread_ua²) ·
    (value_ua − μ_a). Column 0, doing nothing, stays. An action's mean stays about the same: what shrinks is
    how different users are believed to be.
    Source: Efron & Morris, J. American Statistical Association 70 (1975), 311-319; Efron, J. American
    Statistical Association 106 (2011), 1602-1614, for its use against selection bias.
    """
    worth = finite_matrix("value", value).astype(np.float64)
    error = finite_matrix("spread", spread, worth.shape).astype(np.float64)
    refuse_where("spread", error, error < 0, "must be ≥ 0: a standard error")
    middle = worth.mean(axis=0)
    true = np.maximum(worth.var(axis=0) - (error**2).mean(axis=0), 0.0)
    total = true + error**2
    share = np.divide(true, total, out=np.ones_like(total), where=total > 0)
    share[:, 0] = 1.0
    return Shrunken(middle + share * (worth - middle), share.mean(axis=0))


def lower_bound(value: ArrayLike, spread: ArrayLike, deviations: float) -> FloatArray:
    """value − deviations · spread, `[U, A]`; column 0 stays. For who would rather miss a gain than pay for
    none: it prefers actions and users that are known well.

    ValueError for a negative number of deviations or spread.
    """
    worth = finite_matrix("value", value).astype(np.float64)
    error = finite_matrix("spread", spread, worth.shape).astype(np.float64)
    refuse_where("spread", error, error < 0, "must be ≥ 0: a standard error")
    if not 0 <= deviations < np.inf:
        raise ValueError(f"deviations: {deviations} is not a number ≥ 0")
    careful = worth - deviations * error
    careful[:, 0] = worth[:, 0]
    return careful
