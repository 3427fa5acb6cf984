"""SalesPromotion once more, one user and one day at a time in plain Python: what `vs_python_env` divides by.

The same rules as `rllib.sales`, written apart from it, so that each checks the other. The networks are numpy
products of one row, and only those are asked that the day needs, as in the vectorised environment.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rllib.sales_users import Net, SalesUsers

SCALE = (36, 4, 24, 4, 12, 400, 60, 1600, 50, 120, 45, 16, 12, 400, 0.4, 6, 5, 0.4)


class PlainSales:
    """One user; `step` takes `(number of coupons, price factor)`."""

    def __init__(self, users: SalesUsers, horizon: int = 30) -> None:
        self._users, self._horizon = users, horizon

    def reset(self, seed: int) -> list[float]:
        """Start with a random user; what the agent sees of him."""
        self._rng = np.random.default_rng(seed)
        user = int(self._rng.integers(len(self._users.states)))
        self._state = [x * s for x, s in zip(self._users.states[user].tolist(), SCALE, strict=True)]
        self._seen = self._users.seen[user].tolist()
        self._day = 0
        return list(self._seen)

    def step(self, action: tuple[float, float]) -> tuple[list[float], float, bool, bool, dict[str, Any]]:
        """Live a day."""
        coupons = round(min(max(action[0], 0.0), 5.0))
        discount = 1.0 - min(max(action[1], 0.6), 0.95) if coupons else 0.0
        orders, fee = self._ask(coupons, discount)
        orders, fee, reward = live(self._state, coupons, discount, orders, fee, self._rng)
        days, seen = 60 + self._day, self._seen
        seen[0] += min(orders, 6)
        seen[1] = (seen[1] * days + min(orders, 6)) / (days + 1)
        seen[2] = (seen[2] * days + min(max(fee, 0.0), 100.0)) / (days + 1)
        seen[3] = self._state[15]
        self._day += 1
        return list(seen), reward, self._day == self._horizon, False, {}

    def _ask(self, coupons: int, discount: float) -> tuple[int, float]:
        rng = self._rng
        self._state[16], self._state[17] = coupons, discount
        x = np.array([v / s for v, s in zip(self._state, SCALE, strict=True)], dtype=np.float32)
        nets = self._users.models[int(rng.integers(len(self._users.models)))]
        no, yes = _forward(nets.acts, x[10:18])
        if rng.random() >= 1.0 / (1.0 + math.exp(no - yes)):
            return 0, 0.0
        weights = [math.exp(v) for v in _forward(nets.orders, x[1:5])]
        left, orders = rng.random() * sum(weights), 0
        while orders < 5 and left >= weights[orders]:
            left -= weights[orders]
            orders += 1
        mean, log_std = _forward(nets.fee, x[6:10])
        drawn = (
            1.0 / (1.0 + math.exp(-mean)) + math.exp(min(max(log_std, -20.0), 2.0)) * rng.standard_normal()
        )
        return orders + 1, 100.0 * min(max(drawn, 1e-10), 1.0)


def live(
    s: list[float], coupons: int, discount: float, orders: int, fee: float, rng: Any
) -> tuple[int, float, float]:
    """Orders, fee and reward of the day; the state `s` of 18 real numbers becomes that of the next day."""
    orders = _moved(orders, coupons, discount, s[14], round(s[15]), rng)
    if fee > 0:
        low, high = max(s[8] - math.sqrt(s[7]), 0.0), max(s[9], s[6] + 3.0 * math.sqrt(s[9]))
        fee = min(max(fee, low), high)
    if orders >= 1 and fee <= 0.1:
        fee = s[6] + 1.5 * rng.standard_normal()
    if orders < 1 or fee <= 0.1:
        orders, fee = 0, 0.0
    used = min(orders, coupons)
    given = discount * used * fee
    _count(s, 0, orders, orders > 0)
    _count(s, 5, fee, orders > 0)
    s[10] = 0.0 if orders else s[10] + 1.0
    s[11], s[12], s[13] = 0.99 * s[11] + orders, 0.99 * s[12] + (orders > 0), 0.99 * s[13] + orders * fee
    s[14] = min(s[14], discount if used else 0.4)
    s[15] = (round(s[15]) + 1) % 7
    s[16] = s[17] = 0.0
    for place in (1, 2, 3, 4, *range(6, 18)):
        s[place] = min(max(s[place], 0.0), SCALE[place])
    return orders, fee, orders * fee - 2.0 * given


def _moved(orders: int, coupons: int, discount: float, accepted: float, weekday: int, rng: Any) -> int:
    if weekday in (0, 4):
        orders += rng.random() < 0.25
    elif weekday in (5, 6) and orders >= 1:
        orders -= rng.random() < (0.25 if weekday == 5 else 0.4)
    if coupons and not orders:
        orders = 1 if discount >= accepted else int(rng.random() < discount)
    elif coupons and discount < accepted:
        orders -= rng.random() < 1.0 - discount
    elif not coupons and orders:
        orders -= round(0.75 * orders) if accepted >= 0.15 else rng.random() < 0.25
    if discount >= 0.35:
        orders += rng.random() < 1.5 * discount
    elif discount >= 0.25:
        orders += rng.random() < discount
    return int(orders)


def _count(s: list[float], at: int, x: float, bought: bool) -> None:
    mean = s[at + 1]
    times = round(s[at] / (mean + 1e-10)) if mean > 0 else 0
    s[at] += x
    if bought:
        s[at + 1] = mean + (x - mean) / (times + 1)
        s[at + 2] += (x - s[at + 1]) * (x - mean)
        s[at + 3] = x if s[at + 3] == 0 else min(s[at + 3], x)
        s[at + 4] = max(s[at + 4], x)


def _forward(net: Net, x: np.ndarray) -> list[float]:
    last = len(net.weights) - 1
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        x = x @ weight + bias
        if layer < last:
            x = np.maximum(x, 0.01 * x)
    return x.tolist()
