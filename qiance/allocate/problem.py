"""The allocation problem: its data, checked, and what every solver asks of it.

    maximise Σ_u value[u, a_u]   subject to   Σ_u cost[k, u, a_u] ≤ budget[k]  for every k

which is a multiple-choice knapsack with K constraints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import (
    BoolArray,
    FloatArray,
    IndexArray,
    finite_matrix,
    finite_vector,
    mask_matrix,
    refuse_where,
)

# Users are priced in blocks of this many, so that the working set stays in the processor's cache.
_BLOCK = 1 << 14
# A cost this small is none: dividing by it would overflow.
_FREE = 1e-200


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One action for each of U users. choice: `[U]` column; value: its sum; cost: `[K]` its spend."""

    choice: IndexArray
    value: float
    cost: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A checked problem. value: `[U, A]`; cost: `[K, U, A]` ≥ 0, 0 in column 0; budget: `[K]` ≥ 0;
    admissible: `[U, A]` or None for all."""

    value: NDArray[Any]
    cost: NDArray[Any]
    budget: FloatArray
    admissible: BoolArray | None = None

    @property
    def users(self) -> int:
        return int(self.value.shape[0])

    @property
    def actions(self) -> int:
        return int(self.value.shape[1])

    def rows(self, rows: NDArray[Any] | slice, budget: FloatArray) -> Problem:
        """The problem of some users only, with its own budget."""
        mask = None if self.admissible is None else self.admissible[rows]
        return Problem(self.value[rows], self.cost[:, rows], budget, mask)

    def priced(self, price: FloatArray, rows: NDArray[Any] | slice = slice(None)) -> FloatArray:
        """value − Σ_k λ_k cost_k of some users, `[U', A]`, −inf where inadmissible. price: `[K]` λ."""
        net = self.value[rows].astype(np.float64)
        for one, cost in zip(price, self.cost, strict=True):
            if one > 0:
                net -= one * cost[rows]
        if self.admissible is not None:
            net[~self.admissible[rows]] = -np.inf
        return net

    def best(self, price: FloatArray) -> IndexArray:
        """`[U]` argmax of value − Σ_k λ_k cost_k, ties to the lowest column."""
        choice = np.empty(self.users, dtype=np.int64)
        for start in range(0, self.users, _BLOCK):
            block = slice(start, start + _BLOCK)
            choice[block] = self.priced(price, block).argmax(axis=1)
        return choice

    def plan(self, choice: IndexArray) -> Plan:
        """The plan of a `choice` `[U]`, summed in float64."""
        user = np.arange(self.users)
        value = float(self.value[user, choice].sum(dtype=np.float64))
        return Plan(choice, value, self.cost[:, user, choice].sum(axis=1, dtype=np.float64))

    def fits(self, plan: Plan) -> bool:
        return bool((plan.cost <= self.budget).all())

    def dual_value(self, price: FloatArray, plan: Plan) -> float:
        """L(λ) = Σ_u max_a (value − λ·cost) + λ·budget, given the plan of `best(λ)`: an upper bound."""
        return plan.value + float(price @ (self.budget - plan.cost))

    def price_ceilings(self) -> FloatArray:
        """`[K]` prices from which on no action with a cost in k is worth it, whatever the others."""
        worst = np.zeros(self.budget.size)
        floor = self.value[:, 0].astype(np.float64)
        for start in range(0, self.users, _BLOCK):
            block = slice(start, start + _BLOCK)
            gain = self.value[block] - floor[block, None]
            for k, cost in enumerate(self.cost):
                part = cost[block]
                usable = (part > _FREE) & (gain > 0)
                if usable.any():
                    worst[k] = max(worst[k], float((gain[usable] / part[usable]).max()))
        # Just above the ceiling, so that an action exactly at it loses against doing nothing.
        return worst * (1 + 1e-9)


def checked_problem(
    value: ArrayLike, cost: ArrayLike, budget: ArrayLike, admissible: ArrayLike | None = None
) -> Problem:
    """A `Problem` from the arguments of `allocate`; ValueError names the array, the row and the value."""
    worth = finite_matrix("value", value)
    limits = finite_vector("budget", np.atleast_1d(np.asarray(budget)))
    refuse_where("budget", limits, limits < 0, "must be ≥ 0")
    costs = _costs(cost, worth.shape)
    if costs.shape[0] != limits.size:
        raise ValueError(f"budget: has {limits.size} entries; cost has {costs.shape[0]} constraints")
    mask = None
    if admissible is not None:
        mask = mask_matrix("admissible", admissible, worth.shape)
        refuse_where("admissible", mask[:, :1], ~mask[:, :1], "column 0 is doing nothing, always admissible")
    return Problem(worth, costs, limits, mask)


def _costs(cost: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.asarray(cost)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"cost: dtype {array.dtype} is not numeric; pass an array of numbers")
    costs = array[None] if array.ndim == 2 else array
    if costs.ndim != 3 or costs.shape[1:] != shape or costs.shape[0] == 0:
        raise ValueError(f"cost: has shape {array.shape}; must be {shape}, or (K, *{shape}) for K budgets")
    if costs.dtype not in (np.float32, np.float64):
        costs = costs.astype(np.float64)
    refuse_where("cost", costs, ~(np.isfinite(costs) & (costs >= 0)), "must be finite and ≥ 0")
    free = costs[:, :, 0]
    refuse_where("cost of column 0", free, free != 0, "must be 0: column 0 is doing nothing")
    return costs
