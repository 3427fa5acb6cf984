"""Rows of users taken out of Parquet files, a row group at a time."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

USER_COLUMN = "user_id"


def users_in(path: Path) -> set[str]:
    """Every user id in a file; empty if it has no column of them."""
    if USER_COLUMN not in pq.read_schema(path).names:
        return set()
    column = pq.read_table(path, columns=[USER_COLUMN])[USER_COLUMN]
    return set(pc.unique(_text(column)).drop_null().to_pylist())


def rows_of(path: Path, user_ids: Collection[str]) -> np.ndarray:
    """`[n]` whether a row is of one of the users; all False if the file has no column of them."""
    file = pq.ParquetFile(path)
    if USER_COLUMN not in file.schema_arrow.names:
        return np.zeros(file.metadata.num_rows, dtype=bool)
    column = _text(pq.read_table(path, columns=[USER_COLUMN])[USER_COLUMN])
    return np.asarray(pc.is_in(column, value_set=pa.array(sorted(user_ids), pa.string())), dtype=bool)


def write_without(path: Path, target: Path, gone: np.ndarray) -> None:
    """Write `path` to `target` without the rows where `gone` `[n]`; layout and compression stay."""
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    with pq.ParquetWriter(target, schema, compression=_compression(file)) as writer:
        start = 0
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            kept = group.filter(pa.array(~gone[start : start + group.num_rows]))
            start += group.num_rows
            if kept.num_rows:
                writer.write_table(_fresh(kept, schema))


def _fresh(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with dictionaries of the values that it has: a filtered one still lists those that are gone."""
    columns = []
    for field, column in zip(schema, table.columns, strict=True):
        if pa.types.is_dictionary(field.type):
            plain = pc.cast(column, field.type.value_type)
            column = pc.dictionary_encode(plain).cast(field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _compression(file: Any) -> str:
    if not file.num_row_groups or not file.metadata.num_columns:
        return "zstd"
    found = str(file.metadata.row_group(0).column(0).compression).lower()
    return "none" if found == "uncompressed" else found


def _text(column: Any) -> Any:
    return pc.cast(column, pa.string())
