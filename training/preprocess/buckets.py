"""One bucket of users: its events from every fragment, without repeats, to its part of the feature tables."""

from __future__ import annotations

import shutil
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qiance.data.faults import FAULT_SCHEMA, Reason, fault_rows
from qiance.features.events import EventIndex, ItemCodes, ItemTable
from qiance.features.transforms import ITEM_SUMS, item_sums, market_sums
from training.preprocess.check import SECTION_SCHEMA
from training.preprocess.tables import (
    USER_TABLES,
    TableWriter,
    after_one_another,
    table_schema,
    user_tables,
)
from training.preprocess.work import read_marker, write_marker

REPEATS_SCHEMA = FAULT_SCHEMA.append(pa.field("file", pa.int32()))
SUMS_SCHEMA = pa.schema([("item", pa.int64()), *((name, pa.float64()) for name in ITEM_SUMS)])
SUMS_FILE = "item_sums.arrow"
REPEATS_FILE = "repeats.parquet"


@dataclass(frozen=True)
class BucketJob:
    """What the features of a bucket depend on.

    checked: folder of the checked fragments; fragments: (name, number of its file) in file order; files:
    their names; key: roles that identify an event; items: Parquet of `save_items`; days: the instants;
    folder: where the parts go.
    """

    checked: Path
    fragments: tuple[tuple[str, int], ...]
    files: tuple[str, ...]
    key: tuple[str, ...]
    items: Path
    days: tuple[float, ...]
    num_buckets: int
    folder: Path

    def __call__(self, bucket: int) -> dict[str, Any]:
        """Make the part unless that has been done; what came of it, see `_write`."""
        marker = self.folder / f"{bucket:06d}.json"
        if (before := read_marker(marker)) is not None:
            return before
        place = self.folder / f"{bucket:06d}"
        part = self.folder / f".{bucket:06d}.{uuid.uuid4().hex[:8]}"
        part.mkdir(parents=True)
        try:
            found = self._write(bucket, part)
            shutil.rmtree(place, ignore_errors=True)  # one that was not vouched for
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return write_marker(marker, found)

    def _write(self, bucket: int, part: Path) -> dict[str, Any]:
        """Tables and sums of the bucket.

        events: without repeats; repeats: per file; first, last: days of its purchases, None without one;
        market: `MARKET_SUMS` per instant.
        """
        events, file = self._load(bucket)
        events, repeats = drop_repeats(events, file, "+".join(self.key), self.files)
        pq.write_table(repeats, part / REPEATS_FILE, compression="zstd")
        index = index_events(events, load_items(self.items))
        market = write_part(index, self.days, part)
        counts = np.bincount(repeats["file"].to_numpy(), minlength=len(self.files))
        return {
            "events": events.num_rows,
            "repeats": counts.tolist(),
            "first": float(index.day[0]) if len(index) else None,
            "last": float(index.day[-1]) if len(index) else None,
            "market": market,
        }

    def _load(self, bucket: int) -> tuple[pa.Table, np.ndarray]:
        """Rows of `SECTION_SCHEMA` in file order, and the file `[n]` of each."""
        batches, file = [], []
        for name, number in self.fragments:
            with pa.memory_map(str(self.checked / f"{name}.arrow")) as source:
                reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False))
                for place in range(bucket, reader.num_record_batches, self.num_buckets):
                    batch = reader.get_batch(place)
                    batches.append(batch)
                    file.append(np.full(batch.num_rows, number, dtype=np.int32))
        table = pa.Table.from_batches(batches, SECTION_SCHEMA).combine_chunks()
        return table, np.concatenate([np.zeros(0, dtype=np.int32), *file])


