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

import numpy as np
from numpy.typing import ArrayLike

from qiance.allocate.later import Later
from qiance.allocate.problem import Problem
from qiance.allocate.single import solve_single
from qiance.allocate.stream_state import CostFactor, OpenOffers, Traffic, Window
from qiance.decide.rule import Decided, decide
from qiance.evaluate.arrays import (
    BoolArray,
    FloatArray,
    IndexArray,
    finite_matrix,
    finite_vector,
    mask_matrix,
    refuse_where,
)


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


@dataclass(frozen=True, slots=True, eq=False)
class Offered(Decided):
    """A decision with the numbers of its offers, `[n]`: `settle` wants them. −1 where nothing is offered."""

    offer: IndexArray


class StreamAllocator:
    """Decides for micro-batches of arrivals. Not for several threads; a replica has its own, with its lease
    as the budget.

    plan_value, plan_cost, plan_admissible: `[n, A]` predictions for users like those expected: what the first
    price is solved on. spent: what settled offers cost. units: `[A]` what is left of the stock.
    limit_prices: `[K]` of the limits on averages.
    What is spent and reserved never passes the budget (but for the rounding of sums), whatever is predicted:
    a call that would is refused by a ValueError that names the array, the row and the value, and changes
    nothing.
    """

    def __init__(
        self,
        settings: StreamSettings,
        plan_value: FloatArray,
        plan_cost: FloatArray,
        plan_admissible: BoolArray,
    ) -> None:
        self.settings = settings
        self.price, self.spent = 0.0, 0.0
        plan = _checked("plan_", plan_value, plan_cost, plan_admissible)
        actions = plan[0].shape[1]
        units = np.full(actions, np.inf) if settings.units is None else np.asarray(settings.units, np.float64)
        if units.shape != (actions,):
            raise ValueError(f"units: has shape {units.shape}; must be ({actions},), one per action")
        refuse_where("units", units, ~(units >= 0), "must be ≥ 0; infinite where there is no limit")
        self.units = units.copy()
        targets = np.zeros(0) if settings.targets is None else finite_vector("targets", settings.targets)
        self._targets, self.limit_prices, self._used = targets, np.zeros(targets.size), np.zeros(targets.size)
        self._window = Window(settings.window, *plan)
        self._traffic = Traffic(np.asarray(settings.forecast, dtype=np.float64), settings.memory)
        self._costs = CostFactor(settings.offers)
        self._open = OpenOffers()
        self._worth = float(np.abs(plan[0]).max(axis=1).mean()) or 1.0
        self.replan(0.0)

    @property
    def coming(self) -> float:
        """Arrivals still expected, as of the last `replan`."""
        return self._traffic.coming

    @property
    def reserved(self) -> float:
        """The most that offers without an outcome can still cost."""
        return self._open.reserved

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
    ) -> Offered:
        """Decide for n arrivals and reserve the most that their actions can cost.

        value, cost, admissible: `[n, A]` as for `qiance.decide.decide`; doing nothing, column 0, costs 0.
        most: `[n, A]` the most an action can take from the budget, ≥ 0, 0 for doing nothing. later: what the
        same users may be worth at a later visit; with it, an offer has to earn what the frequency cap's slot
        would bring then. uses: `[K, n, A]` of the limits on averages.
        What the budget or the stock cannot pay is not admissible. Settle each offer later, once.
        """
        value, cost, able = _checked("", value, cost, admissible, self.units.size)
        most = _costs("most", most, value.shape)
        used = None if uses is None else self._checked_uses(uses, value.shape)
        net = value if used is None else value - np.tensordot(self.limit_prices, used, axes=1)
        if later is not None:
            if len(later) != len(value):
                raise ValueError(f"later: is of {len(later)} users; must be of {len(value)}, one per arrival")
            net = net.astype(np.float64)  # a copy
            net[:, 1:] -= later.slot_worth(self.price)[:, None]
        if epsilon > 0 and uniforms is None:
            raise ValueError("uniforms: exploring needs numbers in [0, 1) to draw with, one per arrival")
        mask = able & (most <= self.left) & (self.units >= 1)
        mask[:, 0] = True
        drawn = np.zeros(len(net)) if uniforms is None else uniforms
        made = decide(net, cost, mask, self.price, epsilon, uniforms=drawn)
        if not self._affordable(made.choice, most):
            made = self._one_by_one(net, cost, mask, most, epsilon, drawn)
        offer = self._take(made.choice, cost, most)
        self._window.add(net, cost, able)
        self._traffic.arrived += len(net)
        if used is not None:
            self._descend(used, made.choice)
        return Offered(made.choice, made.probabilities, made.propensity, made.score, made.uniforms, offer)

    def settle(self, offer: ArrayLike, paid: ArrayLike) -> None:
        """The outcomes of n offers, in any order: what was reserved and not paid may be spent again.

        offer: `[n]` numbers from `Offered.offer`; paid: `[n]` what each took from the budget, at most its
        `most`, and 0 where nothing was offered (−1). An offer is settled once.
        """
        cost, amount = self._open.close(offer, paid)
        self.spent += float(amount.sum())
        self._costs.add(cost, amount)

    def replan(self, now: float) -> float:
        """The price for what is left at `now`, a share of the horizon in [0, 1]; returned and kept."""
        if not 0 <= now <= 1:
            raise ValueError(f"now: {now} is outside [0, 1], a share of the horizon")
        coming = max(self._traffic.remaining(now), 1.0)
        factor = self._costs.factor
        left = max(self.settings.budget - self.spent - self._open.predicted * factor, 0.0)
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

    def _take(self, choice: IndexArray, cost: FloatArray, most: FloatArray) -> IndexArray:
        """The numbers of the offers made."""
        at = np.arange(choice.size)
        given = np.bincount(choice, minlength=self.units.size)
        given[0] = 0
        self.units -= given
        return self._open.add(choice, most[at, choice], cost[at, choice])

    def _checked_uses(self, uses: FloatArray, shape: tuple[int, ...]) -> FloatArray:
        """`[K, n, A]`."""
        array = np.asarray(uses, dtype=np.float64)
        if array.shape != (self._targets.size, *shape):
            wanted = (self._targets.size, *shape)
            raise ValueError(f"uses: has shape {array.shape}; must be {wanted}, one matrix per target")
        refuse_where("uses", array, ~np.isfinite(array), "must be finite")
        return array

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


def _checked(
    prefix: str, value: ArrayLike, cost: ArrayLike, admissible: ArrayLike, actions: int | None = None
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Predictions `[n, A]`; doing nothing, column 0, is admissible and costs nothing."""
    worth = finite_matrix(f"{prefix}value", value)
    if actions is not None and worth.shape[1] != actions:
        raise ValueError(f"value: has {worth.shape[1]} columns; must have {actions}, as plan_value")
    able = mask_matrix(f"{prefix}admissible", admissible, worth.shape).copy()
    able[:, 0] = True
    return worth, _costs(f"{prefix}cost", cost, worth.shape), able


def _costs(name: str, values: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """`values` as finite float64 of `shape`, ≥ 0 and 0 in column 0."""
    costs = finite_matrix(name, values, shape).astype(np.float64, copy=False)
    bad = costs < 0
    bad[:, 0] = costs[:, 0] != 0
    refuse_where(name, costs, bad, "must be ≥ 0, and 0 in column 0, which is doing nothing")
    return costs
