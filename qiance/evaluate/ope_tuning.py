"""What the log itself decides: hyper-parameters, and how far the reward model is believed.

Both rest on the same measurement. An estimator k of less variance is compared with one that is unbiased
whatever the model is: D = V_k − V_0 has the variance S² of the mean of the difference of their influences, so
D² − S² estimates the squared bias of k, and z = D / S says whether there is any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qiance.evaluate.arrays import FloatArray
from qiance.evaluate.inference import Units, standard_error

# A biased model is taken to be off by about so many standard errors of the difference (see `belief`).
SLAB = 4.0
_QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


@dataclass(frozen=True, slots=True, eq=False)
class RowEstimate:
    """An estimate and its per-row influence ψ `[n]`, which has mean about 0: value's error ≈ mean(ψ).

    parameter: the hyper-parameter that it was made with, if it has one.
    """

    value: float
    influence: FloatArray
    parameter: float | None = None

    def __add__(self, other: RowEstimate) -> RowEstimate:
        return RowEstimate(self.value + other.value, self.influence + other.influence, self.parameter)

    def __sub__(self, other: RowEstimate) -> RowEstimate:
        return RowEstimate(self.value - other.value, self.influence - other.influence, self.parameter)

    def at(self, parameter: float) -> RowEstimate:
        """The same, noting the parameter that it was made with."""
        return replace(self, parameter=parameter)


def mean_rows(rows: FloatArray) -> RowEstimate:
    """The plain mean of per-row estimates `[n]`."""
    value = float(rows.mean())
    return RowEstimate(value, rows - value)


def weight_grid(weight: FloatArray) -> FloatArray:
    """`[m]` distinct quantiles of the weights above 0, smallest first: where clipping starts to matter."""
    return (
        np.unique(np.quantile(weight[weight > 0], _QUANTILES, method="inverted_cdf"))
        if weight.any()
        else np.ones(1)
    )


def least_error(unbiased: RowEstimate, others: Sequence[RowEstimate], units: Units) -> RowEstimate:
    """The one of least estimated mean squared error, s_k² + max(0, D_k² − S_k²).

    The squared bias is estimated without bias of its own, hence D² − S² and not D².
    """

    def error(one: RowEstimate) -> float:
        gap = standard_error(one.influence - unbiased.influence, units)
        excess = (one.value - unbiased.value) ** 2 - gap**2
        return standard_error(one.influence, units) ** 2 + max(0.0, excess)

    return min((unbiased, *others), key=error)


def belief(unbiased: RowEstimate, direct: RowEstimate, units: Units) -> float:
    """Posterior probability in [0, 1] that the direct method has no bias that the log can show.

        1 / (1 + B),  B = exp(z²/2 · s²/(1 + s²)) / √(1 + s²),  z = (V_dm − V_0) / S,  s = 4

    B is the Bayes factor of a bias of spread s·S, normal around 0, against none, at even prior odds: z ~ N(0,
    1) without a bias and N(0, 1 + s²) with one. It is 0.8 at z = 0, 0.5 at |z| = 1.7, 0.02 at |z| = 3.4.
    Source: spike and slab: Mitchell & Beauchamp, JASA 83 (1988), 1023-1032; that combining a biased and an
    unbiased estimator by their difference lowers the error: Green & Strawderman, JASA 86 (1991), 1001-1006.
    """
    error = standard_error(direct.influence - unbiased.influence, units)
    gap = abs(direct.value - unbiased.value)
    if gap == 0.0:
        return 1.0
    if error <= 1e-12 * gap:
        return 0.0
    spread = SLAB**2
    odds = 0.5 * (gap / error) ** 2 * spread / (1 + spread) - 0.5 * math.log1p(spread)
    return 1 / (1 + math.exp(min(odds, 700.0)))
