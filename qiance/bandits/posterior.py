"""What is known of every action's reward: Bayesian linear regressions, one per action.

y = x·θ_a + e, e ~ N(0, σ²), θ_a ~ N(0, σ²/λ · I) gives, after rows i of action a with weights w_i,

    Λ_a = λI + Σ w_i x_i x_iᵀ,   θ̂_a = Λ_a⁻¹ Σ w_i y_i x_i,   θ_a ~ N(θ̂_a, σ² Λ_a⁻¹)
    σ̂² = (ν s₀² + Σ_a (Σ w_i y_i² − θ̂_a·Σ w_i y_i x_i)) / (ν + Σ w_i)

θ̂_a is ridge regression, as in LinUCB with disjoint models (Li et al., WWW 2010, algorithm 1) and in Thompson
sampling (Agrawal & Goyal, ICML 2013); σ̂² is b/a of the normal-inverse-gamma posterior of Riquelme et al.
(ICLR 2018, section 4), with the noise shared by the actions, and is plugged in as if it were known. Only sums
are kept, so neither the order nor the batching of the rows changes the posterior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import FloatArray, finite_matrix, finite_vector, index_vector, refuse_where

STATE = ("gram", "moment", "squares", "weight", "clock")


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before the first reward.

    ridge: λ > 0. noise: s₀ > 0, standard deviation of a reward around its mean, in units of the reward.
    noise_weight: ν > 0, how many rewards that guess is worth. half_life: days after which a reward counts
    half (w = 2^(−age / half_life), by when it was decided), or None for w = 1: forgetting for a world that
    drifts.
    """

    ridge: float = 1.0
    noise: float = 1.0
    noise_weight: float = 1.0
    half_life: float | None = None

    def __post_init__(self) -> None:
        for name in ("ridge", "noise", "noise_weight", "half_life"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}: {value} is not a positive number")


class LinearPosterior:
    """Regressions of A actions on d features; `update` takes rewards, `predict` says mean and uncertainty."""

    def __init__(self, num_actions: int, num_features: int, prior: Prior | None = None) -> None:
        self.prior = prior or Prior()
        self.gram: FloatArray = np.zeros((num_actions, num_features, num_features))
        self.moment: FloatArray = np.zeros((num_actions, num_features))
        self.squares: FloatArray = np.zeros(num_actions)
        self.weight: FloatArray = np.zeros(num_actions)
        self.clock = -np.inf
        self._inverse: FloatArray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(A, d)."""
        return self.moment.shape[0], self.moment.shape[1]

    def update(self, features: ArrayLike, action: ArrayLike, reward: ArrayLike, at: ArrayLike) -> None:
        """Learn from n rewards: features `[n, d]`, action, reward, at (day of the decision) `[n]`.

        ValueError names the array, the row and the value that is wrong; nothing is learned then.
        """
        x = rows_of("features", features, self.shape[1])
        chosen = index_vector("action", action, len(x))
        refuse_where("action", chosen, chosen >= self.shape[0], f"must be under {self.shape[0]}, the actions")
        y, days = finite_vector("reward", reward, len(x)), finite_vector("at", at, len(x))
        self._age(float(days.max()))
        weight = self._weights(days)
        for a in np.unique(chosen):
            rows = chosen == a
            weighted = x[rows] * weight[rows, None]
            self.gram[a] += weighted.T @ x[rows]
            self.moment[a] += y[rows] @ weighted
            self.squares[a] += weight[rows] @ np.square(y[rows])
            self.weight[a] += weight[rows].sum()
        self._inverse = None

    def predict(self, features: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """`[n, A]` mean and standard deviation of the expected reward x·θ_a, for features `[n, d]`."""
        x = rows_of("features", features, self.shape[1])
        inverse = self._inverses()
        spread = np.stack([np.einsum("nd,nd->n", x @ inverse[a], x) for a in range(self.shape[0])], axis=1)
        return x @ self.coefficients().T, np.sqrt(self.noise_variance() * np.maximum(spread, 0.0))

    def coefficients(self) -> FloatArray:
        """`[A, d]` θ̂."""
        return np.asarray(np.einsum("ade,ae->ad", self._inverses(), self.moment))

    def noise_variance(self) -> float:
        """σ̂²."""
        explained = np.einsum("ad,ad->a", self.coefficients(), self.moment)
        residual = np.maximum(self.squares - explained, 0.0).sum()
        prior = self.prior
        total = prior.noise_weight + self.weight.sum()
        return float((prior.noise_weight * prior.noise**2 + residual) / total)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything but the prior, as arrays."""
        return {name: np.asarray(getattr(self, name)) for name in STATE}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]], prior: Prior) -> LinearPosterior:
        """The inverse of `state`; ValueError for shapes that do not fit each other."""
        actions, size = finite_matrix("moment", state["moment"]).shape
        found = cls(actions, size, prior)
        for name in STATE[:-1]:
            if state[name].shape != getattr(found, name).shape:
                raise ValueError(f"{name}: has shape {state[name].shape}; moment is {(actions, size)}")
            setattr(found, name, state[name].astype(np.float64))
        found.clock = float(state["clock"])
        return found

    def _age(self, now: float) -> None:
        """Move the clock on, and what is known with it."""
        if self.prior.half_life is not None and now > self.clock > -np.inf:
            kept = 0.5 ** ((now - self.clock) / self.prior.half_life)
            for sums in (self.gram, self.moment, self.squares, self.weight):
                sums *= kept
        self.clock = max(self.clock, now)

    def _weights(self, days: FloatArray) -> FloatArray:
        if self.prior.half_life is None:
            return np.ones_like(days)
        return np.asarray(0.5 ** ((self.clock - days) / self.prior.half_life))

    def _inverses(self) -> FloatArray:
        """`[A, d, d]` Λ⁻¹, worked out once per update."""
        if self._inverse is None:
            ridge = self.prior.ridge * np.eye(self.shape[1])
            self._inverse = np.asarray(np.linalg.inv(self.gram + ridge), dtype=np.float64)
        return self._inverse


def rows_of(name: str, values: ArrayLike, width: int) -> FloatArray:
    """`values` as `[n, width]` float64; ValueError names the row and the value that is wrong."""
    found = finite_matrix(name, values).astype(np.float64, copy=False)
    if found.shape[1] != width:
        raise ValueError(f"{name}: has shape {found.shape}; must have {width} columns")
    return found
