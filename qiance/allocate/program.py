"""An allocation problem with any limits, compiled: what its rows are worth and use at given prices.

    maximise Σ_u value[u, a_u]   subject to   Σ_u use[k, u, a_u] ≤ bound[k]  for every k

with at most `cap` rows of a person on another action than 0. `use` is never built for all rows: each limit
keeps one array and the group of each row (see limits.Block).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.allocate.limits import Block, FrequencyCap, Limit
from qiance.evaluate.arrays import BoolArray, FloatArray, IndexArray, finite_matrix, mask_matrix, refuse_where

# Rows are priced in blocks of this many, so that the working set stays in the processor's cache.
_BLOCK = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """A choice `[U]`, its total value, and its use of each limit `[K]`."""

    choice: IndexArray
    value: float
    use: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """value: `[U, A]`; admissible: `[U, A]` or None; blocks: limits; bound: `[K]`, those of all blocks in
    order; slack: `[K]` tolerance of a check; person: `[U]` from 0, or None; cap: rows a person may get."""

    value: NDArray[Any]
    admissible: BoolArray | None
    blocks: tuple[Block, ...]
    bound: FloatArray
    slack: FloatArray
    person: IndexArray | None = None
    cap: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """`[K]` of the limits."""
        return tuple(name for block in self.blocks for name in block.names)

    def rows(self, rows: NDArray[Any], bound: FloatArray) -> Program:
        """The program of some rows only, with bounds of its own."""
        mask = None if self.admissible is None else self.admissible[rows]
        person = None if self.person is None else self.person[rows]
        blocks = tuple(_rows_of(block, rows) for block in self.blocks)
        return Program(self.value[rows], mask, blocks, bound, self.slack, person, self.cap)

    def priced(self, price: FloatArray, rows: slice = slice(None)) -> FloatArray:
        """value − Σ_k λ_k use_k of some rows, `[U', A]`, −inf where inadmissible."""
        net = self.value[rows].astype(np.float64)
        start = 0
        for block in self.blocks:
            part = price[start : start + len(block.names)]
            start += len(block.names)
            if part.any():
                _subtract(net, block, part, rows)
        if self.admissible is not None:
            net[~self.admissible[rows]] = -np.inf
        return net

    def best(self, price: FloatArray) -> IndexArray:
        """`[U]` argmax of `priced`, ties to the lowest column; of a person the `cap` best rows."""
        choice = np.empty(len(self.value), dtype=np.int64)
        gain = np.empty(len(self.value)) if self.person is not None else None
        for start in range(0, len(choice), _BLOCK):
            block = slice(start, start + _BLOCK)
            net = self.priced(price, block)
            choice[block] = net.argmax(axis=1)
            if gain is not None:
                gain[block] = net.max(axis=1) - net[:, 0]
        if gain is not None and self.person is not None:
            choice[beyond_cap(self.person, np.where(choice > 0, gain, 0.0), self.cap)] = 0
        return choice

    def sums(self, choice: IndexArray) -> Sums:
        """Value and use of a choice, summed in float64."""
        value = float(self.value[np.arange(len(choice)), choice].sum(dtype=np.float64))
        parts = [_use(block, choice, self.value.shape[1]) for block in self.blocks]
        return Sums(choice, value, np.concatenate(parts) if parts else np.zeros(0))

    def fits(self, use: FloatArray) -> bool:
        """Whether every limit holds."""
        return bool((use <= self.bound + self.slack).all())

    def dual_value(self, price: FloatArray, sums: Sums) -> float:
        """L(λ) = Σ (value − λ·use) + λ·bound of the sums of `best(λ)`: no plan is worth more."""
        return sums.value + float(price @ (self.bound - sums.use))

    def coefficients(self) -> FloatArray:
        """`use[k, u, a]`, `[K, U, A]`: for few rows only."""
        users, actions = self.value.shape
        parts = [_coefficients(block, users, actions) for block in self.blocks]
        return np.concatenate(parts) if parts else np.zeros((0, users, actions))


def compile_program(
    value: ArrayLike,
    admissible: ArrayLike | None,
    limits: Sequence[Limit | FrequencyCap],
    sizes: Sequence[FloatArray] | None = None,
) -> Program:
    """A checked program; `sizes` are those of the linear limits, added over chunks, or None for one chunk."""
    worth = finite_matrix("value", value)
    mask = None
    if admissible is not None:
        mask = mask_matrix("admissible", admissible, worth.shape)
        refuse_where("admissible", mask[:, :1], ~mask[:, :1], "column 0 is doing nothing, always admissible")
    linear = [limit for limit in limits if not isinstance(limit, FrequencyCap)]
    counts = [limit.sizes() for limit in linear] if sizes is None else sizes
    shape = (worth.shape[0], worth.shape[1])
    blocks = tuple(limit.block(size, shape) for limit, size in zip(linear, counts, strict=True))
    bound = np.concatenate([block.bound for block in blocks]) if blocks else np.zeros(0)
    slack = np.concatenate([np.full(len(b.names), b.slack) for b in blocks]) if blocks else np.zeros(0)
    program = Program(worth, mask, blocks, bound, slack)
    return _with_cap(program, [limit for limit in limits if isinstance(limit, FrequencyCap)])


def _with_cap(program: Program, caps: Sequence[FrequencyCap]) -> Program:
    if not caps:
        return program
    if len(caps) > 1:
        raise ValueError(f"{caps[1].name}: a problem has one frequency cap; keep the tighter one")
    person = np.asarray(caps[0].person)
    if person.shape != program.value.shape[:1]:
        raise ValueError(f"{caps[0].name}.person: has shape {person.shape}; must be one number per row")
    numbers = np.unique(person, return_inverse=True)[1].astype(np.int64)
    return replace(program, person=numbers, cap=int(caps[0].most))


def beyond_cap(person: IndexArray, gain: FloatArray, cap: int) -> BoolArray:
    """`[U]` True for rows that are not among the `cap` of largest gain of their person; gain 0 asks for none.

    Of equal gains the first row counts as the larger.
    """
    asking = np.flatnonzero(gain > 0)
    order = asking[np.lexsort((-gain[asking], person[asking]))]
    owner = person[order]
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if order.size else order
    rank = np.arange(order.size) - np.repeat(first, np.diff(np.r_[first, order.size]))
    beyond = np.zeros(person.size, dtype=np.bool_)
    beyond[order[rank >= cap]] = True
    return beyond


def _rows_of(block: Block, rows: NDArray[Any]) -> Block:
    return replace(
        block,
        group=None if block.group is None else block.group[rows],
        amount=None if block.amount is None else block.amount[rows],
    )


def _subtract(net: FloatArray, block: Block, price: FloatArray, rows: slice) -> None:
    """net −= Σ_k λ_k use_k of one block, in place."""
    weight = np.tensordot(price, block.weight, axes=1)  # [G] of amounts, [G, A] of counts
    if block.group is None:
        net -= weight[0] if block.amount is None else weight[0] * block.amount[rows]
        return
    # Group −1 reads the zero at the end.
    weight = np.concatenate([weight, np.zeros_like(weight[:1])])[block.group[rows]]
    net -= weight if block.amount is None else weight[:, None] * block.amount[rows]


def _use(block: Block, choice: IndexArray, actions: int) -> FloatArray:
    """`[K]` use of one block by a choice."""
    count = block.weight.shape[1]
    group = np.zeros(choice.size, dtype=np.int64) if block.group is None else block.group
    member = slice(None) if block.group is None else np.flatnonzero(group >= 0)
    if block.amount is None:
        cell = group[member] * actions + choice[member]
        counts = np.bincount(cell, minlength=count * actions).reshape(count, actions)
        return np.asarray((block.weight * counts).sum(axis=(1, 2)), dtype=np.float64)
    spent = block.amount[np.arange(choice.size), choice].astype(np.float64)
    if block.group is None:
        return np.asarray(block.weight[:, 0] * spent.sum(), dtype=np.float64)
    return np.asarray(block.weight @ np.bincount(group[member], spent[member], count), dtype=np.float64)


def _coefficients(block: Block, users: int, actions: int) -> FloatArray:
    zero = np.zeros_like(block.weight[:, :1])
    weight = np.concatenate([block.weight, zero], axis=1)
    group = np.zeros(users, dtype=np.int64) if block.group is None else block.group
    each = weight[:, group]
    if block.amount is None:
        return np.asarray(each, dtype=np.float64)
    return np.asarray(each[:, :, None] * block.amount, dtype=np.float64)
