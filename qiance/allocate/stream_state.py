"""What a streaming allocator keeps of what it saw: arrivals, traffic, real costs, offers that are open."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import BoolArray, FloatArray, IndexArray, finite_vector, refuse_where

NOTHING = -1  # the number of an offer that was none


class OpenOffers:
    """What is reserved for the offers whose outcome is not known yet.

    reserved, predicted: Σ of the most that they can cost, and of what they are expected to.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[float, float]] = {}  # number → (most, predicted cost)
        self._next = 0
        self.reserved, self.predicted = 0.0, 0.0

    def add(self, choice: IndexArray, most: FloatArray, cost: FloatArray) -> IndexArray:
        """Numbers `[n]` of new offers, `NOTHING` for column 0; most, cost: `[n]` of the chosen columns."""
        given = np.flatnonzero(choice)
        offer = np.full(choice.size, NOTHING, dtype=np.int64)
        offer[given] = self._next + np.arange(given.size)
        self._next += given.size
        pairs = zip(most[given].tolist(), cost[given].tolist(), strict=True)
        self._open.update(zip(offer[given].tolist(), pairs, strict=True))
        self.reserved += float(most[given].sum())
        self.predicted += float(cost[given].sum())
        return offer

    def close(self, offer: ArrayLike, paid: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """(predicted cost, paid) `[n]` of offers that have an outcome now; nothing is reserved for them more.

        ValueError, and no change, for an offer that is not open, is named twice, or paid more than reserved.
        """
        number, amount = self._checked(offer, paid)
        pairs = [self._open.get(key, (0.0, 0.0)) for key in number.tolist()]
        most, cost = np.array(pairs).T
        over = amount > most * (1 + 1e-9)
        if over.any():
            row = int(over.argmax())
            raise ValueError(
                f"paid: row {row} is {amount[row]:g}, more than the {most[row]:g} reserved for it; "
                "`most` must bound what an action can cost"
            )
        for key in number.tolist():
            self._open.pop(key, None)
        # Without open offers nothing is reserved, not even a rounding error.
        self.reserved = max(self.reserved - float(most.sum()), 0.0) if self._open else 0.0
        self.predicted = max(self.predicted - float(cost.sum()), 0.0) if self._open else 0.0
        return cost, np.minimum(amount, most)

    def _checked(self, offer: ArrayLike, paid: ArrayLike) -> tuple[IndexArray, FloatArray]:
        numbers = finite_vector("offer", offer)
        made = np.array([key == NOTHING or key in self._open for key in numbers.tolist()])
        refuse_where("offer", numbers, ~made, "is not open: settled already, or never made")
        first = np.unique(numbers, return_index=True)[1]
        again = numbers != NOTHING
        again[first] = False
        refuse_where("offer", numbers, again, "is named twice: settle each offer once")
        amount = finite_vector("paid", paid, numbers.size)
        refuse_where("paid", amount, amount < 0, "must be ≥ 0")
        return numbers.astype(np.int64), amount


class Window:
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


class Traffic:
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


class CostFactor:
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
