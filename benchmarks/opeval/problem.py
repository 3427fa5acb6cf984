"""Synthetic bandits with a known truth, of the form that OBP's `SyntheticBanditDataset` has.

Contexts are standard normal in 5 dimensions; rewards are 0 or 1 with mean q(x, a) = sigmoid(x·c_a + b_a),
coefficients uniform in [0, 1] (OBP's `logistic_reward_function` with one-hot actions). The log is made by
softmax(β q): β > 0 prefers what the target prefers, β = 0 is uniform, β < 0 avoids it. The target takes the
best action with 0.8 and any with 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DIMENSIONS = 5
GREEDY = 0.8
_TRUTH_ROWS = 60_000
_CHUNK = 20_000


@dataclass(frozen=True)
class Problem:
    """coefficients: `[K, 5]`; intercepts: `[K]`; seed: of the truth's contexts."""

    coefficients: Floats
    intercepts: Floats
    seed: int

    @classmethod
    def draw(cls, actions: int, seed: int) -> Problem:
        """A problem of `actions` actions."""
        rng = np.random.default_rng([seed, actions, 0])
        return cls(rng.uniform(size=(actions, DIMENSIONS)), rng.uniform(size=actions), seed)

    @property
    def actions(self) -> int:
        return int(self.intercepts.size)

    def mean(self, context: Floats) -> Floats:
        """`[n, K]` q(x, a)."""
        return np.asarray(1 / (1 + np.exp(-(context @ self.coefficients.T + self.intercepts))))

    def truth(self) -> float:
        """Value of the target, over 60,000 contexts of their own, each with its mirror image."""
        rng, total = np.random.default_rng([self.seed, self.actions, 1]), 0.0
        for _ in range(_TRUTH_ROWS // _CHUNK):
            half = rng.normal(size=(_CHUNK // 2, DIMENSIONS))
            mean = self.mean(np.vstack([half, -half]))
            total += float((target(mean) * mean).sum())
        return total / _TRUTH_ROWS


@dataclass(frozen=True)
class Sample:
    """A log: context `[n, 5]`, action, reward, propensity `[n]`, policy `[n, K]` of the target."""

    context: Floats
    action: NDArray[np.int64]
    reward: Floats
    propensity: Floats
    policy: Floats


def target(mean: Floats) -> Floats:
    """`[n, K]` the best action with 0.8, any with 0.2."""
    probs = np.full(mean.shape, (1 - GREEDY) / mean.shape[1])
    probs[np.arange(len(mean)), mean.argmax(axis=1)] += GREEDY
    return probs


def sample(problem: Problem, beta: float, rows: int, seed: int, hidden: float = 0.0) -> Sample:
    """A log of `rows` rows; the last `hidden` share of the actions is never taken."""
    rng = np.random.default_rng([seed, problem.actions, 2, int(beta) + 10])
    context = rng.normal(size=(rows, DIMENSIONS))
    mean = problem.mean(context)
    logging = np.exp(beta * mean)
    if hidden:
        logging[:, problem.actions - round(hidden * problem.actions) :] = 0.0
    logging /= logging.sum(axis=1, keepdims=True)
    action = (np.cumsum(logging, axis=1) < rng.random((rows, 1))).sum(axis=1)
    action = action.clip(max=int(np.flatnonzero(logging[0])[-1]))
    row = np.arange(rows)
    reward = (rng.random(rows) < mean[row, action]).astype(np.float64)
    return Sample(context, action, reward, logging[row, action], target(mean))
