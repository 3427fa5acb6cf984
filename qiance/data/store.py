"""Files written so that a reader never sees half of one, and fingerprints of their content."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq


def fingerprint_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint_table(table: pa.Table) -> str:
    """SHA-256 of a table's content: names, types and values in order, whatever its chunks."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name].combine_chunks()
        single = pa.table({name: column}).replace_schema_metadata(None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, single.schema) as writer:
            writer.write_table(single, max_chunksize=1 << 16)
        digest.update(memoryview(sink.getvalue()))
    return digest.hexdigest()


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write and rename; the same table gives the same bytes."""
    _replace(path, lambda part: pq.write_table(table, part, compression="zstd"))


def write_csv(table: pa.Table, path: Path) -> None:
    """Write and rename, with a header."""
    _replace(path, lambda part: pacsv.write_csv(table, part))


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write and rename, keys sorted."""
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    _replace(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_quarantine(faults: pa.Table, folder: Path, table: str) -> str | None:
    """Faults to `<folder>/<table>.csv`; with none, an old file of that name is removed."""
    path = folder / f"{table}.csv"
    if not faults.num_rows:
        path.unlink(missing_ok=True)
        return None
    write_csv(faults, path)
    return str(path)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
