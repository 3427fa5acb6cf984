"""Fits what a purchase is worth: credibility from the history, a gamma regression on what came after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import GammaRegressor

from qiance.customers.history import History
from qiance.customers.spend import Credibility, SpendModel

Floats = NDArray[np.float64]
_RIDGE = 1e-4
_LEAST = 1.0  # minor units: the regression is of positive values
_NEUTRAL = (0.0, 1.0, 0.0, 0.0, 0.0)  # the credible mean as it is
_MIN_BUYERS = 50  # that a regression is made of


def credible(history: History) -> SpendModel:
    """Everybody's mean, and how far customers differ, by linear values and by logarithms."""
    linear = _credibility(history.mean_value, history.squares, history.bought)
    logarithm = _credibility(history.mean_log, history.log_squares, history.bought)
    return SpendModel(linear, logarithm, _NEUTRAL)


def regress(
    spend: SpendModel, inputs: Sequence[Floats], count: Sequence[Floats], value: Sequence[Floats]
) -> SpendModel:
    """`spend` with the weights by which its inputs at earlier cutoffs foretold the mean value of a purchase.

    inputs `[U, 4]`, count, value `[U]` of each period: purchases are weighed, customers without one left out.
    """
    table, n, total = np.concatenate(inputs), np.concatenate(count), np.concatenate(value)
    buys = (n > 0) & (total > 0)
    if buys.sum() < _MIN_BUYERS:
        return spend
    mean = np.maximum(total[buys] / n[buys], _LEAST)
    centre = table[buys].mean(axis=0)
    found = GammaRegressor(alpha=_RIDGE, max_iter=1_000).fit(
        table[buys] - centre, mean, sample_weight=n[buys]
    )
    weights = (float(found.intercept_ - found.coef_ @ centre), *(float(b) for b in found.coef_))
    return SpendModel(spend.linear, spend.logarithm, weights)


def _credibility(own: Floats, squares: Floats, n: Floats) -> Credibility:
    """Bühlmann and Straub's estimates; without repeated purchases nobody is known to differ."""
    total, users = float(n.sum()), len(n)
    mean = float(n @ own) / total
    within = float(squares.sum()) / max(float((n - 1).sum()), 1.0)
    typical = (total - float(n @ n) / total) / max(users - 1, 1)
    among = float(n @ (own - mean) ** 2) / max(users - 1, 1)
    between = max((among - within) / max(typical, 1e-12), 0.0)
    return Credibility(mean, max(within, 1e-12), between)
