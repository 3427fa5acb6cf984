"""How much a customer spends on a purchase: the own mean, drawn to everybody's as far as it is uncertain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.customers.history import History

Floats = NDArray[np.float64]
_LEAST = 1.0  # minor units


@dataclass(frozen=True, slots=True)
class Credibility:
    """mean: of everybody; within, between: variance of a customer's purchases, and of customers' means.

    An own mean over n purchases gets the weight n·between / (n·between + within). Source: Bühlmann and
    Straub (1970).
    """

    mean: float
    within: float
    between: float

    def weight(self, n: Floats) -> Floats:
        return np.asarray(n * self.between / (n * self.between + self.within))

    def estimate(self, own: Floats, n: Floats) -> Floats:
        """`[U]` the customer's mean, best guess."""
        weight = self.weight(n)
        return np.asarray(weight * own + (1 - weight) * self.mean)


@dataclass(frozen=True)
class SpendModel:
    """Mean value of a purchase: exp(a + Σ bₖ · inputₖ), a gamma regression on the inputs of `inputs`.

    linear, logarithm: credibility of values and of their logarithms. weights: a, then b.
    """

    linear: Credibility
    logarithm: Credibility
    weights: Sequence[float]

    def inputs(self, history: History) -> Floats:
        """`[U, 4]` logarithms: credible mean, credible mean by logarithms, last value, first value."""
        n = history.bought
        by_log = self.logarithm.estimate(history.mean_log, n)
        left = (1 - self.logarithm.weight(n)) * self.logarithm.between
        credible = np.log(np.maximum(self.linear.estimate(history.mean_value, n), _LEAST))
        ends = (np.log(np.maximum(v, _LEAST)) for v in (history.last_value, history.first_value))
        return np.column_stack([credible, by_log + (self.logarithm.within + left) / 2, *ends])

    def mean(self, history: History) -> Floats:
        """`[U]` expected value of a purchase, minor units."""
        weights = np.asarray(self.weights, dtype=np.float64)
        return np.asarray(np.exp(weights[0] + self.inputs(history) @ weights[1:]))

    def shape(self, history: History, purchases: Floats) -> Floats:
        """Shape of a gamma distribution of the total over `purchases` `[U, M]`, its mean being given.

        1 / (cᵥ² / n + (1 − weight) · c_b²): chance of single purchases, and what is not known of the
        customer's mean; cᵥ², c_b²: variances within and between over the squared mean.
        """
        square = max(self.linear.mean**2, 1e-12)
        unknown = (1 - self.linear.weight(history.bought)) * self.linear.between / square
        scatter = self.linear.within / square / np.maximum(purchases, 1.0)
        return np.asarray(1 / np.maximum(scatter + unknown[:, None], 1e-6))

    def to_dict(self) -> dict[str, Any]:
        own = {"linear": asdict(self.linear), "logarithm": asdict(self.logarithm)}
        return {**own, "weights": [float(w) for w in self.weights]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SpendModel:
        linear, logarithm = (Credibility(**data[name]) for name in ("linear", "logarithm"))
        return cls(linear, logarithm, tuple(data["weights"]))
