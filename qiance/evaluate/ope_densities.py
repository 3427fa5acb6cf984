"""Log-densities of numbers as the probabilities that the sequential estimators read."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from qiance.evaluate.arrays import FloatArray, IndexArray, finite_matrix

_FAR = 150.0


def density_pair(
    logged: ArrayLike, policy: ArrayLike, length: IndexArray | None = None
) -> tuple[FloatArray, FloatArray]:
    """(propensity, policy_probs) in (0, 1] and [0, 1] with the ratios of two log-densities, `[n, T]` each.

    length: `[n]` steps of each trajectory, None: all have T; what lies beyond must be finite, and is not
        counted.

    Both are divided by the larger one. A density is never 0, and so is no weight; but weights that no log
    supports are kept within what can be computed with. Those beyond e^150 and under e^−300 count as that;
    where all of a step would be under e^−150, they are raised alike, from there on, so that the diagnostics
    still tell how few of them count.
    """
    log_p, log_pi = (finite_matrix(name, x) for name, x in (("logged", logged), ("policy", policy)))
    weight = np.cumsum(log_pi - log_p, axis=1)
    steps = weight.shape[1]
    inside = np.ones_like(weight, np.bool_) if length is None else np.arange(steps) < length[:, None]
    largest = np.where(inside, weight, -np.inf).max(axis=0)
    short = np.where(np.isfinite(largest), np.maximum(-_FAR - largest, 0.0), 0.0)
    weight = np.clip(weight + np.maximum.accumulate(short), -2 * _FAR, _FAR)
    ratio = np.diff(weight, axis=1, prepend=0.0)
    return np.exp(-np.maximum(ratio, 0.0)), np.exp(np.minimum(ratio, 0.0))
