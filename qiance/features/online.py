"""Feature values at decision time: one read per user, columns out, and nothing older than its TTL as present.

A view's definition is resolved once into a `ViewSpec`. A read fetches the partitions of some entities, and
every view of them is decoded from what was fetched, a column at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.features.packed import RowLayout, Value
from qiance.features.rows import Partition, Rows, field_of, partition_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statuses = NDArray[np.int8]


class Status(IntEnum):
    """What became of a value that was asked for."""

    MISSING = 0
    PRESENT = 1
    STALE = 2


@dataclass(frozen=True)
class ViewSpec:
    """A feature view as the reader needs it.

    keys: names of its join keys, the partition's first; ttl_us: microseconds after which a value is no
    longer present, None for never.
    """

    layout: RowLayout
    keys: tuple[str, ...]
    ttl_us: int | None

    @property
    def name(self) -> str:
        return self.layout.view

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Names of the fields that become float64 columns."""
        return tuple(name for name, _ in self.layout.fixed)

    def status(self, event_us: Ints, now_us: Ints) -> Statuses:
        """PRESENT or STALE of rows written at `event_us`, seen at `now_us`, `[n]` each.

        A row that lies in the future of `now_us` is present: clocks of writer and reader differ a little,
        and a point-in-time reader would not look here.
        """
        if self.ttl_us is None:
            return np.full(len(event_us), Status.PRESENT, dtype=np.int8)
        old = now_us - event_us > self.ttl_us
        return np.where(old, Status.STALE, Status.PRESENT).astype(np.int8)


@dataclass(frozen=True)
class Block:
    """One view for n entities.

    names, numbers: the numeric fields and their `[n, F]` values, NaN unless the row is present; lists:
    `[n]` per other field, None unless present; status: `[n]` of `Status`; event_us: `[n]` when the value was
    true, 0 where missing.
    """

    names: tuple[str, ...]
    numbers: Floats
    lists: Mapping[str, list[Value]]
    status: Statuses
    event_us: Ints

    @cached_property
    def values(self) -> Mapping[str, Floats]:
        """`[n]` per numeric field."""
        return dict(zip(self.names, self.numbers.T, strict=True))


@dataclass(frozen=True)
class Matrix:
    """One view with two keys, for n entities × m second keys: `[n, m]` each."""

    values: Mapping[str, Floats]
    status: Statuses


@dataclass(frozen=True)
class Fetched:
    """What the store has of some entities; decoding needs no further read.

    now_us: `[n]` the instant at which each entity is looked at.
    """

    partitions: Sequence[Partition]
    views: Mapping[str, ViewSpec]
    now_us: Ints

    def block(self, view: str) -> Block:
        """A view whose only key is the entity's."""
        spec = self.views[view]
        rows = [partition.get(view) for partition in self.partitions]
        return _decode(spec, rows, self.now_us)

    def matrix(self, view: str, others: Sequence[str]) -> Matrix:
        """A view with one further key, for each entity and each of `others`."""
        spec = self.views[view]
        fields = [field_of(view, [(spec.keys[1], other)]) for other in others]
        rows = [partition.get(field) for partition in self.partitions for field in fields]
        block = _decode(spec, rows, np.repeat(self.now_us, len(fields)))
        shape = (len(self.partitions), len(fields))
        values = {name: column.reshape(shape) for name, column in block.values.items()}
        return Matrix(values, block.status.reshape(shape))


class OnlineReader:
    """Reads entities from a store of packed rows."""

    def __init__(self, rows: Rows, views: Sequence[ViewSpec]) -> None:
        self._rows = rows
        self.views = {view.name: view for view in views}

    def fetch(self, key: str, ids: Sequence[str], now_us: int | Ints) -> Fetched:
        """Everything known of the entities `ids`, whose join key is `key`, looked at at `now_us`.

        Raises RowsUnavailableError when the store does not answer.
        """
        partitions = self._rows.get([partition_of(key, name) for name in ids])
        return Fetched(partitions, self.views, np.broadcast_to(np.asarray(now_us, np.int64), (len(ids),)))

    def erase(self, key: str, name: str) -> int:
        """Remove all rows of one entity; how many there were."""
        return self._rows.delete(partition_of(key, name))


def _decode(spec: ViewSpec, rows: Sequence[bytes | None], now_us: Ints) -> Block:
    layout, size = spec.layout, len(rows)
    # A row of another layout was written before the view changed: it is missing until written again.
    found = [n for n, row in enumerate(rows) if row is not None and row[:4] == layout.layout_id]
    status, event_us = np.zeros(size, dtype=np.int8), np.zeros(size, dtype=np.int64)
    numbers = np.full((size, len(spec.numbers)), np.nan)
    lists: dict[str, list[Value]] = {name: [None] * size for name, _ in layout.variable}
    if found:
        chosen = [row for row in (rows[n] for n in found) if row is not None]
        records = layout.records(chosen)
        event_us[found] = records["event"]
        status[found] = spec.status(event_us[found], now_us[found])
        present = status[found] == Status.PRESENT
        numbers[found] = np.where(present[:, None], layout.numbers(records), np.nan)
        for name in lists:
            _fill(lists[name], found, layout.lists(chosen, name), present)
    return Block(spec.numbers, numbers, lists, status, event_us)


def _fill(target: list[Value], places: Sequence[int], values: Sequence[Value], present: Any) -> None:
    for place, value, is_present in zip(places, values, present, strict=True):
        target[place] = value if is_present else None
