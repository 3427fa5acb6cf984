"""Streaming equals the transforms in memory, for random histories with late, repeated and tied events."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from history_cases import DAYS, ITEMS, START, Line, histories, lines, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.data import EVENT_SCHEMA, Mapping
from qiance.features.transforms import item_sums, market_sums
from training.preprocess.buckets import KnownItems, index_events
from training.preprocess.erased import Drop, ErasedBefore
from training.preprocess.job import preprocess
from training.preprocess.report import PreprocessReport
from training.preprocess.tables import (
    TABLES,
    after_one_another,
    instants,
    item_tables,
    known_at,
    user_tables,
)

MAPPING = Mapping.model_validate(
    {
        "kind": "events",
        "columns": {
            **{name: name for name in ("event_id", "user_id", "item_id", "type", "quantity", "basket_id")},
            **{name: {"column": name, "unit": "minor"} for name in ("value", "discount", "coupon")},
            "occurred_at": "occurred_at",
        },
    }
)
EVERY = 28


def write_events(events: pa.Table, path: Path) -> None:
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(events.column_names)
        writer.writerows([list(row.values()) for row in events.to_pylist()])


def write_items(folder: Path) -> Path:
    names = ("price", "stock")
    columns: dict[str, Any] = {"item_id": ITEMS.item_ids, "category": ITEMS.category, "brand": ITEMS.brand}
    columns |= {name: pa.array(getattr(ITEMS, name), from_pandas=True) for name in names}
    columns["unit_cost"] = pa.array(ITEMS.price * (1 - ITEMS.margin_rate), from_pandas=True)
    pq.write_table(pa.table(columns), folder / "items.parquet")
    return folder / "items.parquet"


def stream(
    files: Sequence[pa.Table], folder: Path, drop: Drop | None = None, every: int = EVERY
) -> PreprocessReport:
    """Through many small fragments and buckets, in this process."""
    (folder / "logs").mkdir()
    for number, events in enumerate(files):
        write_events(events, folder / "logs" / f"{number}.csv")
    return preprocess(
        folder / "logs",
        MAPPING,
        write_items(folder),
        folder / "out",
        every=every,
        drop=drop,
        workers=0,
        fragment_bytes=300,
        bucket_rows=6,
    )


def in_memory(events: pa.Table, every: int = EVERY) -> dict[str, pa.Table]:
    """The tables from one index over all events."""
    margin = (ITEMS.price - np.rint(ITEMS.price * (1 - ITEMS.margin_rate))) / ITEMS.price
    items = replace(ITEMS, margin_rate=margin)
    index = index_events(events, KnownItems.of(items))
    days = instants(float(index.day[0]), float(index.day[-1]), every)
    parts: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
    for day, before in after_one_another(days):
        shop = item_tables(
            known_at(items, day, days[-1]), item_sums(index, day), market_sums(index, day), day
        )
        for name, table in (user_tables(index, day, before) | shop).items():
            parts[name].append(table)
    return {name: pa.concat_tables(tables) for name, tables in parts.items()}


def same(found: pa.Table, expected: pa.Table, name: str) -> None:
    keys = [(key, "ascending") for key in (*TABLES[name][0], "event_timestamp")]
    one, two = found.sort_by(keys).to_pandas(), expected.sort_by(keys).to_pandas()
    assert one.equals(two), f"{name}\n{one.compare(two) if one.shape == two.shape else (one, two)}"


def without_repeats(events: pa.Table) -> pa.Table:
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in events.to_pylist():
        key = (row["user_id"], row["event_id"])
        kept.append(key not in seen)
        seen.add(key)
    return events.filter(pa.array(kept))


@settings(max_examples=25, deadline=None)
@given(found=histories, data=st.data())
def test_streaming_gives_what_one_index_gives(found: list[Line], data: st.DataObject) -> None:
    size = len(found)
    ids = data.draw(st.lists(st.sampled_from([f"e{n}" for n in range(30)]), min_size=size, max_size=size))
    cut = data.draw(st.integers(0, size))
    events = table_of(found, ids)
    kept = without_repeats(events)
    if "purchase" not in kept["type"].to_pylist():
        return
    files = [part for part in (events.slice(0, cut), events.slice(cut)) if part.num_rows]
    with tempfile.TemporaryDirectory() as folder:
        report = stream(files, Path(folder))
        for name, expected in in_memory(kept).items():
            same(pq.read_table(Path(folder) / "out" / "data" / f"{name}.parquet"), expected, name)
    assert (report.rows_read, report.accepted) == (size, kept.num_rows)
    assert report.quarantined == size - kept.num_rows


@settings(max_examples=15, deadline=None)
@given(past=histories, future=st.lists(lines, max_size=20), other=st.lists(lines, max_size=20))
def test_a_changed_future_changes_no_earlier_row(
    past: list[Line], future: list[Line], other: list[Line]
) -> None:
    """Everything from day 65 on is another log; the rows stamped until then stay as they were."""
    change = 65
    last = Line("u0", "i0", "purchase", 1, 100, 0, 0, 2 * DAYS + 1, "end")  # both end on the same day
    begin = Line("u1", "i1", "purchase", 1, 100, 0, 0, 0, "begin")
    past = [begin, *(replace(line, at=line.at % (2 * change)) for line in past)]
    tables = []
    for later in (future, other):
        later = [replace(line, at=2 * change + line.at % (2 * DAYS - 2 * change)) for line in later]
        with tempfile.TemporaryDirectory() as folder:
            stream([table_of([*later, *past, last])], Path(folder), every=5)
            data = Path(folder) / "out" / "data"
            tables.append({name: pq.read_table(data / f"{name}.parquet") for name in TABLES})
    now = START + timedelta(days=change)
    for name in TABLES:
        one, two = (
            table.filter(pa.array([at <= now for at in table["event_timestamp"].to_pylist()]))
            for table in (tables[0][name], tables[1][name])
        )
        assert one.num_rows or name.startswith("user")
        same(one, two, name)


@settings(max_examples=15, deadline=None)
@given(found=histories, day=st.integers(0, DAYS))
def test_erased_users_leave_no_trace(found: list[Line], day: int) -> None:
    stay = Line("u4", "i0", "purchase", 1, 100, 0, 0, 2 * DAYS, "end")
    erased = START + timedelta(days=day)
    drop = ErasedBefore({"u0": erased, "u1": datetime(2030, 1, 1, tzinfo=UTC)})
    events = table_of([*found, stay])
    gone = [line.user == "u1" or (line.user == "u0" and line.when <= erased) for line in (*found, stay)]
    with tempfile.TemporaryDirectory() as folder:
        report = stream([events], Path(folder), drop)
        for name, expected in in_memory(events.filter(pa.array([not out for out in gone]))).items():
            same(pq.read_table(Path(folder) / "out" / "data" / f"{name}.parquet"), expected, name)
    assert report.erased == sum(gone)
    assert report.rows_read == len(gone) == report.accepted + report.quarantined


def test_the_order_of_the_schema_is_that_of_the_file() -> None:
    assert table_of([Line("u0", "i0", "view", 1, 0, 0, 0, 0, "b")]).schema == EVENT_SCHEMA
