"""Runs a chooser through a day: micro-batches in order of time, one guard for everybody, outcomes late.

The guard reserves the worst case of every offer and takes away those that what is left could not pay, so
nobody's overspend can be above 0, however it chooses. Whether a chooser keeps its budget by itself is told by
`guard_refusals`: how often the guard had to take an offer from it. `StreamAllocator` holds a lease on the
same terms as the guard, so that a refusal of a chooser that decides by it would be a fault of the lease.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.allocating.day import CAP, CONTACT_COST, Day, worth
from benchmarks.allocating.families import DEPTHS
from qiance.allocate import FrequencyCap, allocate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
BATCH = 20
REPLAN = 10  # batches between two calls of `replan`


@dataclass(frozen=True)
class Batch:
    """Arrivals as a chooser sees them.

    row: `[n]` of the day, −1 for rows of the log; user: `[n]`; x: `[n, 8]`; price, margin: `[n]`; allowed:
    `[n, 5]`; most: `[n, 5]` an offer can cost; slots: `[n]` offers that the cap still allows.
    """

    row: Ints
    user: Ints
    x: Floats
    price: Floats
    margin: Floats
    allowed: Bools
    most: Floats
    slots: Ints


class Chooser(Protocol):
    """A way of choosing offers."""

    def choose(self, batch: Batch) -> Ints:
        """The level of each arrival of a batch."""
        ...

    def learn(self, batch: Batch, choice: Ints, bought: Bools, paid: Floats) -> None:
        """What came of a batch, one batch later."""
        ...

    def replan(self, now: float) -> None:
        """Called now and then; now is a share of the day."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a day brought. value: expected, true; spent: share of the budget, as paid; overspend: what of it
    is beyond the budget, 0 by the guard; guard_refusals: offers that the guard took away; offers: those that
    were given; seconds: `[batches]` of each decision."""

    value: float
    spent: float
    overspend: float
    violations: int
    guard_refusals: int
    offers: int
    seconds: Floats


def run_day(day: Day, chooser: Chooser) -> Outcome:
    """Decide for everybody who comes.

    The guard is the same for all: who asks for an offer that what is left of the budget cannot pay at worst
    gets nothing. Offers under the margin floor or over the cap are counted as violations, and not given.
    """
    given = np.zeros(int(day.user.max()) + 1, dtype=np.int64)
    state = _Money(day.budget)
    seconds, value, violations, offers = [], 0.0, 0, 0
    pending: tuple[Batch, Ints, Bools, Floats] | None = None
    for number, rows in enumerate(_batches(day)):
        if number % REPLAN == 0:
            chooser.replan(time_of(day, int(rows[0])))
        batch = _batch(day, rows, given)
        started = time.perf_counter()
        choice = chooser.choose(batch)
        seconds.append(time.perf_counter() - started)
        at = np.arange(rows.size)
        bad = ~batch.allowed[at, choice]
        violations += int(bad.sum())
        choice = state.guard(np.where(bad, 0, choice), batch.most)
        if pending is not None:
            state.settle(pending[0].most, pending[1], pending[3])
            chooser.learn(*pending)
        bought = day.uniform[rows] < day.response[rows, choice]
        paid = np.where(choice > 0, CONTACT_COST + bought * batch.price * DEPTHS[choice], 0.0)
        pending = (batch, choice, bought, paid)
        given[day.user[rows]] += choice > 0
        value += float(day.value[rows, choice].sum())
        offers += int((choice > 0).sum())
    if pending is not None:
        state.settle(pending[0].most, pending[1], pending[3])
    spent = state.spent / day.budget
    over = max(spent - 1.0, 0.0)
    return Outcome(value, spent, over, violations, state.refusals, offers, np.array(seconds))


class _Money:
    def __init__(self, budget: float) -> None:
        self.budget, self.spent, self.reserved, self.refusals = budget, 0.0, 0.0, 0

    def guard(self, choice: Ints, most: Floats) -> Ints:
        """Nothing for who cannot be paid at worst; reserves for the others."""
        ask = most[np.arange(choice.size), choice]
        left = self.budget - self.spent - self.reserved
        if ask.sum() > left:
            for row in range(choice.size):
                if ask[row] > left:
                    self.refusals += int(choice[row] > 0)
                    ask[row], choice[row] = 0.0, 0
                left -= ask[row]
        self.reserved += float(ask.sum())
        return choice

    def settle(self, most: Floats, choice: Ints, paid: Floats) -> None:
        self.reserved -= float(most[np.arange(choice.size), choice].sum())
        self.spent += float(paid.sum())


def time_of(day: Day, row: int) -> float:
    """Share of the day at an arrival: midday is when the afternoon's visitors begin."""
    morning = int((~day.late).sum())
    if row < morning:
        return 0.5 * row / morning
    return 0.5 + 0.5 * (row - morning) / max(len(day) - morning, 1)


def _batches(day: Day) -> list[Ints]:
    """Micro-batches with nobody twice in one, so that caps are seen."""
    batches: list[Ints] = []
    for start in range(0, len(day), BATCH):
        rows = np.arange(start, min(start + BATCH, len(day)))
        while rows.size:
            first = np.sort(np.unique(day.user[rows], return_index=True)[1])
            batches.append(rows[first])
            rows = np.delete(rows, first)
    return batches


def _batch(day: Day, rows: Ints, given: Ints) -> Batch:
    allowed = day.allowed[rows].copy()
    allowed[given[day.user[rows]] >= CAP, 1:] = False
    price = day.price[rows]
    most = price[:, None] * DEPTHS + CONTACT_COST * (DEPTHS > 0)
    slots = CAP - given[day.user[rows]]
    return Batch(rows, day.user[rows], day.x[rows], price, day.margin[rows], allowed, most, slots)


def oracle_value(day: Day) -> float:
    """No plan of the day is worth more, knowing everything: the dual bound of the LP with budget and cap."""
    cap = FrequencyCap(day.user, CAP)
    return allocate(day.value, day.cost, day.budget, day.allowed, limits=[cap]).bound


def predicted_worth(response: Floats, batch: Batch) -> tuple[Floats, Floats]:
    """(value, cost) `[n, 5]` of predicted purchase probabilities."""
    return worth(response, batch.price, batch.margin)
