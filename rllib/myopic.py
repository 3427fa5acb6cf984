"""The myopic allocator of promotions: the best of today, with the budget spread evenly over the days."""

from __future__ import annotations

import numpy as np

from rllib.lockstep import Floats, Floats32
from rllib.promotion import DEEPEST, DEMAND_SEEN, FATIGUE_SEEN, STOCK_SEEN, Rules, budget, encode
from rllib.segments import Segments

DEPTHS = np.linspace(0.0, DEEPEST, 9)
_STEPS, _HIGHEST = 30, 1e3  # of the search for the shadow price


class Myopic:
    """Knows the responses and what an observation shows, and maximises the margin of the day.

    Today's budget is what is left ÷ days left. Under it each segment gets the depth with the largest
    margin − λ·cost, or nothing, where λ is the price at which the day's budget is spent: the multiple-choice
    knapsack of `qiance.allocate` for a day, by bisection over all episodes at once. What a contact does to
    later days is not looked at.
    """

    def __init__(self, segments: Segments, rules: Rules) -> None:
        self._segments, self._rules, self._budget = segments, rules, budget(segments, rules)

    def act(self, observations: Floats32) -> Floats32:
        """Actions `[n, 2·S]` for observations `[n, 3·S + 3]`."""
        gain, cost = self._grids(observations.astype(np.float64))
        days = np.maximum(observations[:, -3] * self._rules.horizon, 1.0)
        today = observations[:, -2] * self._budget / days
        low, high = np.zeros(len(today)), np.full(len(today), _HIGHEST)
        for _ in range(_STEPS):
            price = 0.5 * (low + high)
            over = _spend(cost, _choose(gain, cost, price)) > today
            low, high = np.where(over, price, low), np.where(over, high, price)
        return self._better(gain, cost, today, (low, high))

    def _better(self, gain: Floats, cost: Floats, today: Floats, prices: tuple[Floats, Floats]) -> Floats32:
        """The dearer choice, which fits, or the cheaper one cut to the budget: whichever brings more."""
        best: list[tuple[Floats, Floats, Floats]] = []
        for price in prices:
            choice = _choose(gain, cost, price)
            cut = np.minimum(1.0, today / np.maximum(_spend(cost, choice), 1e-9))
            value = cut * _picked(gain, choice).sum(axis=1)
            best.append((value, (choice >= 0) * cut[:, None], DEPTHS[np.maximum(choice, 0)]))
        first = (best[0][0] > best[1][0])[:, None]
        return encode(*(np.where(first, a, b) for a, b in zip(best[0][1:], best[1][1:], strict=True)))

    def _grids(self, seen: Floats) -> tuple[Floats, Floats]:
        """Margin and cost of contacting a whole segment today at each depth, `[n, S, D]`."""
        size = len(self._segments)
        fatigue, stock = seen[:, :size] * FATIGUE_SEEN, seen[:, size : 2 * size] * STOCK_SEEN
        demand = self._rules.correlation * seen[:, 2 * size : 3 * size] * DEMAND_SEEN
        shape = (*fatigue.shape, DEPTHS.size)
        rows = [
            np.broadcast_to(x, shape).ravel()
            for x in (DEPTHS, *(y[..., None] for y in (demand, fatigue, stock)))
        ]
        segment = np.broadcast_to(np.arange(size)[:, None], shape).ravel()
        crowd = self._segments.crowd(segment)
        truth = crowd.contacted(*rows)
        users = self._segments.size[:, None]
        return users * crowd.gain(truth).reshape(shape), users * truth.cost.reshape(shape)


def _choose(gain: Floats, cost: Floats, price: Floats) -> np.ndarray:
    """Place of the best depth `[n, S]`, −1 for no contact."""
    net = gain - price[:, None, None] * cost
    best = net.argmax(axis=2)
    return np.where(np.take_along_axis(net, best[..., None], 2)[..., 0] > 0, best, -1)


def _picked(grid: Floats, choice: np.ndarray) -> Floats:
    found = np.take_along_axis(grid, np.maximum(choice, 0)[..., None], 2)[..., 0]
    return np.where(choice >= 0, found, 0.0)


def _spend(cost: Floats, choice: np.ndarray) -> Floats:
    return np.asarray(_picked(cost, choice).sum(axis=1))
