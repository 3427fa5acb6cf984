"""What Ray's workers do in a join: functions of Arrow tables. Free of Feast, which takes seconds to import.

The rows and the versions of a view go into one data set with three columns: the part of their key, the
row, and the version, one of the two being null. Each part then is joined whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from qiance.features.asof import NOT_FOUND, Array, latest_known, nanoseconds

MOMENT = "event_timestamp"
PART, ROW, VERSION = "__part", "__row", "__version"
TIME = pa.timestamp("ns", "UTC")
Period = tuple[datetime | None, datetime]


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """How one view is read and joined."""

    uri: str
    keys: tuple[str, ...]  # the view's join keys
    row_keys: tuple[str, ...]  # what the rows call them
    moment: str
    created: str | None
    types: pa.Schema  # of keys, moment, created and the features asked for
    shown: tuple[tuple[str, str], ...]  # feature, its name in the result
    ttl: timedelta | None

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        """That of rows of `schema` once they are joined."""
        return pa.schema([*schema, *(self.types.field(name).with_name(shown) for name, shown in self.shown)])

    def keys_of_rows(self, rows: pa.Table) -> list[pa.ChunkedArray]:
        """The keys in `rows`, of the types that the view has."""
        pairs = zip(self.row_keys, self.keys, strict=True)
        return [rows[called].cast(self.types.field(key).type) for called, key in pairs]


def rows_side(plan: ViewPlan, schema: pa.Schema, num_parts: int, batch: pa.Table) -> pa.Table:
    """Rows with their part."""
    parts = part_of(plan.keys_of_rows(batch), len(batch), num_parts)
    return pa.table({PART: parts, ROW: _pack(batch, schema), VERSION: _nulls(len(batch), plan.types)})


def versions_side(
    plan: ViewPlan, schema: pa.Schema, num_parts: int, period: Period | None, batch: pa.Table
) -> pa.Table:
    """Versions with their part; those that no row can see are left out before they travel."""
    kept = within(batch, plan.moment, period).select(plan.types.names).cast(plan.types)
    parts = part_of([kept[key] for key in plan.keys], len(kept), num_parts)
    return pa.table({PART: parts, ROW: _nulls(len(kept), schema), VERSION: _pack(kept, plan.types)})


def _nulls(size: int, schema: pa.Schema) -> pa.Array:
    return pa.nulls(size, pa.struct(schema))


def _pack(table: pa.Table, schema: pa.Schema) -> pa.Array:
    if not table.num_rows:
        return _nulls(0, schema)
    columns = table.select(schema.names).cast(schema).combine_chunks().columns
    return pa.StructArray.from_arrays([column.chunk(0) for column in columns], fields=list(schema))


def _unpack(column: pa.ChunkedArray, schema: pa.Schema) -> pa.Table:
    there = column.drop_null().cast(pa.struct(schema))
    batches = [pa.RecordBatch.from_arrays(chunk.flatten(), schema=schema) for chunk in there.chunks]
    return pa.Table.from_batches(batches, schema=schema)


def join_part(plan: ViewPlan, schema: pa.Schema, part: pa.Table) -> pa.Table:
    """The rows of one part with the values that were known then."""
    rows, versions = _unpack(part[ROW], schema), _unpack(part[VERSION], plan.types)
    found = latest_known(
        plan.keys_of_rows(rows),
        rows[MOMENT],
        [versions[key] for key in plan.keys],
        versions[plan.moment],
        versions[plan.created] if plan.created else None,
        plan.ttl // timedelta(microseconds=1) * 1_000 if plan.ttl else None,
    )
    places = pa.array(found, mask=found == NOT_FOUND)
    for name, shown in plan.shown:
        rows = rows.append_column(plan.types.field(name).with_name(shown), versions[name].take(places))
    return rows


def within(batch: pa.Table, moment: str, period: Period | None) -> pa.Table:
    """Versions with a moment in the period, ends included; none is in no period."""
    if period is None:
        return batch.slice(0, 0)
    times, (start, end) = batch[moment].cast(TIME), period
    keep = pc.less_equal(times, pa.scalar(end, TIME))
    if start is not None:
        keep = pc.and_(keep, pc.greater_equal(times, pa.scalar(start, TIME)))
    return batch.filter(keep)


def marked(moment: str, keys: Sequence[str], num_parts: int, period: Period, batch: pa.Table) -> pa.Table:
    """Versions of the period with their part."""
    kept = within(batch, moment, period)
    return kept.append_column(PART, pa.array(part_of([kept[key] for key in keys], len(kept), num_parts)))


def newest(keys: Sequence[str], times: Sequence[str], part: pa.Table) -> pa.Table:
    """The last version of each key by moment, then time of creation (`times`), then order."""
    order = np.lexsort([nanoseconds(part[name])[0] for name in reversed(times)])
    table = part.drop_columns([PART]).take(order)
    replaced = table.select(keys).to_pandas().duplicated(keep="last")
    return table.filter(pa.array(~replaced.to_numpy()))


def part_of(keys: Sequence[pa.ChunkedArray], size: int, num_parts: int) -> Array:
    """The part of each row by its keys, the same in every process; int64 `[size]`."""
    mixed = np.zeros(size, dtype=np.uint64)
    for key in keys:
        words = pc.fill_null(key.cast(pa.string()), "").to_numpy()
        mixed = mixed * np.uint64(31) + pd.util.hash_array(words.astype(object), categorize=False)
    return (mixed % np.uint64(num_parts)).astype(np.int64)
