"""Ways of choosing offers: a price on predicted values, thresholds on a score, first come first served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.allocating.day import CAP, CONTACT_COST, VISITS, Day, Log, floor_mask, worth
from benchmarks.allocating.families import DEPTHS
from benchmarks.allocating.runner import Batch, predicted_worth
from qiance.allocate.later import Later, ReturnRate
from qiance.allocate.streaming import StreamAllocator, StreamSettings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Predict = Callable[[Batch], Floats]  # → purchase probability [n, 5]
PLAN = 2_000  # rows of the log that a day's first price is found on
# Expected later visits are multiplied with this, since they are uncertain. Set on seeds from 1,000 on.
PATIENCE = 0.6


def plan_batch(log: Log) -> Batch:
    """Rows of the log as if they came today."""
    rows = slice(0, PLAN)
    most = log.price[rows, None] * DEPTHS + CONTACT_COST * (DEPTHS > 0)
    slots = np.full(len(most), CAP)
    margin = log.margin[rows]
    nobody = np.full(len(most), -1)
    return Batch(nobody, nobody, log.x[rows], log.price[rows], margin, floor_mask(margin), most, slots)


class Priced:
    """Argmax of value − λ·cost of predicted values; λ paced through the day by `StreamAllocator`.

    best_ratio: only each arrival's action of highest value per cost may be given (greedy return on cost).
    ahead: an offer must earn what the user's slot under the cap may bring later.
    """

    def __init__(
        self, predict: Predict, log: Log, day: Day, best_ratio: bool = False, ahead: bool = False
    ) -> None:
        self._predict, self._best_ratio, self._ahead = predict, best_ratio, ahead
        plan = plan_batch(log)
        self._visit = _Visits(log, VISITS / day.forecast)
        settings = StreamSettings(budget=day.budget, forecast=np.full(24, day.forecast / 24))
        self.stream = StreamAllocator(settings, *self._grids(plan, predict(plan)))
        self._offers: list[Ints] = []

    def _grids(self, batch: Batch, response: Floats) -> tuple[Floats, Floats, Bools]:
        value, cost = predicted_worth(response, batch)
        if not self._best_ratio:
            return value, cost, batch.allowed
        ratio = np.where(batch.allowed & (cost > 0), value / np.maximum(cost, 1e-9), -np.inf)
        only = np.zeros_like(batch.allowed)
        only[np.arange(len(only)), ratio.argmax(axis=1)] = True
        only[:, 0] = True
        return value, cost, only & batch.allowed

    def choose(self, batch: Batch) -> Ints:
        """By the decision rule at the present price."""
        response = self._predict(batch)
        value, cost, allowed = self._grids(batch, response)
        later = self._visit.later(batch, response, self.stream.coming) if self._ahead else None
        made = self.stream.decide(value, cost, allowed, batch.most, later=later)
        self._offers.append(made.offer)
        return made.choice

    def learn(self, batch: Batch, choice: Ints, bought: Bools, paid: Floats) -> None:
        """Settle what was reserved."""
        self.stream.settle(self._offers.pop(0), paid)

    def replan(self, now: float) -> None:
        """A new price."""
        self.stream.replan(now)


@dataclass(frozen=True)
class Table:
    """Predictions worked out ahead: of the day's rows `[n, 5]`, and of the log's first rows."""

    day: Floats
    plan: Floats

    def __call__(self, batch: Batch) -> Floats:
        """Of a batch."""
        return self.plan if batch.row[0] < 0 else self.day[batch.row]


class _Visits:
    """Later visits of a user: the same response, items as in the log."""

    def __init__(self, log: Log, per_arrival: float, scenarios: int = 24) -> None:
        self._price, self._returns = log.price[:scenarios], ReturnRate(per_arrival)
        self._margin, self._allowed = log.margin[:scenarios], floor_mask(log.margin[:scenarios])

    def later(self, batch: Batch, response: Floats, coming: float) -> Later:
        """For a batch's users of predicted `response` `[n, 5]`, `coming` arrivals being expected in all."""
        self._returns.add(batch.user)
        lift = response - response[:, :1]
        value = lift[:, None] * (self._price * self._margin)[:, None]
        cost = response[:, None] * self._price[:, None] * DEPTHS + CONTACT_COST * (DEPTHS > 0)
        visits = np.full(len(response), PATIENCE * coming * self._returns.per_arrival)
        return Later(np.where(self._allowed, value, -1.0), cost, batch.slots, visits)


class Score:
    """The deepest offer allowed for whoever has the highest score, over a threshold that spends the budget
    evenly over the arrivals that are forecast, corrected by those seen: what a response model is used for."""

    def __init__(self, predict: Predict, log: Log, day: Day) -> None:
        self._predict, self._budget = predict, day.budget
        self._forecast, self._now, self._arrived = float(day.forecast), 0.0, 0
        self._spent, self._threshold = 0.0, np.inf
        score, _, cost = self._scores(plan_batch(log))
        self._window = [(score, cost)]

    def _scores(self, batch: Batch) -> tuple[Floats, Ints, Floats]:
        response = np.where(batch.allowed, self._predict(batch), -np.inf)
        response[:, 0] = -np.inf
        action = response.argmax(axis=1)
        at = np.arange(action.size)
        _, cost = worth(np.where(np.isfinite(response), response, 0.0), batch.price, batch.margin)
        return response[at, action], action, cost[at, action]

    def choose(self, batch: Batch) -> Ints:
        """The likeliest buyers."""
        score, action, cost = self._scores(batch)
        self._window.append((score, cost))
        self._arrived += score.size
        return np.where(score > self._threshold, action, 0)

    def learn(self, batch: Batch, choice: Ints, bought: Bools, paid: Floats) -> None:
        """What was spent."""
        self._spent += float(paid.sum())

    def replan(self, now: float) -> None:
        """The threshold at which the last arrivals would have spent what is left for as many."""
        coming = max(self._forecast * (1 - now), 1.0)
        if now > 0.05:
            coming *= self._arrived / (self._forecast * now)
        score = np.concatenate([part[0] for part in self._window])[-PLAN:]
        cost = np.concatenate([part[1] for part in self._window])[-PLAN:]
        self._window = [(score, cost)]
        order = np.argsort(-score)
        able = np.cumsum(cost[order]) <= (self._budget - self._spent) * score.size / coming
        last = int(able.sum()) - 1
        self._threshold = float(score[order[last]]) - 1e-12 if last >= 0 else np.inf


class FirstCome:
    """The offer of the highest predicted effect for everybody who comes, until the budget is gone."""

    def __init__(self, predict: Predict, sales: bool) -> None:
        self._predict, self._sales = predict, sales

    def choose(self, batch: Batch) -> Ints:
        """Argmax of the predicted purchase rate, or of predicted sales after the discount."""
        effect = self._predict(batch)
        if self._sales:
            effect = effect * batch.price[:, None] * (1.0 - DEPTHS)
        return np.where(batch.allowed, effect, -np.inf).argmax(axis=1)

    def learn(self, batch: Batch, choice: Ints, bought: Bools, paid: Floats) -> None:
        """Nothing is learned on the day."""

    def replan(self, now: float) -> None:
        """Nothing is planned."""
