"""What an allocation must keep beside its budgets; each limit is checked when it is made.

A limit gives linear rows over counts and sums of the plan, so that the dual needs sums only, whatever the
number of users. `[U]` is rows of the problem (users, or visits of users), `[A]` actions, column 0 is doing
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import (
    BoolArray,
    FloatArray,
    IndexArray,
    finite_matrix,
    finite_vector,
    fraction,
    index_vector,
    mask_matrix,
    refuse_where,
)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of a limit: Σ_g weight[k, g] · (Σ over group g of what it counts) ≤ bound[k].

    group: `[U]` of each row, −1 for none, or None where all are one group. amount: `[U, A]` that is summed;
    None counts actions instead, and weight is `[K, G, A]`, else `[K, G]`. names: `[K]`. minimum: the row was
    turned round: it states a least amount. slack: `[K]` tolerance for rounding, in the units of the bound.
    kind: of the limit, such as `stock`.
    """

    names: tuple[str, ...]
    group: IndexArray | None
    amount: NDArray[Any] | None
    weight: FloatArray
    bound: FloatArray
    minimum: bool = False
    slack: float = 0.0
    kind: str = "budget"


class Limit(Protocol):
    """A limit on the plan, see the classes of this module."""

    def sizes(self) -> FloatArray:
        """`[G]` rows per group: what must be added over chunks before `block` is asked for."""
        ...

    def block(self, sizes: FloatArray, shape: tuple[int, int]) -> Block:
        """The linear rows for a value array of `shape` `[U, A]`; ValueError where the shapes differ."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Budget:
    """Σ cost ≤ limit over all rows. cost: `[U, A]` ≥ 0, column 0 is 0; limit ≥ 0 in the units of the cost."""

    cost: NDArray[Any]
    limit: float
    name: str = "budget"

    def __post_init__(self) -> None:
        checked_cost(self.name, self.cost)
        _at_least_zero(self.name, self.limit)

    def sizes(self) -> FloatArray:
        """Not needed."""
        return np.zeros(1)

    def block(self, sizes: FloatArray, shape: tuple[int, int]) -> Block:
        """One row."""
        _same_shape(f"{self.name}.cost", self.cost, shape)
        return Block((self.name,), None, self.cost, np.ones((1, 1)), np.array([float(self.limit)]))


@dataclass(frozen=True, slots=True, eq=False)
class DailyBudgets:
    """Σ cost ≤ limits[d] over the rows of each day d.

    cost: `[U, A]` ≥ 0, column 0 is 0. day: `[U]` from 0. limits: `[D]`, one per day. labels: `[D]` what the
    days are called.
    """

    cost: NDArray[Any]
    day: IndexArray
    limits: FloatArray
    name: str = "daily budget"
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        checked_cost(self.name, self.cost)
        days = index_vector(f"{self.name}.day", self.day, len(self.cost))
        limits = finite_vector(f"{self.name}.limits", self.limits)
        refuse_where(f"{self.name}.limits", limits, limits < 0, "must be ≥ 0")
        refuse_where(f"{self.name}.day", days, days >= limits.size, f"limits has {limits.size} days")
        _one_each(self.name, self.labels, limits.size)

    def sizes(self) -> FloatArray:
        """Not needed."""
        return np.zeros(1)

    def block(self, sizes: FloatArray, shape: tuple[int, int]) -> Block:
        """A row per day."""
        _same_shape(f"{self.name}.cost", self.cost, shape)
        days = len(self.limits)
        labels = self.labels or [f"day {day}" for day in range(days)]
        names = tuple(f"{self.name}, {label}" for label in labels)
        limits, day = np.asarray(self.limits, dtype=np.float64), np.asarray(self.day, dtype=np.int64)
        return Block(names, day, self.cost, np.eye(days), limits, kind="daily budget")


@dataclass(frozen=True, slots=True, eq=False)
class Stock:
    """Action a may be given to units[a] rows, or the actions of pool p together to units[p].

    units: `[A]`, or `[P]` with pools, ≥ 0, infinite where there is no limit. pool: `[A]` that each action is
    taken from, −1 for none. labels: what the actions, or the pools, are called.
    """

    units: FloatArray
    name: str = "stock"
    pool: IndexArray | None = None
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        units = np.asarray(self.units, dtype=np.float64)
        if units.ndim != 1:
            raise ValueError(f"{self.name}.units: has shape {units.shape}; must be one number per action")
        refuse_where(f"{self.name}.units", units, ~(units >= 0), "must be ≥ 0; infinity where unlimited")
        if self.pool is None and units.size and units[0] != np.inf:
            raise ValueError(f"{self.name}.units: row 0 is {units[0]}; doing nothing never runs out, use inf")
        if self.pool is not None:
            _checked_pool(self.name, np.asarray(self.pool), units.size)
        _one_each(self.name, self.labels, units.size)

    def sizes(self) -> FloatArray:
        """Not needed."""
        return np.zeros(1)

    def block(self, sizes: FloatArray, shape: tuple[int, int]) -> Block:
        """A row per limited action or pool."""
        units = np.asarray(self.units, dtype=np.float64)
        pool = np.arange(units.size) if self.pool is None else np.asarray(self.pool)
        if pool.size != shape[1]:
            what = "units" if self.pool is None else "pool"
            raise ValueError(f"{self.name}.{what}: has {pool.size} entries; there are {shape[1]} actions")
        limited = np.flatnonzero(np.isfinite(units))
        weight = (pool[None, :] == limited[:, None]).astype(np.float64)[:, None, :]
        labels = self.labels or [
            f"action {n}" if self.pool is None else f"pool {n}" for n in range(units.size)
        ]
        names = tuple(f"{self.name} of {labels[place]}" for place in limited.tolist())
        return Block(names, None, None, weight, np.floor(units[limited]), kind="stock")


@dataclass(frozen=True, slots=True, eq=False)
class SegmentFloor:
    """At least `share` of the rows of a segment get something. member: `[U]` bool; share in [0, 1]."""

    member: BoolArray
    share: float
    name: str = "segment floor"

    def __post_init__(self) -> None:
        fraction(f"{self.name}.share", self.share)
        mask_matrix(f"{self.name}.member", self.member, np.shape(self.member))

    def sizes(self) -> FloatArray:
        """Members."""
        return np.array([float(np.count_nonzero(self.member))])

    def block(self, sizes: FloatArray, shape: tuple[int, int]) -> Block:
        """One row: −(members that get something) ≤ −⌈share · members⌉."""
        _same_rows(f"{self.name}.member", self.member, shape)
        weight = -np.ones((1, 1, shape[1]))
        weight[:, :, 0] = 0.0
        # The share of a whole number may come out a hair too large: 0.07 · 100.
        least = np.ceil(self.share * sizes - 1e-9)
        group = np.where(self.member, 0, -1)
        return Block((self.name,), group, None, weight, -least, minimum=True, kind="segment floor")


@dataclass(frozen=True, slots=True, eq=False)
class MarginFloor:
    """Σ margin ≥ floor · Σ sales over the whole plan. margin, sales: `[U, A]`, doing nothing included."""

    margin: NDArray[Any]
    sales: NDArray[Any]
    floor: float
    name: str = "margin floor"

    def __post_init__(self) -> None:
        margin = finite_matrix(f"{self.name}.margin", self.margin)
        finite_matrix(f"{self.name}.sales", self.sales, margin.shape)
        fraction(f"{self.name}.floor", self.floor, low=-1.0)

    def sizes(self) -> FloatArray:
        """Not needed."""
        return np.zeros(1)

    def block(self, sizes: FloatArray, shape: tuple[int, int]) -> Block:
        """One row: Σ (floor · sales − margin) ≤ 0."""
        _same_shape(f"{self.name}.margin", self.margin, shape)
        amount = self.floor * np.asarray(self.sales, np.float64) - np.asarray(self.margin, np.float64)
        slack = 1e-12 * float(np.abs(amount).sum())
        return Block(
            (self.name,), None, amount, np.ones((1, 1)), np.zeros(1), True, slack, kind="margin floor"
        )


@dataclass(frozen=True, slots=True, eq=False)
class DepthFairness:
    """The mean depth of any two groups differs by at most `spread`.

    group: `[U]` from 0, −1 belongs to none. depth: `[A]` of each action, 0 for doing nothing; spread ≥ 0.
    labels: `[G]` what the groups are called.
    """

    group: IndexArray
    depth: FloatArray
    spread: float
    name: str = "depth fairness"
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        finite_vector(f"{self.name}.depth", self.depth)
        _at_least_zero(f"{self.name}.spread", self.spread)
        group = np.asarray(self.group)
        if group.ndim != 1 or group.dtype.kind not in "iu":
            raise ValueError(f"{self.name}.group: must be whole numbers [U]; −1 belongs to no group")
        refuse_where(f"{self.name}.group", group, group < -1, "must be ≥ −1")
        if self.labels is not None:
            beyond = group >= len(self.labels)
            refuse_where(f"{self.name}.group", group, beyond, f"labels has {len(self.labels)} groups")

    def sizes(self) -> FloatArray:
        """`[G]` rows of each group."""
        group = np.asarray(self.group)
        return np.bincount(group[group >= 0]).astype(np.float64)

    def block(self, sizes: FloatArray, shape: tuple[int, int]) -> Block:
        """A row per ordered pair of groups: mean depth of one − that of the other ≤ spread."""
        _same_rows(f"{self.name}.group", self.group, shape)
        depth = np.asarray(self.depth, dtype=np.float64)
        if depth.size != shape[1]:
            raise ValueError(f"{self.name}.depth: has {depth.size} entries; there are {shape[1]} actions")
        known: list[int] = np.flatnonzero(sizes).tolist()
        pairs = [(g, h) for g in known for h in known if g != h]
        weight = np.zeros((len(pairs), sizes.size, shape[1]))
        for row, (g, h) in enumerate(pairs):
            weight[row, g], weight[row, h] = depth / sizes[g], -depth / sizes[h]
        names = tuple(f"{self.name}, {self._pair(g, h)}" for g, h in pairs)
        bound, group = np.full(len(pairs), float(self.spread)), np.asarray(self.group, dtype=np.int64)
        return Block(names, group, None, weight, bound, slack=1e-12, kind="depth fairness")

    def _pair(self, g: int, h: int) -> str:
        return f"group {g} over {h}" if self.labels is None else f"{self.labels[g]} over {self.labels[h]}"


@dataclass(frozen=True, slots=True, eq=False)
class FrequencyCap:
    """No person gets more than `most` of its rows. person: `[U]` number of the person of each row."""

    person: IndexArray
    most: int
    name: str = "frequency cap"

    def __post_init__(self) -> None:
        index_vector(f"{self.name}.person", self.person)
        if self.most < 0 or self.most != int(self.most):
            raise ValueError(f"{self.name}.most: {self.most} is not a whole number ≥ 0")


def _one_each(name: str, labels: Sequence[str] | None, count: int) -> None:
    if labels is not None and len(labels) != count:
        raise ValueError(f"{name}.labels: has {len(labels)} entries; must have {count}, one each")


def _checked_pool(name: str, pool: NDArray[Any], count: int) -> None:
    if pool.ndim != 1 or pool.dtype.kind not in "iu":
        raise ValueError(f"{name}.pool: must be whole numbers [A]; −1 is taken from no pool")
    refuse_where(f"{name}.pool", pool, (pool < -1) | (pool >= count), f"units has {count} pools")
    if pool.size and pool[0] != -1:
        raise ValueError(f"{name}.pool: row 0 is {pool[0]}; doing nothing is taken from no pool, use −1")


def checked_cost(name: str, cost: NDArray[Any]) -> NDArray[Any]:
    """`cost` `[U, A]`, finite and ≥ 0, 0 in column 0; ValueError names the row and the value."""
    array = finite_matrix(name, cost)
    refuse_where(name, array, array < 0, "must be finite and ≥ 0")
    free = array[:, :1]
    refuse_where(f"{name} of column 0", free, free != 0, "must be 0: column 0 is doing nothing")
    return array


def _at_least_zero(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise ValueError(f"{name}: {value} is not a number ≥ 0")


def _same_shape(name: str, array: NDArray[Any], shape: tuple[int, int]) -> None:
    if np.shape(array) != shape:
        raise ValueError(f"{name}: has shape {np.shape(array)}; must be {shape}, that of value")


def _same_rows(name: str, array: NDArray[Any], shape: tuple[int, int]) -> None:
    if np.shape(array) != shape[:1]:
        raise ValueError(f"{name}: has shape {np.shape(array)}; must be ({shape[0]},), one per row of value")
