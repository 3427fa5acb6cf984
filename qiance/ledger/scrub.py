"""Removing what deleted rows leave behind in the files of the database."""

from __future__ import annotations

import time
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


def scrub_database(engine: Engine, patience_s: float) -> bool:
    """Whether nothing of deleted rows is left in SQLite's log, or PostgreSQL has vacuumed its tables."""
    # The raw connection: neither statement may run inside a transaction.
    connection = engine.raw_connection()
    try:
        driver = connection.driver_connection
        if engine.dialect.name == "sqlite":
            return _empty_log(driver, patience_s)
        _vacuum(driver)
        return True
    finally:
        connection.close()


def _empty_log(driver: Any, patience_s: float) -> bool:
    """Moves the write-ahead log into the file, where deleted rows are zeros, and truncates it."""
    usual = driver.execute("PRAGMA busy_timeout").fetchone()[0]
    # Short waits: while a checkpoint waits for readers, nobody can write.
    driver.execute(f"PRAGMA busy_timeout = {_STEP_MS}")
    deadline = time.monotonic() + patience_s
    try:
        while True:
            busy, _, _ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_STEP_MS / 1_000)
    finally:
        driver.execute(f"PRAGMA busy_timeout = {usual}")


def _vacuum(driver: Any) -> None:
    """Makes the space of deleted rows free for reuse."""
    names = ", ".join(table.name for table in _TOUCHED)
    driver.autocommit = True
    try:
        driver.execute(f"VACUUM {names}")
    finally:
        driver.autocommit = False
