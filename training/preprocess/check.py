"""Check one fragment: good rows into sections by hash of the user, bad rows into its quarantine part."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qiance.data.errors import DataError
from qiance.data.faults import FAULT_SCHEMA, count_faults
from qiance.data.files import FileFormat
from qiance.data.lines import MIN_UTF8, lines_of, not_utf8
from qiance.data.mapped import EVENT_SCHEMA, events_of
from qiance.data.mapping import Mapping
from qiance.data.schema import RawTable, check_table
from qiance.data.tabular import csv_rows, damaged, json_rows, require_columns, unreadable
from qiance.features.events import DAY_US
from training.preprocess.erased import Drop
from training.preprocess.plan import FilePlan, Fragment
from training.preprocess.work import read_marker, write_marker

PARQUET_ROWS = 1 << 16
SECTION_SCHEMA = EVENT_SCHEMA.append(pa.field("row", pa.int64()))


@dataclass(frozen=True)
class CheckJob:
    """What checking a fragment depends on; folder: where sections, quarantine parts and markers go.

    Called with the places of a file in `plans` and of a fragment in it.
    """

    plans: tuple[FilePlan, ...]
    mapping: Mapping
    folder: Path
    num_buckets: int
    drop: Drop | None

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        """Source columns that are read."""
        return tuple(dict.fromkeys(column.source for column in self.mapping.checks()))

    def __call__(self, piece: Sequence[int]) -> dict[str, Any]:
        """Check the fragment unless that has been done; what came of it, see `_summary`."""
        plan = self.plans[piece[0]]
        fragment = plan.fragments[piece[1]]
        marker = self.folder / f"{fragment.name}.json"
        return read_marker(marker) or write_marker(marker, self._check(plan, fragment))

    def _check(self, plan: FilePlan, fragment: Fragment) -> dict[str, Any]:
        summary: Counter[str] = Counter()
        faults, days, seen = [], [], set[str]()
        with _whole(self.folder / f"{fragment.name}.arrow") as path, _sections(path) as out:
            for raw, names in self._raw(plan, fragment):
                checked = check_table(raw, self.mapping.checks())
                events = events_of(checked, self.mapping).append_column("row", pa.array(checked.rows))
                kept = np.ones(events.num_rows, dtype=bool) if self.drop is None else ~self.drop(events)
                events = events.filter(pa.array(kept))
                write_sections(out, events, self.num_buckets)
                faults.append(checked.faults)
                days += _span(events)
                seen.update(names)
                summary += Counter(rows=raw.num_rows, readable=raw.table.num_rows, good=len(kept))
                summary += Counter(erased=int((~kept).sum()))
        found = pa.concat_tables([FAULT_SCHEMA.empty_table(), *faults])
        if found.num_rows:
            with _whole(self.folder / f"{fragment.name}.faults.parquet") as path:
                pq.write_table(found, path, compression="zstd")
        return _summary(summary, found, seen) | {
            "first": min(days, default=None),
            "last": max(days, default=None),
        }

    def _raw(self, plan: FilePlan, fragment: Fragment) -> Iterator[tuple[RawTable, Iterable[str]]]:
        """Rows with their numbers in the file, and the names that JSON objects had."""
        if fragment.form is FileFormat.PARQUET:
            for raw in self._parquet(Path(plan.source), fragment):
                yield raw, ()
            return
        with Path(fragment.path).open("rb") as stream:
            stream.seek(fragment.start)
            lines, _ = lines_of(stream.read(fragment.end - fragment.start))
        assert len(lines) == fragment.rows, "the file changed while it was read"
        names: Iterable[str] = ()
        if fragment.form is FileFormat.CSV:
            raw = csv_rows(lines, list(plan.header), self.wanted, self.mapping.file.delimiter)
        else:
            raw, names = json_rows(lines, self.wanted)
        yield raw.starting_at(fragment.first_row), names

    def _parquet(self, source: Path, fragment: Fragment) -> Iterator[RawTable]:
        row, groups = fragment.first_row, list(range(fragment.start, fragment.end))
        try:
            with pq.ParquetFile(fragment.path, buffer_size=1 << 20) as file:
                for batch in file.iter_batches(
                    PARQUET_ROWS, row_groups=groups, columns=list(self.wanted), use_threads=False
                ):
                    table = pa.Table.from_batches([batch]).select(list(self.wanted))
                    table.validate(full=True)
                    yield RawTable.of(table).starting_at(row)
                    row += table.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damaged(source, error) from None


def _span(events: pa.Table) -> list[float]:
    """Days of the first and of the last purchase, nothing without one."""
    when = events["occurred_at"].filter(pc.equal(events["type"], "purchase")).cast(pa.int64())
    return [] if not len(when) else [pc.min(when).as_py() / DAY_US, pc.max(when).as_py() / DAY_US]


def _summary(counts: Counter[str], faults: pa.Table, seen: set[str]) -> dict[str, Any]:
    """rows: records; readable: that split into columns; good; erased: good rows left out; quarantined."""
    not_utf8 = pc.sum(pc.equal(faults["reason"], "not_utf8")).as_py() or 0
    return {
        **{name: counts[name] for name in ("rows", "readable", "good", "erased")},
        "quarantined": len(pc.unique(faults["row"])),
        "not_utf8": not_utf8,
        "faults": [[fault.field, fault.reason, fault.count] for fault in count_faults(faults)],
        "seen": sorted(seen),
    }


def write_sections(out: Any, events: pa.Table, num_buckets: int) -> None:
    """One record batch per bucket, in order; rows of a bucket stay in the order of the file."""
    bucket = bucket_of(events["user_id"], num_buckets)
    order = np.argsort(bucket, kind="stable")
    ranked = events.select(SECTION_SCHEMA.names).take(pa.array(order)).combine_chunks()
    bounds = np.searchsorted(bucket[order], np.arange(num_buckets + 1))
    empty = SECTION_SCHEMA.empty_table().combine_chunks()
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        section = ranked.slice(low, high - low) if high > low else empty
        out.write_batch(_one_batch(section))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    columns = [
        column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SECTION_SCHEMA)


def bucket_of(users: pa.ChunkedArray, num_buckets: int) -> np.ndarray:
    """`[n]` bucket of each user id: the same on every machine and in every run."""
    ids = users.combine_chunks().dictionary_encode()
    names = ids.dictionary.to_numpy(zero_copy_only=False)
    hashes = pd.util.hash_array(names, categorize=False) if len(names) else np.zeros(0, dtype=np.uint64)
    return (hashes % num_buckets).astype(np.int64)[ids.indices.to_numpy(zero_copy_only=False)]


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to `path` at the end: nobody sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _sections(path: Path) -> Iterator[Any]:
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_file(path, SECTION_SCHEMA, options=options) as out:
        yield out


def refuse_file(plan: FilePlan, wanted: Iterable[str], summaries: list[dict[str, Any]]) -> None:
    """`DataError` for what only the whole file tells, by the same rules as for a file read at once."""
    path = Path(plan.source)
    bad = sum(summary["not_utf8"] for summary in summaries)
    if plan.form is not FileFormat.PARQUET and bad > MIN_UTF8 * plan.rows:
        raise not_utf8(path, f"{bad} of {plan.rows} rows")
    if not any(summary["readable"] for summary in summaries):
        raise unreadable(path, plan.rows, plan.form, len(plan.header))
    if plan.form is FileFormat.JSONL:
        require_columns(path, sorted({name for s in summaries for name in s["seen"]}), wanted)
    if not any(summary["good"] for summary in summaries):
        first = next(s["faults"][0] for s in summaries if s["faults"])
        problem = f"all of its {plan.rows} rows have faults (most often: {first[0]} {first[1]})"
        raise DataError(path, problem, "correct the mapping: `qiance data check` lists the faults")
