"""Fits what a strategy brings and costs: Bayesian ridge on products of features, pooled over segments."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import BayesianRidge

from qiance.proposer.outcome import COST, OutcomeModel, Regression, design
from qiance.proposer.vector import Floats
from training.propose.log import StrategyLog


def fit_outcomes(log: StrategyLog) -> OutcomeModel:
    """Rates per member and day, so that what grows with the length is not learned as an effect.

    A trial weighs as many users and days as it had. Precision of noise and weights by maximum evidence.
    Source: MacKay, Neural Computation 4 (1992), 415-447, as in scikit-learn's BayesianRidge.
    """
    x = np.column_stack([log.features, log.vectors.features])
    spread = x.std(axis=0)
    centre, scale = x.mean(axis=0), np.where(spread > 0, spread, 1.0)
    products = design(log.features, log.vectors, centre, scale)
    exposure = (log.users * log.vectors.days).astype(np.float64)
    rates = {goal.value: values / exposure for goal, values in log.outcomes.items()} | {
        COST: log.cost / exposure
    }
    least = max(float(np.quantile(rates[COST], 0.01)), 1e-3)
    weight = exposure / exposure.mean()
    return OutcomeModel(
        centre, scale, least, {name: _fit(products, rate, weight) for name, rate in rates.items()}
    )


def _fit(x: Floats, y: Floats, weight: Floats) -> Regression:
    size = float(y.std()) or 1.0
    found = BayesianRidge(max_iter=100).fit(x, y / size, sample_weight=weight)
    centre = np.average(x, axis=0, weights=weight)
    return Regression(found.coef_ * size, float(found.intercept_) * size, found.sigma_ * size**2, centre)
