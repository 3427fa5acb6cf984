"""Feature values at decision time: one read per user, columns out, and nothing older than its TTL as present.

A view's definition is resolved once into a `ViewSpec`. A read fetches the partitions of some entities, and
every view of them is decoded from what was fetched, a column at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from qiance.features.packed import RowLayout, Value
from qiance.features.partition import Partition, cut, mark_of
from qiance.features.rows import SEPARATOR, Rows, field_of, partition_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statuses = NDArray[np.int8]


class Status(IntEnum):
    """What became of a value that was asked for."""

    MISSING = 0
    PRESENT = 1
    STALE = 2


# Looked up once: a member of an enumeration costs a microsecond.
_PRESENT, _STALE = np.int8(Status.PRESENT), np.int8(Status.STALE)


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

    def stale(self, event_us: Ints, now_us: Ints) -> NDArray[np.bool_] | None:
        """Which rows written at `event_us` are no longer present at `now_us`, `[n]` each; None if none is so.

        A row that lies in the future of `now_us` is present: clocks of writer and reader differ a little,
        and a point-in-time reader would not look here.
        """
        if self.ttl_us is None:
            return None
        old = event_us < now_us - self.ttl_us
        return old if np.count_nonzero(old) else None

    def status(self, event_us: Ints, now_us: Ints) -> Statuses:
        """PRESENT or STALE of rows, as `stale` says: `[n]`."""
        status = np.full(len(event_us), _PRESENT)
        if (old := self.stale(event_us, now_us)) is not None:
            status[old] = _STALE
        return status


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

    partitions: Sequence[bytes]
    views: Mapping[str, ViewSpec]
    now_us: Ints

    def block(self, view: str) -> Block:
        """A view whose only key is the entity's."""
        spec = self.views[view]
        return _decode(spec, cut(self.partitions, repeat(mark_of(view))), self.now_us)

    def matrix(self, view: str, others: Sequence[str]) -> Matrix:
        """A view with one further key, for each entity and each of `others`."""
        spec = self.views[view]
        marks = _marks(view, spec.keys[1], tuple(others))
        rows = [row for packed in self.partitions for row in cut([packed] * len(marks), marks)]
        block = _decode(spec, rows, np.repeat(self.now_us, len(marks)))
        shape = (len(self.partitions), len(marks))
        values = {name: column.reshape(shape) for name, column in block.values.items()}
        return Matrix(values, block.status.reshape(shape))

    def each(self, view: str, others: Sequence[str]) -> Block:
        """A view with one further key, for each entity its own of `others` `[n]`."""
        spec = self.views[view]
        start, end = mark_of(f"{view}{SEPARATOR}{spec.keys[1]}=")[:-1], mark_of("")[1:]
        marks = [start + other.encode() + end for other in others]
        return _decode(spec, cut(self.partitions, marks), self.now_us)

    def pairs(self, view: str) -> list[tuple[tuple[str, ...], Block]]:
        """All rows that the first entity has in a view with further keys, by those keys in order."""
        start = view + SEPARATOR
        rows = sorted((f, row) for f, row in Partition(self.partitions[0]).items() if f.startswith(start))
        return [
            (
                tuple(part.partition("=")[2] for part in field.split(SEPARATOR)[1:]),
                _decode(self.views[view], [row], self.now_us[:1]),
            )
            for field, row in rows
        ]


class OnlineReader:
    """Reads entities from a store of packed rows."""

    def __init__(self, rows: Rows, views: Sequence[ViewSpec]) -> None:
        self._rows = rows
        self.views = {view.name: view for view in views}

    def fetch(self, key: str, ids: Sequence[str], now_us: int | Ints) -> Fetched:
        """Everything known of the entities `ids`, whose join key is `key`, looked at at `now_us`.

        Raises RowsUnavailableError when the store does not answer.
        """
        start = partition_of(key, "")
        partitions = self._rows.get([start + name for name in ids])
        if isinstance(now_us, int):
            now_us = np.full(len(ids), now_us, np.int64)
        return Fetched(partitions, self.views, now_us)

    def erase(self, key: str, name: str) -> int:
        """Remove all rows of one entity; how many there were."""
        return self._rows.delete(partition_of(key, name))


@lru_cache(maxsize=64)
def _marks(view: str, key: str, others: tuple[str, ...]) -> list[bytes]:
    """Marks of the rows of a view with one further key; a reader asks for the same ones again and again."""
    return [mark_of(field_of(view, [(key, other)])) for other in others]


def _decode(spec: ViewSpec, rows: Sequence[bytes | None], now_us: Ints) -> Block:
    """A block of n rows, some of which may be missing."""
    # A row of another layout was written before the view changed: it is missing until written again.
    layout_id = spec.layout.layout_id
    chosen = [row for row in rows if row is not None and row[:4] == layout_id]
    if len(chosen) == len(rows):
        return _complete(spec, chosen, now_us)
    places = [n for n, row in enumerate(rows) if row is not None and row[:4] == layout_id]
    found = _complete(spec, chosen, now_us[places])
    size = len(rows)
    numbers = np.full((size, len(spec.numbers)), np.nan)
    status, event_us = np.zeros(size, dtype=np.int8), np.zeros(size, dtype=np.int64)
    numbers[places], status[places], event_us[places] = found.numbers, found.status, found.event_us
    lists: dict[str, list[Value]] = {name: [None] * size for name in found.lists}
    for name, values in found.lists.items():
        for place, value in zip(places, values, strict=True):
            lists[name][place] = value
    return Block(spec.numbers, numbers, lists, status, event_us)


def _complete(spec: ViewSpec, rows: Sequence[bytes], now_us: Ints) -> Block:
    """A block of rows that are all there and of the view's layout."""
    layout = spec.layout
    records = layout.records(rows)
    event_us = records["event"].astype(np.int64)
    numbers = layout.numbers(records)
    lists = {name: layout.lists(rows, name) for name, _ in layout.variable}
    status = np.full(len(rows), _PRESENT)
    if (stale := spec.stale(event_us, now_us)) is not None:
        status[stale], numbers[stale] = _STALE, np.nan
        for values in lists.values():
            for place in np.flatnonzero(stale).tolist():
                values[place] = None
    return Block(spec.numbers, numbers, lists, status, event_us)
