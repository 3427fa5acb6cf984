"""Allocation while users arrive: the decision rule, a price that follows the day, a lease that holds.

A decision is argmax of value − λ·cost (`qiance.decide.decide`), and costs microseconds. Between decisions
`replan` solves the one-budget problem again on the last arrivals, for what is left of the budget and of the
day: model-predictive control. Three things are corrected by what is seen: how many still come, what an offer
costs against its prediction, and, through the window, who comes. Limits on averages (segment floors,
fairness) get prices of their own by dual mirror descent.
Source: Balseiro, Lu & Mirrokni, Operations Research 71 (2023), 101-119, for dual mirror descent;
Agrawal, Wang & Ye, Operations Research 62 (2014), 876-890, for solving again on what was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.allocate.later import Later
from qiance.allocate.problem import Problem
from qiance.allocate.single import solve_single
from qiance.decide.rule import Decided, decide
from qiance.evaluate.arrays import BoolArray, FloatArray, IndexArray, finite_vector, refuse_where


@dataclass(frozen=True, slots=True, eq=False)
class StreamSettings:
    """budget: that may be spent, ≥ 0. forecast: `[T]` arrivals expected in each of T equal parts of the
    horizon, > 0 in all. units: `[A]` stock of each action, or None.

    targets: `[K]` of the limits on averages: Σ use ≤ target · arrivals. window: arrivals that the price is
    solved on. memory: share of the horizon over which the forecast is corrected. offers: number of settled
    offers over which predicted costs are corrected. step: of the mirror descent, without dimension.
    """

    budget: float
    forecast: FloatArray
    units: FloatArray | None = None
    targets: FloatArray | None = None
    window: int = 2_000
    memory: float = 0.04
    offers: float = 400.0
    step: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.budget < math.inf:
            raise ValueError(f"budget: {self.budget} is not a number ≥ 0")
        expected = finite_vector("forecast", self.forecast)
        refuse_where("forecast", expected, expected < 0, "must be ≥ 0 arrivals")
        if expected.sum() <= 0:
            raise ValueError("forecast: nobody is expected; give arrivals per part of the horizon")
        if self.window < 1:
            raise ValueError(f"window: {self.window} is less than one arrival")
        for name in ("memory", "offers", "step"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)} is not a positive number")


class StreamAllocator:
    """Decides for micro-batches of arrivals. Not for several threads; a replica has its own, with its lease
    as the budget.

    plan_value, plan_cost, plan_admissible: `[n, A]` predictions for users like those expected: what the first
    price is solved on.
    """

    def __init__(
        self,
        settings: StreamSettings,
        plan_value: FloatArray,
        plan_cost: FloatArray,
        plan_admissible: BoolArray,
    ) -> None:
        self.settings = settings
        self.price, self.spent, self.reserved = 0.0, 0.0, 0.0
        actions = plan_value.shape[1]
        units = np.full(actions, np.inf) if settings.units is None else np.asarray(settings.units, np.float64)
        if units.shape != (actions,):
            raise ValueError(f"units: has shape {units.shape}; must be ({actions},), one per action")
        self.units = units.copy()
        targets = np.zeros(0) if settings.targets is None else finite_vector("targets", settings.targets)
        self._targets, self.limit_prices, self._used = targets, np.zeros(targets.size), np.zeros(targets.size)
        self._window = _Window(settings.window, plan_value, plan_cost, plan_admissible)
        self._traffic = _Traffic(np.asarray(settings.forecast, dtype=np.float64), settings.memory)
        self._costs = _CostFactor(settings.offers)
        self._pending = 0.0  # predicted cost of what is reserved
        self._worth = float(np.abs(plan_value).max(axis=1).mean()) or 1.0
        self.replan(0.0)

    @property
    def coming(self) -> float:
        """Arrivals still expected, as of the last `replan`."""
        return self._traffic.coming

    @property
    def left(self) -> float:
        """What may still be reserved."""
        return self.settings.budget - self.spent - self.reserved

    def decide(
        self,
        value: FloatArray,
        cost: FloatArray,
        admissible: BoolArray,
        most: FloatArray,
        *,
        later: Later | None = None,
        uses: FloatArray | None = None,
        epsilon: float = 0.0,
        uniforms: FloatArray | None = None,
    ) -> Decided:
        """Decide for n arrivals and reserve the most that their actions can cost.

        value, cost, admissible: `[n, A]` as for `qiance.decide.decide`. most: `[n, A]` the most an action can
        take from the budget, ≥ 0, 0 for doing nothing. later: what the same users may be worth at a later
        visit; with it, an offer has to earn what the frequency cap's slot would bring then. uses: `[K, n, A]`
        of the limits on averages.
        What the budget or the stock cannot pay is not admissible. Settle each decision later, once.
        """
        net = value if uses is None else value - np.tensordot(self.limit_prices, uses, axes=1)
        if later is not None:
            net = net.astype(np.float64)  # a copy
            net[:, 1:] -= later.slot_worth(self.price)[:, None]
        if epsilon > 0 and uniforms is None:
            raise ValueError("uniforms: exploring needs numbers in [0, 1) to draw with, one per arrival")
        able = np.array(admissible)
        able[:, 0] = True
        mask = able & (most <= self.left) & (self.units >= 1)
        mask[:, 0] = True
        drawn = np.zeros(len(net)) if uniforms is None else uniforms
        made = decide(net, cost, mask, self.price, epsilon, uniforms=drawn)
        if not self._affordable(made.choice, most):
            made = self._one_by_one(net, cost, mask, most, epsilon, drawn)
        self._take(made.choice, cost, most)
        self._window.add(net, cost, able)
        self._traffic.arrived += len(net)
        if uses is not None:
            self._descend(uses, made.choice)
        return made

    def settle(self, cost: FloatArray, most: FloatArray, paid: FloatArray) -> None:
        """The outcomes of decided offers, `[n]` each: predicted cost, what was reserved, what was paid."""
        if (np.asarray(paid) > np.asarray(most) * (1 + 1e-9)).any():
            raise ValueError("paid: is more than was reserved; `most` must bound what an action can cost")
        self.reserved = max(self.reserved - float(np.sum(most)), 0.0)
        self.spent += float(np.sum(paid))
        self._pending = max(self._pending - float(np.sum(cost)), 0.0)
        self._costs.add(np.asarray(cost), np.asarray(paid))

    def replan(self, now: float) -> float:
        """The price for what is left at `now`, a share of the horizon in [0, 1]; returned and kept."""
        if not 0 <= now <= 1:
            raise ValueError(f"now: {now} is outside [0, 1], a share of the horizon")
        coming = max(self._traffic.remaining(now), 1.0)
        factor = self._costs.factor
        left = max(self.settings.budget - self.spent - self._pending * factor, 0.0)
        value, cost, admissible = self._window.rows()
        budget = np.array([left * len(value) / coming / factor])
        self.price = float(solve_single(Problem(value, cost[None], budget, admissible))[0][0])
        return self.price

    def _affordable(self, choice: IndexArray, most: FloatArray) -> bool:
        reserve = most[np.arange(choice.size), choice].sum()
        given = np.bincount(choice, minlength=self.units.size)
        given[0] = 0
        return bool(reserve <= self.left and (given <= self.units).all())

    def _one_by_one(
        self,
        net: FloatArray,
        cost: FloatArray,
        mask: BoolArray,
        most: FloatArray,
        epsilon: float,
        drawn: FloatArray,
    ) -> Decided:
        """Near the end of the budget or a stock a batch is decided in turn, each seeing what is left."""
        left, units = self.left, self.units.copy()
        allowed = mask.copy()
        for row in range(len(net)):
            allowed[row] &= (most[row] <= left) & (units >= 1)
            allowed[row, 0] = True
            one = slice(row, row + 1)
            action = int(
                decide(net[one], cost[one], allowed[one], self.price, epsilon, uniforms=drawn[one]).choice[0]
            )
            left -= float(most[row, action])
            units[action] -= action > 0
        return decide(net, cost, allowed, self.price, epsilon, uniforms=drawn)

    def _take(self, choice: IndexArray, cost: FloatArray, most: FloatArray) -> None:
        at = np.arange(choice.size)
        self.reserved += float(most[at, choice].sum())
        self._pending += float(cost[at, choice].sum())
        given = np.bincount(choice, minlength=self.units.size)
        given[0] = 0
        self.units -= given

    def _descend(self, uses: FloatArray, choice: IndexArray) -> None:
        """One step of mirror descent: a limit that is used faster than its target becomes dearer.

        The target is what the rest of the horizon must keep so that the whole does.
        """
        count = choice.size
        used = uses[:, np.arange(count), choice].sum(axis=1)
        size = np.abs(uses).max(axis=2).mean(axis=1)
        rest = max(self._traffic.coming, 1.0)
        before = self._traffic.arrived - count
        target = self._targets + (self._targets * before - self._used) / rest
        self._used += used
        rate = self.settings.step * self._worth / np.maximum(size, 1e-12) ** 2 / math.sqrt(rest)
        self.limit_prices = np.maximum(self.limit_prices + rate * (used - target * count), 0.0)


class _Window:
    """The last arrivals, as a ring."""

    def __init__(self, size: int, value: FloatArray, cost: FloatArray, admissible: BoolArray) -> None:
        self._arrays: tuple[NDArray[Any], ...] = (
            np.array(value[-size:], dtype=np.float64),
            np.array(cost[-size:], dtype=np.float64),
            np.array(admissible[-size:], dtype=np.bool_),
        )
        self._size, self._next = size, 0

    def add(self, *rows: NDArray[Any]) -> None:
        """Write over the oldest."""
        length, count = len(self._arrays[0]), len(rows[0])
        if length < self._size:
            self._arrays = tuple(
                np.concatenate([old, new])[-self._size :] for old, new in zip(self._arrays, rows, strict=True)
            )
            return
        place = (self._next + np.arange(count)) % length
        for old, new in zip(self._arrays, rows, strict=True):
            old[place] = new
        self._next = (self._next + count) % length

    def rows(self) -> tuple[NDArray[Any], ...]:
        """(value, cost, admissible) of the window."""
        return self._arrays


class _Traffic:
    """The forecast, corrected by who came: a discounted ratio of arrivals to expected ones."""

    def __init__(self, forecast: FloatArray, memory: float) -> None:
        self._until = np.concatenate([[0.0], np.cumsum(forecast)])
        self._prior = memory * float(self._until[-1])
        self._memory, self._seen, self._expected, self._now = memory, 0.0, 0.0, 0.0
        self.arrived, self._counted = 0, 0
        self.coming = float(self._until[-1])

    def remaining(self, now: float) -> float:
        """Arrivals still to come at `now`."""
        at = self._expected_until(now)
        fade = math.exp(-max(now - self._now, 0.0) / self._memory)
        self._seen = self._seen * fade + (self.arrived - self._counted)
        self._expected = self._expected * fade + at - self._expected_until(self._now)
        self._counted, self._now = self.arrived, now
        ratio = (self._seen + self._prior * fade) / (self._expected + self._prior * fade)
        self._prior *= fade
        self.coming = ratio * (float(self._until[-1]) - at)
        return self.coming

    def _expected_until(self, now: float) -> float:
        slots = np.linspace(0.0, 1.0, self._until.size)
        return float(np.interp(now, slots, self._until))


class _CostFactor:
    """Paid ÷ predicted costs of settled offers, discounted, and started at 1 with some weight."""

    def __init__(self, offers: float) -> None:
        self._offers, self._paid, self._predicted = offers, 0.0, 0.0
        self._prior = 0.0

    @property
    def factor(self) -> float:
        """To multiply predicted costs with, in [1/3, 3]."""
        if self._predicted + self._prior <= 0:
            return 1.0
        return min(max((self._paid + self._prior) / (self._predicted + self._prior), 1 / 3), 3.0)

    def add(self, predicted: FloatArray, paid: FloatArray) -> None:
        """Outcomes of offers; rows that cost nothing say nothing."""
        offers = int(np.count_nonzero(predicted > 0))
        if not offers:
            return
        fade = math.exp(-offers / self._offers)
        self._paid = self._paid * fade + float(paid.sum())
        self._predicted = self._predicted * fade + float(predicted.sum())
        self._prior = max(self._prior, 0.25 * self._offers * float(predicted.sum()) / offers)
