"""What a strategy is expected to bring and cost: regressions on products of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qiance.domain import Objective
from qiance.proposer.vector import Floats, Vectors

COST = "cost"


@dataclass(frozen=True)
class Regression:
    """y ~ N(intercept + x·weight, …); covariance: `[p, p]` of the weights' posterior. scale: of y."""

    weight: Floats
    intercept: float
    covariance: Floats
    centre: Floats

    def predict(self, x: Floats) -> Floats:
        """`[n]` means."""
        return np.asarray(self.intercept + x @ self.weight)

    def deviation(self, x: Floats) -> Floats:
        """`[n]` standard deviation of the mean."""
        away = x - self.centre
        return np.asarray(np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", away, self.covariance, away), 0.0)))


@dataclass(frozen=True)
class Expected:
    """Per member of the segment over the whole run of the strategy: value of the goal, its standard deviation
    and cost (minor units), `[n]` each."""

    value: Floats
    deviation: Floats
    cost: Floats

    def gain(self, budget: Floats | float) -> Floats:
        """What a budget per member (minor units) brings per member: it may reach a part of them only."""
        return self.value * reached(self.cost, budget)


def reached(cost: Floats, budget: Floats | float) -> Floats:
    """The share of members that a budget per member pays for."""
    return np.asarray(np.minimum(1.0, budget / cost))


@dataclass(frozen=True)
class OutcomeModel:
    """Rates per member and day by goal, and of cost; centre, scale: `[F + 10]` of features and vectors.
    least_cost: minor units per member and day, below which no prediction goes."""

    centre: Floats
    scale: Floats
    least_cost: float
    targets: Mapping[str, Regression]

    def expect(self, features: Floats, vectors: Vectors, goal: Objective) -> Expected:
        """features: `[n, F]` of the segment that each of the n strategies is for."""
        x = self._design(features, vectors)
        days = vectors.days.astype(np.float64)
        own = self.targets[goal.value]
        cost = np.maximum(self.targets[COST].predict(x), self.least_cost)
        return Expected(own.predict(x) * days, own.deviation(x) * days, cost * days)

    def _design(self, features: Floats, vectors: Vectors) -> Floats:
        return design(features, vectors, self.centre, self.scale)


def design(features: Floats, vectors: Vectors, centre: Floats, scale: Floats) -> Floats:
    """`[n, p]`: standardised features of segment and strategy, and all their products."""
    x = (np.column_stack([features, vectors.features]) - centre) / scale
    first, second = np.triu_indices(x.shape[1])
    return np.column_stack([x, x[:, first] * x[:, second]])
