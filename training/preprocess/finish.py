"""The last step: parts of buckets joined into the feature tables, quarantine parts into one file each."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from qiance.data.faults import FAULT_SCHEMA
from qiance.features.transforms import ITEM_SUMS, MARKET_SUMS
from training.preprocess.buckets import REPEATS_FILE, SUMS_FILE, load_items
from training.preprocess.tables import (
    ITEM_TABLES,
    ROW_GROUP,
    USER_TABLES,
    TableWriter,
    item_tables,
    known_at,
    table_schema,
)

ITEMS = "items"


@dataclass(frozen=True)
class FinishJob:
    """Called with the name of a user table, or with `ITEMS` for the three tables of items and market.

    market: `[buckets][instants]` of `MARKET_SUMS`; tables: folder of the feature tables.
    """

    parts: Path
    num_buckets: int
    days: tuple[float, ...]
    items: Path
    market: tuple[tuple[tuple[float, ...], ...], ...]
    tables: Path

    def __call__(self, name: str) -> dict[str, int]:
        """Write the tables; rows of each."""
        return self._items() if name == ITEMS else {name: self._users(name)}

    def _users(self, name: str) -> int:
        rows = 0
        with TableWriter(self.tables / f"{name}.parquet", table_schema(name)) as out:
            for bucket in range(self.num_buckets):
                with pq.ParquetFile(self.parts / f"{bucket:06d}" / f"{name}.parquet") as part:
                    for batch in part.iter_batches(ROW_GROUP, use_threads=False):
                        out.write(pa.Table.from_batches([batch]))
                        rows += batch.num_rows
        return rows

    def _items(self) -> dict[str, int]:
        known = load_items(self.items)
        rows = dict.fromkeys(ITEM_TABLES, 0)
        with ExitStack() as stack:
            out = {
                name: stack.enter_context(TableWriter(self.tables / f"{name}.parquet", table_schema(name)))
                for name in ITEM_TABLES
            }
            for number, day in enumerate(self.days):
                sums = self._sums(number, len(known.items))
                market = {
                    name: np.array([sum(bucket[number][place] for bucket in self.market)])
                    for place, name in enumerate(MARKET_SUMS)
                }
                items = known_at(known.items, day, self.days[-1])
                for name, table in item_tables(items, sums, market, day).items():
                    out[name].write(table)
                    rows[name] += table.num_rows
        return rows

    def _sums(self, instant: int, num_items: int) -> dict[str, np.ndarray]:
        """`ITEM_SUMS` at one instant over all buckets."""
        total = {name: np.zeros(num_items) for name in ITEM_SUMS}
        for bucket in range(self.num_buckets):
            with pa.memory_map(str(self.parts / f"{bucket:06d}" / SUMS_FILE)) as source:
                sums = pa.ipc.open_file(source).get_batch(instant)
                item = sums["item"].to_numpy()
                for name in ITEM_SUMS:
                    total[name][item] += sums[name].to_numpy()
        return total


def finish_order() -> list[str]:
    """What `FinishJob` is called with."""
    return [*USER_TABLES, ITEMS]


def write_faults(
    path: Path, checked: Path, fragments: list[str], parts: Path, num_buckets: int, file: int
) -> bool:
    """Quarantine of one file: bad rows in order, then repeats bucket by bucket; False if there are none."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = False
    try:
        with pacsv.CSVWriter(part, FAULT_SCHEMA) as out:
            for faults in _faults(checked, fragments, parts, num_buckets, file):
                out.write_table(faults)
                found = True
        if found:
            part.replace(path)
        else:
            path.unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)
    return found


def _faults(
    checked: Path, fragments: list[str], parts: Path, num_buckets: int, file: int
) -> Iterator[pa.Table]:
    for name in fragments:
        path = checked / f"{name}.faults.parquet"
        if path.is_file():
            yield pq.read_table(path)
    for bucket in range(num_buckets):
        repeats = pq.read_table(parts / f"{bucket:06d}" / REPEATS_FILE)
        own = repeats.filter(pc.equal(repeats["file"], file))
        if own.num_rows:
            yield own.select(FAULT_SCHEMA.names).cast(FAULT_SCHEMA)
