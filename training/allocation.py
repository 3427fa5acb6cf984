"""Allocation of more rows than fit into memory: the same search as in memory, over chunks of a Ray dataset.

The search for the prices needs sums, and the rows whose choice may change (`qiance.allocate.memory.Source`).
Both are had in one pass over the dataset for each price tried, some five to ten in all, and one more writes
the choices. Nothing but sums and some thousand rows comes to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.allocate.allocation import LimitUse, limit_uses
from qiance.allocate.dual import Found, find_prices
from qiance.allocate.integral import settle
from qiance.allocate.limits import FrequencyCap, Limit
from qiance.allocate.memory import (
    MAX_EDGE_ROWS,
    Edge,
    Look,
    Tell,
    look_at,
    looked,
    turns,
    usable,
    without_value,
)
from qiance.allocate.program import Program, compile_program

Batch = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a batch holds. value: `[n, A]`; limits: budgets and others, with the batch's arrays and the bounds
    of the whole problem; admissible: `[n, A]` or None."""

    value: NDArray[Any]
    limits: Sequence[Limit]
    admissible: NDArray[np.bool_] | None = None


ToRows = Callable[[Batch], Rows]


@dataclass(frozen=True, slots=True, eq=False)
class ChunkedAllocation:
    """choices: dataset of the key and `choice`, computed when it is read. choose: the choices `[n]` of any
    batch of the dataset, on any worker. value, bound, gap and limits as in `qiance.allocate.Allocation`.
    looks: passes over the dataset that the search took."""

    choices: Any
    choose: Callable[[Batch], Ints]
    value: float
    bound: float
    gap: float
    limits: tuple[LimitUse, ...]
    looks: int


def allocate_dataset(
    dataset: Any, to_rows: ToRows, key: str, batch_size: int | None = 65_536, progress: Tell | None = None
) -> ChunkedAllocation:
    """Allocate the rows of a Ray dataset.

    to_rows: makes `Rows` of a batch (numpy columns); runs on workers. key: column of whole numbers ≥ 0,
    different in every row. batch_size: rows that a worker holds at a time; None takes blocks as they are
    read, which then need not go through Ray's object store. There is no frequency cap over rows here: mask
    who is at it, or give a person one row. progress: told of each batch of each pass. ValueError and
    InfeasibleError as `qiance.allocate.allocate`.
    """
    source = Chunks(dataset, to_rows, key, batch_size, progress)
    first = source.look(np.zeros(source.bound.size), 0.0)
    if (first.use <= source.bound + source.slack).all():
        none = _Assign(source, np.zeros((1, source.bound.size)), np.ones(1), _NOBODY, _NOBODY)
        limits = limit_uses(source.program, first.use, np.zeros(source.bound.size))
        choose = none.function()
        return ChunkedAllocation(none.choices(), choose, first.value, first.value, 0.0, limits, source.looks)
    found = find_prices(source, first)
    return _whole(source, found)


_NOBODY: Ints = np.empty(0, dtype=np.int64)


class Chunks:
    """A dataset as a `Source`."""

    def __init__(
        self, dataset: Any, to_rows: ToRows, key: str, batch_size: int | None, progress: Tell | None = None
    ) -> None:
        self.dataset, self.to_rows, self.key, self.batch_size = dataset, to_rows, key, batch_size
        self.looks, self._tell, self._passes, self._parts = 0, progress, 0, 0
        counted = self.map(lambda batch: _count(to_rows(batch), len(batch[key])))
        if not counted:
            raise ValueError("dataset: is empty; there is nobody to allocate to")
        self.num_rows = sum(rows for rows, _ in counted)
        self.sizes = [_padded_sum(part) for part in zip(*(sizes for _, sizes in counted), strict=True)]
        self.program = self.compile(_columns(dataset.take_batch(1, batch_format="numpy")))
        self.bound, self.slack, self.names = self.program.bound, self.program.slack, self.program.names
        self.num_actions = self.program.value.shape[1]

    def compile(self, batch: Batch) -> Program:
        """The program of a batch, with the bounds of the whole."""
        return _compile(self.to_rows, self.sizes, batch)

    def map(self, function: Callable[[Batch], Any]) -> list[Any]:
        """`function` of every batch, in no order; results of any kind."""

        def wrapped(batch: Batch) -> dict[str, Any]:
            part = np.empty(1, dtype=object)
            part[0] = function(batch)
            return {"part": part}

        parts = self.dataset.map_batches(wrapped, batch_format="numpy", batch_size=self.batch_size)
        found = []
        for row in parts.iter_rows():
            found.append(row["part"])
            if self._tell is not None:
                # The first pass tells how many batches there are.
                within = min(len(found) / self._parts, 0.99) if self._parts else 0.0
                self._tell(looked(self._passes, within), f"pass {self._passes + 1} over all rows")
        self._passes, self._parts = self._passes + 1, len(found)
        return found

    def sample(self, rows: int) -> Program:
        """About so many rows, the same at every call."""
        share, key = min(rows / self.num_rows, 1.0), self.key
        parts = self.map(lambda batch: _take(batch, _place(batch[key]) < share))
        batch = _joined(parts, key)
        program = self.compile(batch)
        everybody = np.arange(len(batch[key]))
        return program.rows(everybody, self.bound * (everybody.size / self.num_rows))

    def everything(self) -> Edge:
        """See `Source.everything`."""
        batch = _joined(self.map(lambda batch: batch), self.key)
        program = self.compile(batch)
        return Edge(batch[self.key].astype(np.int64), program, usable(program))

    def look(self, price: Floats, reach: float, worthless: bool = False) -> Look:
        """One pass; see `Source.look`."""
        to_rows, sizes = self.to_rows, self.sizes

        def one(batch: Batch) -> tuple[float, Floats, Batch, NDArray[np.bool_]]:
            program = _compile(to_rows, sizes, batch)
            program = without_value(program) if worthless else program
            choice, edge = look_at(program, price, reach)
            sums = program.sums(choice)
            return sums.value, sums.use, _take(batch, edge.rows), edge.kept

        parts = self.map(one)
        self.looks += 1
        value, use = sum(part[0] for part in parts), np.sum([part[1] for part in parts], axis=0)
        return Look(float(value), use, self._edge([part[2] for part in parts], [part[3] for part in parts]))

    def _edge(self, batches: list[Batch], kept: list[NDArray[np.bool_]]) -> Edge:
        """In the order of the keys: batches come in any."""
        batch = {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}
        order = np.argsort(batch[self.key], kind="stable")
        if order.size > MAX_EDGE_ROWS:
            chosen = np.random.default_rng(0).choice(order.size, MAX_EDGE_ROWS, replace=False)
            order = order[np.sort(chosen)]
        batch = _take(batch, order)
        return Edge(batch[self.key].astype(np.int64), self.compile(batch), np.concatenate(kept)[order])


