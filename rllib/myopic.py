"""The myopic allocator of promotions: the best of today, with the budget spread evenly over the days."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib.lockstep import Floats, Floats32
from rllib.promotion import DEEPEST, DEMAND_SEEN, FATIGUE_SEEN, STOCK_SEEN, Rules, budget, encode
from rllib.segments import Segments

Ints = NDArray[np.int64]
DEPTHS = np.linspace(0.0, DEEPEST, 9)
_STEPS, _LOWEST, _HIGHEST = 24, 1e-4, 1e3  # of the search for the shadow price, by factors
_LIMIT = 3.0  # a price may be divided or multiplied by at most this, as in `qiance.decide.pacing`


@dataclass(frozen=True, eq=False)
class Steer:
    """What may be changed about a day of `Myopic`, whose own day has ones throughout.

    cap: `[n, S]` share of each segment that may be contacted. price: `[n, S]` factor on the shadow price in a
    segment. pace: `[n]` factor on the day's budget.
    """

    cap: Floats
    price: Floats
    pace: Floats

    @classmethod
    def from_unit(cls, x: Floats) -> Steer:
        """From numbers in [−1, 1], `[n, 2·S + 1]`: caps (linear, 0 to 1), prices and pace (3^x)."""
        size = x.shape[1] // 2
        return cls(0.5 * (x[:, :size] + 1.0), _LIMIT ** x[:, size : 2 * size], _LIMIT ** x[:, -1])


class Myopic:
    """Knows the responses and what an observation shows, and maximises the margin of the day.

    Today's budget is what is left ÷ days left. Under it each segment gets the depth with the largest
    margin − λ·cost, or nothing, where λ is the price at which the day's budget is spent: the multiple-choice
    knapsack of `qiance.allocate` for a day, by bisection over all episodes at once. What a contact does to
    later days is not looked at: that is left to who steers it.
    """

    def __init__(self, segments: Segments, rules: Rules) -> None:
        self._segments, self._rules, self._budget = segments, rules, budget(segments, rules)

    def act(self, observations: Floats32) -> Floats32:
        """Actions `[n, 2·S]` for observations `[n, 3·S + 3]`."""
        ones = np.ones((len(observations), len(self._segments)))
        return self.steered(observations, Steer(ones, ones, ones[:, 0]))

    def steered(self, observations: Floats32, steer: Steer) -> Floats32:
        """The same within caps, and with other prices and another budget of the day."""
        gain, cost = (steer.cap[..., None] * grid for grid in self._grids(observations.astype(np.float64)))
        weighed = steer.price[..., None] * cost
        left = observations[:, -2] * self._budget
        today = np.minimum(
            steer.pace * left / np.maximum(observations[:, -3] * self._rules.horizon, 1.0), left
        )
        low, high = np.zeros(len(today)), np.full(len(today), _HIGHEST)
        for _ in range(_STEPS):
            price = np.sqrt(np.maximum(low, _LOWEST) * high)
            over = _spend(cost, _choose(gain, weighed, price)) > today
            low, high = np.where(over, price, low), np.where(over, high, price)
        choices = [_choose(gain, weighed, price) for price in (low, high)]
        share, depth = self._better(gain, cost, today, choices)
        return encode(steer.cap * share, depth)

    def _better(
        self, gain: Floats, cost: Floats, today: Floats, choices: list[Ints]
    ) -> tuple[Floats, Floats]:
        """Of the cheaper choice cut to the budget, and the dearer one, which fits: whichever brings more."""
        found = []
        for choice in choices:
            cut = np.minimum(1.0, today / np.maximum(_spend(cost, choice), 1e-9))
            value = cut * _picked(gain, choice).sum(axis=1)
            found.append((value, (choice >= 0) * cut[:, None], DEPTHS[np.maximum(choice, 0)]))
        first = (found[0][0] > found[1][0])[:, None]
        share, depth = (np.where(first, a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))
        return share, depth

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


def _choose(gain: Floats, cost: Floats, price: Floats) -> Ints:
    """Place of the best depth `[n, S]`, −1 for no contact."""
    net = gain - price[:, None, None] * cost
    best = net.argmax(axis=2)
    return np.where(np.take_along_axis(net, best[..., None], 2)[..., 0] > 0, best, -1)


def _picked(grid: Floats, choice: Ints) -> Floats:
    found = np.take_along_axis(grid, np.maximum(choice, 0)[..., None], 2)[..., 0]
    return np.where(choice >= 0, found, 0.0)


def _spend(cost: Floats, choice: Ints) -> Floats:
    return np.asarray(_picked(cost, choice).sum(axis=1))
