"""Erasing from the embedded online store, without Feast."""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

from qiance.features.rows import SqliteRows, partition_of
from qiance.ledger.scrub import scrub_sqlite


def erase_packed_sqlite(file: Path, project: str, user_id: str) -> int:
    """Remove a user from the packed rows in `file`; how many rows there were.

    Raises RuntimeError while somebody reads an old state of the file, which then still has the rows.
    """
    if not file.is_file():
        return 0
    rows = SqliteRows(file, project)
    try:
        removed = rows.delete(partition_of("user_id", user_id))
    finally:
        rows.close()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        if not scrub_sqlite(connection, nullcontext(), patience_s=3.0):
            raise RuntimeError(
                f"online store: {file.name} is in use; the rows are deleted, their bytes are not yet"
            )
    return removed
