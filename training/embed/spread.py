"""First step of the batch job: the source's rows, prepared by Ray Data, spread over buckets by digest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.features.embedding_spec import EmbeddingSpec
from training.embed.content import DIGEST_BYTES, check_columns, contents, source_columns

ROWS_PER_PART = 2_048
MAX_PARTS = 1_024
# Rows per task; images and clips as bytes are large.
_BATCH = {"text": 8_192, "image": 256, "audio": 256}
_READERS = {".parquet": "read_parquet", ".csv": "read_csv", ".jsonl": "read_json", ".json": "read_json"}
_ROW = ("key", "at", "digest", "content")

Tell = Callable[[float, str], None]


def spread(source: Path, spec: EmbeddingSpec, folder: Path, tell: Tell) -> tuple[int, int, list[Path]]:
    """Write the rows of `source` into Arrow stream files in `folder`, equal contents into the same file.

    Returns rows read, rows that have content, and the files in order. ValueError for a bad source.
    """
    data = read_source(source, spec)
    total = data.count()
    base = (source if source.is_dir() else source.parent).resolve()
    prepare = partial(prepared, spec=spec, base=base)
    batches = data.map_batches(prepare, batch_format="pyarrow", batch_size=_BATCH[spec.modality])
    seen = kept = 0
    with ExitStack() as stack:
        files = _Files(folder, number_of_parts(total), stack)
        for block in batches.iter_batches(batch_format="pyarrow", batch_size=None):
            told = block.filter(block["read"].is_valid())
            for wrong in told["wrong"].to_pylist():
                if wrong:
                    raise ValueError(wrong)
            seen += sum(told["read"].to_pylist())
            kept += files.write(block)
            tell(seen / max(total, 1), f"{seen:,} of {total:,} rows read")
    return seen, kept, sorted(folder.glob("*.arrow"))


def read_source(source: Path, spec: EmbeddingSpec) -> Any:
    """The source as a Ray Dataset of the wanted columns; ValueError names what is missing."""
    import ray.data

    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    if not source.exists() or not files:
        raise ValueError(f"source: {str(source)!r} is not there or empty; pass a file or a folder of files")
    reader = _READERS.get(files[0].suffix.lower())
    if reader is None:
        raise ValueError(f"source: {files[0].name!r} is none of {', '.join(_READERS)}; convert it to Parquet")
    if reader == "read_parquet":
        check_columns(pq.read_schema(files[0]), spec)
        return ray.data.read_parquet(str(source)).select_columns(source_columns(spec))
    options = {"lines": True} if reader == "read_json" else {}
    return getattr(ray.data, reader)(str(source), **options)


def prepared(table: pa.Table, spec: EmbeddingSpec, base: Path) -> pa.Table:
    """Contents of a block with their bucket, after one row of book-keeping: rows read, what was wrong.

    An error travels as data: Ray would wrap an exception beyond recognition.
    """
    try:
        rows, wrong = contents(table, spec, base), ""
    except ValueError as error:
        rows, wrong = None, str(error)
    head: dict[str, Any] = {"read": pa.array([table.num_rows]), "wrong": pa.array([wrong])}
    if rows is None:
        return pa.table(head)
    buckets = [int.from_bytes(digest[:4], "big") % MAX_PARTS for digest in rows["digest"].to_pylist()]
    rows = rows.select(list(_ROW)).append_column("bucket", pa.array(buckets, pa.int32()))
    first = {name: pa.nulls(1, rows.schema.field(name).type) for name in rows.column_names} | head
    rest = rows.append_column("read", pa.nulls(len(rows), pa.int64()))
    rest = rest.append_column("wrong", pa.nulls(len(rows), pa.string()))
    return pa.concat_tables([pa.table(first), rest])


def number_of_parts(rows: int) -> int:
    """A power of two, so that parts stay the same when some rows are added."""
    wanted = max(1, math.ceil(rows / ROWS_PER_PART))
    return min(MAX_PARTS, 1 << (wanted - 1).bit_length())


class _Files:
    """One Arrow stream file per bucket, opened when its first row comes."""

    def __init__(self, folder: Path, count: int, stack: ExitStack) -> None:
        self._folder, self._count, self._stack = folder, count, stack
        self._writers: dict[int, Any] = {}

    def write(self, block: pa.Table) -> int:
        """Append each row to its bucket; the number of rows that had content."""
        rows = block.filter(block["bucket"].is_valid())
        number = rows["bucket"].to_numpy() % self._count
        for bucket in np.unique(number).tolist():
            part = rows.select(list(_ROW)).filter(pa.array(number == bucket))
            self._writer(bucket, part.schema).write_table(part)
        return int(rows.num_rows)

    def _writer(self, bucket: int, schema: pa.Schema) -> Any:
        if bucket not in self._writers:
            path = self._folder / f"{bucket:04d}.arrow"
            self._writers[bucket] = self._stack.enter_context(pa.ipc.new_stream(str(path), schema))
        return self._writers[bucket]


def read_bucket(path: Path) -> pa.Table:
    """The rows of one bucket: key, at, digest, content."""
    with pa.ipc.open_stream(str(path)) as stream:
        table = stream.read_all()
    return table.set_column(
        table.column_names.index("digest"), "digest", table["digest"].cast(pa.binary(DIGEST_BYTES))
    )


@contextmanager
def quiet_data() -> Iterator[None]:
    """Keeps Ray Data's own bars and log lines out of our output, and gives them back after."""
    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    shown, level = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = shown
        log.setLevel(level)
