"""Response families of the allocation benchmark: frozen before any learner was written or tuned on them.

A family is a function: how likely a user with features x buys at a discount of depth d. It changes at midday
(a competitor's sale, other visitors): no learner is told. Features are standard normal, clipped; `x[:, 5]`
and `x[:, 6]` mean nothing.

    logistic    log-odds linear in the depth, sensitivity differs by user
    threshold   nothing below the user's own threshold, the whole effect above
    saturating  concave in the depth, effect by a product of features
    segments    sure things, persuadables, lost causes and sleeping dogs, with hard borders
    contrarian  who buys anyway is moved least; S-shaped in the depth
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.market.responses import sigmoid

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FEATURES = 8
DEPTHS = np.array([0.0, 0.05, 0.10, 0.20, 0.30])
# (x [n, 8], depth [D], late [n]) → probability of buying [n, D]
Response = Callable[[Floats, Floats, Bools], Floats]


def logistic(x: Floats, depth: Floats, late: Bools) -> Floats:
    """logit p = a(x) + 0.9 · s(x) · d ÷ 0.2; at midday the base falls and sensitivity rises."""
    base = -2.2 + 0.6 * x[:, 0] + 0.5 * x[:, 1] + 0.3 * x[:, 4] - 0.3 * late
    sensitivity = np.exp(0.5 * x[:, 2] - 0.3 * x[:, 0]) * np.where(late, 1.15, 1.0)
    return sigmoid(base[:, None] + 0.9 * sensitivity[:, None] * depth / 0.2)


def threshold(x: Floats, depth: Floats, late: Bools) -> Floats:
    """p = p₀(x) + Δ(x) where d passes θ(x); at midday thresholds rise by two points."""
    base = sigmoid(-2.3 + 0.7 * x[:, 0] + 0.4 * x[:, 4])
    lift = 0.05 + 0.12 * sigmoid(1.2 * (x[:, 1] - x[:, 4]))
    least = 0.03 + 0.20 * sigmoid(1.2 * x[:, 2]) + 0.02 * late
    passed = sigmoid((depth - least[:, None]) / 0.015)
    return np.minimum(base[:, None] + lift[:, None] * np.where(depth > 0, passed, 0.0), 0.95)


def saturating(x: Floats, depth: Floats, late: Bools) -> Floats:
    """p = p₀(x) + A(x) · (1 − e^(−d ÷ τ(x))); at midday A falls by a fifth."""
    base = sigmoid(-2.4 + 0.5 * x[:, 0] + 0.4 * x[:, 1])
    most = 0.20 * sigmoid(1.5 * x[:, 2] * x[:, 4] + 0.5 * x[:, 1] - 0.5) * np.where(late, 0.8, 1.0)
    pace = 0.05 + 0.10 * sigmoid(x[:, 3])
    return base[:, None] + most[:, None] * (1.0 - np.exp(-depth / pace[:, None]))


def segments(x: Floats, depth: Floats, late: Bools) -> Floats:
    """Four kinds of users; at midday persuadables become more so, and sure things less sure."""
    share = depth / 0.3
    sleeping = 0.12 - np.where(depth > 0, 0.05 - 0.03 * share, 0.0)
    kinds = (
        (x[:, 0] < -1.0, np.broadcast_to(sleeping, (len(x), len(depth)))),
        (x[:, 1] > 0.5, np.where(late, 0.24, 0.28)[:, None] + 0.03 * share),
        (x[:, 2] > 0.2, 0.05 + np.where(late, 0.24, 0.20)[:, None] * share**0.7),
    )
    rest = np.broadcast_to(0.02 + 0.02 * share, (len(x), len(depth)))
    return np.select([kind[:, None] for kind, _ in kinds], [p for _, p in kinds], rest)


def contrarian(x: Floats, depth: Floats, late: Bools) -> Floats:
    """p = p₀(s) + 0.22 · σ(−1.5 s) · S(d) of a loyalty s; at midday everybody is a little less loyal."""
    loyalty = 0.8 * x[:, 0] + 0.5 * x[:, 1] - 0.3 * late
    base = sigmoid(-2.0 + 0.9 * loyalty)
    shape = sigmoid((depth - 0.12) / 0.04)
    shape = (shape - shape[0]) / (1.0 - shape[0])
    return base[:, None] + 0.22 * sigmoid(-1.5 * loyalty)[:, None] * shape


FAMILIES: dict[str, Response] = {
    "logistic": logistic,
    "threshold": threshold,
    "saturating": saturating,
    "segments": segments,
    "contrarian": contrarian,
}


@dataclass(frozen=True)
class Strength:
    """How much there is to learn in a family, at no drift.

    base_rate, top_rate: mean probability without an offer and at the deepest. lift_sd: standard deviation
    over users of the lift at 20 %. snr: variance of that lift ÷ variance of an outcome at 20 %.
    """

    base_rate: float
    top_rate: float
    lift_sd: float
    snr: float


def strength(response: Response, seed: int = 0, users: int = 200_000) -> Strength:
    """Measured on a large sample of users."""
    x = draw_features(np.random.default_rng(seed), users)
    p = response(x, DEPTHS, np.zeros(users, dtype=np.bool_))
    lift, at = p[:, 3] - p[:, 0], p[:, 3]
    return Strength(
        base_rate=float(p[:, 0].mean()),
        top_rate=float(p[:, -1].mean()),
        lift_sd=float(lift.std()),
        snr=float(lift.var() / (at * (1 - at)).mean()),
    )


def draw_features(rng: np.random.Generator, users: int, late_mix: bool = False) -> Floats:
    """`[users, 8]`; the visitors of the afternoon are newer and look at prices more."""
    x = rng.standard_normal((users, FEATURES))
    if late_mix:
        x[:, 0] -= 0.3
        x[:, 2] += 0.4
    return np.clip(x, -3.0, 3.0)
