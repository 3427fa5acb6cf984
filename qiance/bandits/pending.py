"""Decisions whose outcome is not known yet: what a purchase that comes days later belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import FloatArray, IndexArray, finite_matrix, finite_vector, index_vector

Ids = NDArray[np.str_]
COLUMNS = ("ids", "context", "action", "at", "reward")


class Learn(StrEnum):
    """When an outcome is learned from.

    close: when the window of its decision closes, with all others of that time. outcome: as soon as it comes;
    sooner, but purchases come before it is known that there was none, so the newest decisions look too good.
    """

    CLOSE = "close"
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """m decisions with their rewards: ids `[m]`, context `[m, d]`, action, at (day), reward `[m]`."""

    ids: Ids
    context: FloatArray
    action: IndexArray
    at: FloatArray
    reward: FloatArray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[Any]) -> Settled:
        """Those rows, by mask or number."""
        return Settled(*(getattr(self, name)[rows] for name in COLUMNS))

    @classmethod
    def join(cls, parts: Sequence[Settled]) -> Settled:
        """All of them, in the order of their ids."""
        whole = cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))
        return whole.take(np.argsort(whole.ids, kind="stable"))

    @classmethod
    def none(cls, num_features: int) -> Settled:
        """No decision at all."""
        whole = np.zeros(0, np.int64)
        return cls(np.zeros(0, "U1"), np.zeros((0, num_features)), whole, np.zeros(0), np.zeros(0))


class Pending:
    """Decisions on d features that wait, at most `window` days each.

    A row stays until its window closes, so that the same decision or outcome delivered again is known as
    such; after that, whatever comes for it is late. What is known again or late is left out, not refused:
    deliveries repeat. The first outcome of a decision counts; sum up what belongs together before.
    """

    def __init__(self, num_features: int, window: float, learn: Learn = Learn.CLOSE) -> None:
        if not 0 < window < np.inf:
            raise ValueError(f"window: {window} is not a positive number of days")
        self.window, self.learn, self.clock = window, Learn(learn), -np.inf
        self.rows = Settled.none(num_features)  # a reward that is not known yet is NaN

    def __len__(self) -> int:
        """Decisions whose reward is unknown."""
        return int(np.isnan(self.rows.reward).sum())

    def add(self, ids: ArrayLike, context: ArrayLike, action: ArrayLike, at: ArrayLike) -> int:
        """Remember n decisions: ids `[n]` (text or whole numbers), context `[n, d]`, action, at (day) `[n]`.

        Returns how many are new. Call it before the answer goes out: an outcome of an unknown decision is
        left out. ValueError names the array, the row and the value that is wrong.
        """
        if not np.size(ids):
            return 0
        names = _names(ids)
        x = finite_matrix("context", context, (names.size, self.rows.context.shape[1])).astype(np.float64)
        days = finite_vector("at", at, names.size)
        chosen = index_vector("action", action, names.size)
        given = Settled(names, x, chosen, days, np.full(names.size, np.nan))
        first = np.unique(names, return_index=True)[1]
        fresh = given.take(first)
        fresh = fresh.take((self._place(fresh.ids) < 0) & (fresh.at + self.window > self.clock))
        self.rows = Settled.join([self.rows, fresh])
        return len(fresh)

    def outcome(self, ids: ArrayLike, reward: ArrayLike) -> Settled:
        """Note rewards `[n]` of decisions `[n]`, and return what can be learned from now."""
        if not np.size(ids):
            return self.rows.take(np.zeros(0, np.int64))
        names = _names(ids)
        values = finite_vector("reward", reward, names.size)
        names, first = np.unique(names, return_index=True)
        place = self._place(names)
        new = place >= 0
        new[new] = np.isnan(self.rows.reward[place[new]])
        self.rows.reward[place[new]] = values[first][new]
        return self.rows.take(place[new] if self.learn is Learn.OUTCOME else place[:0])

    def close(self, now: float) -> Settled:
        """Let the windows that are over on day `now` close; a decision without an outcome then has reward 0.

        Returns what can be learned from now.
        """
        if not np.isfinite(now):
            raise ValueError(f"now: {now} is not a day")
        self.clock = max(self.clock, float(now))
        over = self.rows.at + self.window <= self.clock
        leaving, self.rows = self.rows.take(over), self.rows.take(~over)
        silent = np.isnan(leaving.reward)
        leaving.reward[silent] = 0.0
        return leaving if self.learn is Learn.CLOSE else leaving.take(silent)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything but the settings, as arrays."""
        return {name: getattr(self.rows, name) for name in COLUMNS} | {"clock": np.asarray(self.clock)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`; ValueError for lengths that do not fit each other."""
        rows = Settled(*(state[name] for name in COLUMNS))
        shape = (len(rows), self.rows.context.shape[1])
        if rows.context.shape != shape or {rows.action.shape, rows.at.shape, rows.reward.shape} != {
            shape[:1]
        }:
            raise ValueError(f"pending: context has shape {rows.context.shape}; must be {shape}")
        self.rows, self.clock = rows, float(state["clock"])

    def _place(self, names: Ids) -> IndexArray:
        """`[n]` row of each name, −1 where it is unknown."""
        if not len(self.rows):
            return np.full(names.size, -1)
        place = np.minimum(np.searchsorted(self.rows.ids, names), len(self.rows) - 1)
        return np.where(self.rows.ids[place] == names, place, -1)


def _names(ids: ArrayLike) -> Ids:
    given = np.asarray(ids)
    if given.ndim != 1 or given.dtype.kind not in "iuU":
        raise ValueError(
            f"ids: {given.dtype} of shape {given.shape}; must be a vector of texts or whole numbers"
        )
    return given.astype(np.str_)
