"""From a difference of scores to the chance that the first text has the higher click rate.

The true difference of two texts' logarithmic click rates is taken as normal around `slope` times the
predicted one, with standard deviation `spread`. Both are estimated on texts that the scores had not learned
from, where what was seen is the true difference plus the sampling error of two counts, of known variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy.special import ndtr

from qiance.bandits.choice import best_probabilities

Floats = NDArray[np.float64]
_LEAST = 1e-3


@dataclass(frozen=True, slots=True)
class Calibration:
    """slope: true difference per predicted one. spread: standard deviation of what is left of a pair's."""

    slope: float
    spread: float

    def beats(self, difference: ArrayLike, variance: ArrayLike = 0.0) -> Floats:
        """Chance that the first of each pair has the higher click rate.

        difference: of the scores. variance: of the sampling error, 0 for the true rates; with it the chance
        is that of being ahead in a test of that size.
        """
        error = np.sqrt(self.spread**2 + np.asarray(variance, dtype=np.float64))
        return np.asarray(ndtr(self.slope * np.asarray(difference, dtype=np.float64) / error))

    def best(self, scores: Floats) -> Floats:
        """Chance of each of n texts to have the highest true rate, `[n]`, summing to 1.

        A pair's spread is that of two independent texts.
        """
        own = self.slope * np.asarray(scores, dtype=np.float64)[None]
        spread = np.full(own.shape, self.spread / np.sqrt(2))
        return best_probabilities(own, spread, np.ones(own.shape, np.bool_))[0]


def fit_calibration(predicted: Floats, seen: Floats, variance: Floats, weight: Floats) -> Calibration:
    """By weighted maximum likelihood of seen differences, `[m]` each: seen ~ N(slope · predicted, spread² +
    variance)."""

    def loss(parameters: Floats) -> float:
        total = np.exp(2 * parameters[1]) + variance
        error = seen - parameters[0] * predicted
        return float(np.sum(weight * (np.log(total) + error**2 / total)) / weight.sum())

    start = np.array([1.0, np.log(max(float(np.sqrt(np.maximum(seen.var() - variance.mean(), 0))), _LEAST))])
    found = optimize.minimize(loss, start, method="L-BFGS-B", bounds=[(0.0, None), (np.log(_LEAST), None)]).x
    return Calibration(float(found[0]), float(np.exp(found[1])))
