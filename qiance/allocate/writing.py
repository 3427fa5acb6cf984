"""Choices as a Parquet or CSV file, written part by part and renamed into place when all are there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq


class ChoiceWriter:
    """One file; its format is told by the suffix (`.csv`, else Parquet)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> ChoiceWriter:
        return self

    def write(self, table: pa.Table) -> None:
        """Some rows; all parts have the same columns."""
        if self._writer is None:
            self._writer = self._open(table.schema)
        self._writer.write_table(table)

    def _open(self, schema: pa.Schema) -> Any:
        if self._path.suffix.lower() == ".csv":
            return pacsv.CSVWriter(
                self._part, schema, write_options=pacsv.WriteOptions(quoting_style="needed")
            )
        return pq.ParquetWriter(self._part, schema, compression="zstd")

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
            if failure is None:
                self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)
