"""The log and the day of the allocation benchmark: who comes, what is worth what, what may be given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.allocating.families import DEPTHS, Response, draw_features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MARGINS = np.array([0.25, 0.35, 0.45, 0.55])  # of the item's price, before the discount
MARGIN_FLOOR = 0.15  # of the price after the discount
CONTACT_COST = 5.0  # minor units per offer, paid from the budget too
CAP = 2  # offers per user and day
VISITS = 2.5  # of a user on the day, on average
BUDGET_SHARE = 0.3  # of what giving everybody their best offer would cost
LATE_RATE = 2.0  # arrivals per hour of the afternoon ÷ those of the morning


@dataclass(frozen=True)
class Log:
    """A randomised log: uniform over the levels that keep the margin floor.

    x: `[n, 8]`; price, margin: `[n]` of the item looked at; level, bought: `[n]`; propensity: `[n]`, of the
    level given.
    """

    x: Floats
    price: Floats
    margin: Floats
    level: Ints
    bought: Ints
    propensity: Floats


@dataclass(frozen=True)
class Day:
    """A day of n arrivals in order of time, and the truth about them.

    user: `[n]`; x: `[n, 8]`; price, margin: `[n]` of the item looked at; allowed: `[n, 5]` by the margin
    floor; late: `[n]`; uniform: `[n]`, who buys at level a has uniform < response[:, a] (the same for every
    policy). response, value, cost: `[n, 5]` truth: probability, expected incremental margin before the
    discount, expected use of the budget; minor units. forecast: arrivals that were expected.
    """

    user: Ints
    x: Floats
    price: Floats
    margin: Floats
    allowed: Bools
    late: Bools
    uniform: Floats
    response: Floats
    value: Floats
    cost: Floats
    budget: float
    forecast: int

    def __len__(self) -> int:
        return len(self.user)


def worth(response: Floats, price: Floats, margin: Floats) -> tuple[Floats, Floats]:
    """(value, cost) `[n, 5]` of purchase probabilities `[n, 5]`, minor units.

    value = (p_d − p_0) · price · margin; cost = p_d · price · d + contact cost, 0 for doing nothing.
    """
    value = (response - response[:, :1]) * (price * margin)[:, None]
    return value, response * price[:, None] * DEPTHS + CONTACT_COST * (DEPTHS > 0)


def floor_mask(margin: Floats) -> Bools:
    """`[n, 5]`: levels at which the discounted price keeps its margin."""
    kept = (margin[:, None] - DEPTHS) / (1.0 - DEPTHS)
    return np.asarray(kept >= MARGIN_FLOOR - 1e-12)


def draw_log(response: Response, rows: int, seed: int) -> Log:
    """Yesterday, with yesterday's visitors."""
    rng = np.random.default_rng([seed, 1])
    x = draw_features(rng, rows)
    margin = rng.choice(MARGINS, rows)
    allowed = floor_mask(margin)
    propensity = allowed / allowed.sum(axis=1, keepdims=True)
    level = (rng.random((rows, 1)) >= np.cumsum(propensity, axis=1)).sum(axis=1)
    p = response(x, DEPTHS, np.zeros(rows, dtype=np.bool_))
    at = np.arange(rows)
    bought = (rng.random(rows) < p[at, level]).astype(np.int64)
    price = 3_000.0 * np.exp(0.5 * rng.standard_normal(rows))
    return Log(x, price, margin, level, bought, propensity[at, level])


def draw_day(response: Response, arrivals: int, seed: int) -> Day:
    """Today: at midday visitors double, are others, and respond otherwise. The forecast is yesterday's."""
    rng = np.random.default_rng([seed, 2])
    morning = int(arrivals / (1.0 + LATE_RATE))
    late = np.arange(arrivals) >= morning
    pool = max(int(arrivals / VISITS / 2), 1)
    features = np.concatenate([draw_features(rng, pool), draw_features(rng, pool, late_mix=True)])
    level = np.exp(0.3 * rng.standard_normal(2 * pool))
    # Two thirds of the afternoon's visits are by the afternoon's own users.
    other = late & (rng.random(arrivals) < 2 / 3)
    user = rng.integers(0, pool, arrivals) + pool * other
    x = features[user]
    price = 3_000.0 * level[user] * np.exp(0.4 * rng.standard_normal(arrivals))
    margin = rng.choice(MARGINS, arrivals)
    p = response(x, DEPTHS, late)
    value, cost = worth(p, price, margin)
    allowed = floor_mask(margin)
    best = np.where(allowed, value, -np.inf).argmax(axis=1)
    budget = BUDGET_SHARE * float(cost[np.arange(arrivals), best].sum())
    uniform = rng.random(arrivals)
    return Day(user, x, price, margin, allowed, late, uniform, p, value, cost, budget, forecast=2 * morning)