class _Assign:
    """The choices of all rows: a mixture of prices, and the settled choices of the core's keys."""

    def __init__(self, source: Chunks, points: Floats, weight: Floats, keys: Ints, choice: Ints) -> None:
        self._source, self._points, self._weight = source, points, weight
        order = np.argsort(keys)
        self._keys, self._choice = keys[order], choice[order]

    def function(self) -> Callable[[Batch], Ints]:
        """Of a batch, its choices; it can be sent to workers."""
        choose, to_rows, sizes = self._function(), self._source.to_rows, self._source.sizes
        return lambda batch: choose(batch, _compile(to_rows, sizes, batch))

    def _function(self) -> Callable[[Batch, Program], Ints]:
        points, weight, keys, settled = self._points, self._weight, self._keys, self._choice
        key = self._source.key

        def choose(batch: Batch, program: Program) -> Ints:
            choice = np.zeros(len(batch[key]), dtype=np.int64)
            if weight.size:
                turn = turns(_place(batch[key]), weight)
                for number in np.unique(turn):
                    choice = np.where(turn == number, program.best(points[number]), choice)
            place = np.minimum(np.searchsorted(keys, batch[key]), max(keys.size - 1, 0))
            if keys.size:
                mine = keys[place] == batch[key]
                choice[mine] = settled[place[mine]]
            return choice

        return choose

    def sums(self) -> tuple[float, Floats]:
        """Value and use of everybody."""
        choose, to_rows, sizes = self._function(), self._source.to_rows, self._source.sizes

        def one(batch: Batch) -> tuple[float, Floats]:
            program = _compile(to_rows, sizes, batch)
            sums = program.sums(choose(batch, program))
            return sums.value, sums.use

        parts = self._source.map(one)
        return float(sum(part[0] for part in parts)), np.sum([part[1] for part in parts], axis=0)

    def choices(self) -> Any:
        """Dataset of the key and `choice`."""
        choose, source, key = self.function(), self._source, self._source.key

        def one(batch: Batch) -> Batch:
            return {key: batch[key], "choice": choose(batch)}

        return source.dataset.map_batches(one, batch_format="numpy", batch_size=source.batch_size)


def _whole(source: Chunks, found: Found) -> ChunkedAllocation:
    core, keys = found.edge.program, found.edge.rows
    nothing = np.zeros(keys.size, dtype=np.int64)
    weight = found.solved.weight
    value, use = _Assign(source, found.points, weight, keys, nothing).sums()
    idle = core.sums(nothing)

    def totals(choice: Ints) -> tuple[float, Floats]:
        own = core.sums(choice)
        return value - idle.value + own.value, use - idle.use + own.use

    settled = settle(found, source.num_rows, totals)
    plan = _Assign(source, found.points, weight, keys, settled.choice)
    return ChunkedAllocation(
        choices=plan.choices(),
        choose=plan.function(),
        value=settled.value,
        bound=settled.bound,
        gap=max(settled.bound - settled.value, 0.0),
        limits=limit_uses(source.program, settled.use, found.price),
        looks=source.looks,
    )


def _compile(to_rows: ToRows, sizes: Sequence[Floats], batch: Batch) -> Program:
    rows = to_rows(_columns(batch))
    return compile_program(rows.value, rows.admissible, rows.limits, sizes)


def _count(rows: Rows, count: int) -> tuple[int, list[Floats]]:
    caps = [limit.name for limit in rows.limits if isinstance(limit, FrequencyCap)]
    if caps:
        raise ValueError(f"{caps[0]}: rows of a person may be in two batches; mask who is at the cap instead")
    return count, [limit.sizes() for limit in rows.limits]


def _padded_sum(parts: Sequence[Floats]) -> Floats:
    """A batch without members of the last group counts fewer groups."""
    total = np.zeros(max(part.size for part in parts))
    for part in parts:
        total[: part.size] += part
    return total


def _take(batch: Batch, rows: NDArray[Any]) -> Batch:
    return {name: column[rows] for name, column in batch.items()}


def _columns(batch: Batch) -> Batch:
    """Columns of arrays as one array each: `[n, A]`, not n objects."""
    return {
        name: np.stack(list(column)) if column.dtype == object and len(column) else column
        for name, column in batch.items()
    }


def _joined(parts: Sequence[Batch], key: str) -> Batch:
    batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _take(batch, np.argsort(batch[key], kind="stable"))


def _place(key: NDArray[Any]) -> Floats:
    """`[n]` in [0, 1), even and unrelated to the order of the keys: the finaliser of SplitMix64."""
    x = key.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((x ^ (x >> np.uint64(31))) >> np.uint64(11), dtype=np.float64) / 2.0**53
