"""Removing what deleted rows leave behind in the files of a database."""

from __future__ import annotations

import sqlite3
import time
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Engine

from qiance.ledger.schema import (
    consent_changes,
    consents,
    decisions,
    erasures,
    outcomes,
    pseudonyms,
    reservations,
    shop_events,
    user_keys,
)

_STEP_MS = 50
_TOUCHED = (
    pseudonyms, user_keys, consents, consent_changes, shop_events, decisions, outcomes, reservations, erasures
)  # fmt: skip


def scrub_database(engine: Engine, writing: AbstractContextManager[Any], patience_s: float) -> bool:
    """Whether nothing of deleted rows is left in SQLite's files, or PostgreSQL has vacuumed its tables.

    writing: held while nobody else of this process can write.
    """
    # The raw connection: neither statement may run inside a transaction.
    connection = engine.raw_connection()
    try:
        driver = connection.driver_connection
        if engine.dialect.name == "sqlite":
            return scrub_sqlite(driver, writing, patience_s)
        _vacuum(driver)
        return True
    finally:
        connection.close()


def scrub_sqlite(driver: Any, writing: AbstractContextManager[Any], patience_s: float) -> bool:
    """Rewrites the file of an open sqlite3 connection (`isolation_level=None`) and empties its log.

    `secure_delete` overwrites a deleted row, but not the copies that SQLite left in the unused part of pages
    when it moved rows between them: only a new file has none. False: somebody writes, or reads an old state.
    """
    usual = driver.execute("PRAGMA busy_timeout").fetchone()[0]
    try:
        with writing:
            driver.execute("VACUUM")
        # Short waits: while a checkpoint waits for readers, nobody can write.
        driver.execute(f"PRAGMA busy_timeout = {_STEP_MS}")
        return _empty_log(driver, time.monotonic() + patience_s)
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    finally:
        driver.execute(f"PRAGMA busy_timeout = {usual}")


def _empty_log(driver: Any, deadline: float) -> bool:
    while True:
        busy, _, _ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_STEP_MS / 1_000)


def _vacuum(driver: Any) -> None:
    """Makes the space of deleted rows free for reuse."""
    names = ", ".join(table.name for table in _TOUCHED)
    driver.autocommit = True
    try:
        driver.execute(f"VACUUM {names}")
    finally:
        driver.autocommit = False
