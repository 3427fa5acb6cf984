"""The feature tables: their columns, the rows of one instant, and writers that hold few rows in memory."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.features.events import DAY_US, EventIndex, ItemTable
from qiance.features.transforms import (
    ITEM_FEATURES,
    ITEM_POPULARITY_FEATURES,
    MARKET_FEATURES,
    USER_BRAND_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
    PairRows,
    item_features_of,
    item_popularity_of,
    market_features_of,
    user_brand_rows,
    user_category_rows,
    user_features,
)

MARKET_ID = "default"
# Keys and features of every table; the names are those of the feature views.
USER_TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "user_profile": (("user_id",), USER_FEATURES),
    "user_category": (("user_id", "category"), USER_CATEGORY_FEATURES),
    "user_brand": (("user_id", "brand"), USER_BRAND_FEATURES),
}
ITEM_TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "item_state": (("item_id",), ITEM_FEATURES),
    "item_popularity": (("item_id",), ITEM_POPULARITY_FEATURES),
    "market_signals": (("market_id",), MARKET_FEATURES),
}
TABLES = {**USER_TABLES, **ITEM_TABLES}
ROW_GROUP = 1 << 17
_STAMP = pa.timestamp("us", "UTC")


def table_schema(name: str) -> pa.Schema:
    """Keys as text, features as float64, `event_timestamp` and `created`."""
    keys, features = TABLES[name]
    columns = [(key, pa.string()) for key in keys] + [(feature, pa.float64()) for feature in features]
    return pa.schema([*columns, ("event_timestamp", _STAMP), ("created", _STAMP)])


def instants(first: float, last: float, every: int) -> list[float]:
    """Snapshot days that end at the midnight after the last event, oldest first; the last is always one."""
    end = float(np.floor(last)) + 1.0
    earlier = np.arange(end, float(np.floor(first)) + every, -every).tolist()
    return sorted(set(earlier) | {end})


def after_one_another(days: Sequence[float]) -> list[tuple[float, float | None]]:
    """Each day with the one before it, None for the first."""
    return list(zip(days, [None, *days[:-1]], strict=True))


def moment(day: float) -> datetime:
    """Days since the epoch as an instant."""
    return datetime.fromtimestamp(day * DAY_US / 1e6, tz=UTC)


def user_tables(events: EventIndex, as_of: float, before: float | None = None) -> dict[str, pa.Table]:
    """Rows of `USER_TABLES` at day `as_of`: users with a purchase before it, pairs with one in the window.

    before: the instant before, whose pairs get a row once more when they have ended.
    """
    profile = user_features(events, as_of)
    known = ~np.isnan(profile["recency_days"])
    ids = np.array(events.user_ids, dtype=object)
    columns = {name: values[known] for name, values in profile.items()}
    of_category, of_brand = user_category_rows(events, as_of, before), user_brand_rows(events, as_of, before)
    return {
        "user_profile": _stamped("user_profile", (ids[known],), columns, as_of),
        "user_category": _pairs("user_category", ids, events.categories, of_category, as_of),
        "user_brand": _pairs("user_brand", ids, events.brands, of_brand, as_of),
    }


def _pairs(name: str, ids: np.ndarray, others: Sequence[str], rows: PairRows, as_of: float) -> pa.Table:
    keys = (ids[rows.user], np.array(others, dtype=object)[rows.other])
    return _stamped(name, keys, rows.columns, as_of)


def item_tables(
    items: ItemTable, sums: Mapping[str, np.ndarray], market: Mapping[str, np.ndarray], as_of: float
) -> dict[str, pa.Table]:
    """Rows of `ITEM_TABLES` at day `as_of` from the sums over all users."""
    state, popularity = item_features_of(sums, items), item_popularity_of(sums)
    return {
        "item_state": _stamped("item_state", (items.item_ids,), state, as_of),
        "item_popularity": _stamped("item_popularity", (items.item_ids,), popularity, as_of),
        "market_signals": _stamped("market_signals", ((MARKET_ID,),), market_features_of(market), as_of),
    }


def known_at(items: ItemTable, day: float, last: float) -> ItemTable:
    """The items as one may know them at `day`: the stock on hand is known at the last instant alone."""
    return items if day == last else replace(items, stock=np.full(len(items), np.nan))


def _stamped(name: str, keys: Sequence[Any], columns: Mapping[str, np.ndarray], as_of: float) -> pa.Table:
    key_names, features = TABLES[name]
    data = {key: pa.array(values, pa.string()) for key, values in zip(key_names, keys, strict=True)}
    data |= {feature: pa.array(columns[feature], pa.float64()) for feature in features}
    stamp = pa.repeat(pa.scalar(moment(as_of), _STAMP), len(next(iter(data.values()))))
    return pa.table({**data, "event_timestamp": stamp, "created": stamp})


class TableWriter:
    """One Parquet file written row group by row group, and renamed into place when all is there."""

    def __init__(self, path: Path, schema: pa.Schema, row_group: int = ROW_GROUP) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._schema, self._row_group = path, schema, row_group
        self._part = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
        # Few features repeat often enough for a dictionary to pay; keys and instants do.
        repeated = [column.name for column in schema if not pa.types.is_floating(column.type)]
        self._file = pq.ParquetWriter(self._part, schema, compression="zstd", use_dictionary=repeated)
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> TableWriter:
        return self

    def write(self, table: pa.Table) -> None:
        """Take rows; they are kept until a row group is full."""
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= self._row_group:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            rows = pa.concat_tables(self._waiting).cast(self._schema)
            self._file.write_table(rows, row_group_size=max(self._rows, 1))
        self._waiting, self._rows = [], 0

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:
                self._flush()
            self._file.close()
            if failure is None:
                self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)