def drop_repeats(
    events: pa.Table, file: np.ndarray, field: str, files: tuple[str, ...]
) -> tuple[pa.Table, pa.Table]:
    """Rows without those whose user and event id came before, in file order, and these as faults."""
    codes = [
        events[name].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        for name in ("user_id", "event_id")
    ]
    keys = codes[0].astype(np.int64) * max(events.num_rows, 1) + codes[1]
    repeated = pd.Series(keys).duplicated().to_numpy()
    if not repeated.any():
        return events, REPEATS_SCHEMA.empty_table()
    row = events["row"].to_numpy()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    origin = first[inverse][repeated]
    details = [
        f"first seen in row {row[at]}" + ("" if file[at] == file[here] else f" of {files[file[at]]}")
        for at, here in zip(origin.tolist(), np.flatnonzero(repeated).tolist(), strict=True)
    ]
    values = events["event_id"].filter(pa.array(repeated)).combine_chunks()
    faults = fault_rows(row[repeated], field, values, Reason.DUPLICATE_KEY, details)
    faults = faults.append_column("file", pa.array(file[repeated], pa.int32()))
    return events.filter(pa.array(~repeated)), faults


@dataclass(frozen=True)
class KnownItems:
    """The shop's items with their codes, as every bucket uses them."""

    items: ItemTable
    codes: ItemCodes
    categories: tuple[str, ...]
    brands: tuple[str, ...]

    @classmethod
    def of(cls, items: ItemTable) -> KnownItems:
        """Categories and brands in the order of the alphabet."""
        categories = tuple(sorted(set(items.category) - {""}))
        brands = tuple(sorted(set(items.brand) - {""}))
        return cls(items, ItemCodes.of(items, categories, brands), categories, brands)


def save_items(items: ItemTable, path: Path) -> None:
    """Write what `load_items` reads."""
    text = {"item_id": items.item_ids, "category": items.category, "brand": items.brand}
    columns = {name: pa.array(values, pa.string()) for name, values in text.items()}
    columns |= {name: pa.array(getattr(items, name)) for name in ("price", "margin_rate", "stock")}
    with TableWriter(path, pa.table(columns).schema) as out:
        out.write(pa.table(columns))


@lru_cache(maxsize=1)
def load_items(path: Path) -> KnownItems:
    """Items of `save_items`, kept for the next bucket of this process."""
    table = pq.read_table(path)
    text = [tuple(table[name].to_pylist()) for name in ("item_id", "category", "brand")]
    return KnownItems.of(ItemTable(*text, *(table[n].to_numpy() for n in ("price", "margin_rate", "stock"))))


def index_events(events: pa.Table, known: KnownItems) -> EventIndex:
    """The purchases of an events table, for the users that have any, by id."""
    buyers = pc.unique(events["user_id"].filter(pc.equal(events["type"], "purchase")))
    users = sorted(buyers.to_pylist())
    return EventIndex.of(events, users, known.codes, known.categories, known.brands, len(known.items))


def write_part(events: EventIndex, days: tuple[float, ...], part: Path) -> list[list[float]]:
    """User tables and item sums of one set of users under `part`; `MARKET_SUMS` of each instant."""
    market = []
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(TableWriter(part / f"{name}.parquet", table_schema(name)))
            for name in USER_TABLES
        }
        sums_out = stack.enter_context(pa.ipc.new_file(part / SUMS_FILE, SUMS_SCHEMA))
        for day, before in after_one_another(days):
            for name, table in user_tables(events, day, before).items():
                writers[name].write(table)
            sums_out.write_batch(_sold(item_sums(events, day)))
            market.append([float(values[0]) for values in market_sums(events, day).values()])
    return market


def _sold(sums: dict[str, np.ndarray]) -> pa.RecordBatch:
    """The sums of the items that were sold in the longest window: of the others all are 0."""
    item = np.flatnonzero(sums["units_90d"])
    columns = [pa.array(item, pa.int64()), *(pa.array(sums[name][item]) for name in ITEM_SUMS)]
    return pa.RecordBatch.from_arrays(columns, schema=SUMS_SCHEMA)
