"""Brings the schema to the newest revision, safely under concurrent openers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DatabaseError, OperationalError

from qiance.ledger.database import build_engine
from qiance.ledger.records import LedgerError

HEAD = "0006"
# Not Alembic's default: MLflow keeps its own `alembic_version` when it shares the database.
VERSION_TABLE = "qiance_schema"
_ADVISORY_LOCK = 7_100_233_914_001
_WAL_PATIENCE_S = 30.0
# Alembic keeps the running migration in module globals.
_ALEMBIC = threading.Lock()


def upgrade(engine: Engine) -> None:
    """Upgrades the database of `engine` to HEAD; raises LedgerError if its schema is newer."""
    if engine.dialect.name == "sqlite":
        _enable_wal(engine)
    with engine.connect() as connection:
        if current_revision(connection) == HEAD:
            return
    patient = build_engine(engine.url)  # whatever the limits of `engine`, an upgrade is not cut off
    try:
        # SQLite: BEGIN IMMEDIATE is the lock; PostgreSQL: an advisory lock until the transaction ends.
        with _ALEMBIC, patient.execution_options(writes=True).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            _run_migrations(connection)
    finally:
        patient.dispose()


def current_revision(connection: Connection) -> str | None:
    """The schema's revision; None if it was never made."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
    return None if revision is None else str(revision)


def _run_migrations(connection: Connection) -> None:
    # Imported here: a replica that finds the schema up to date need not pay for Alembic.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = current_revision(connection)
    if found is not None and found not in known:
        raise LedgerError(
            f"ledger.url: the database has schema revision {found!r}, newer than this Qiance knows ({HEAD}); "
            "upgrade Qiance, or name another database"
        )
    command.upgrade(config, "head")


def _enable_wal(engine: Engine) -> None:
    """Switches to write-ahead logging; several openers may try at once, and SQLite then says 'locked'."""
    deadline = time.monotonic() + _WAL_PATIENCE_S
    while True:
        try:
            with engine.connect() as connection:
                if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return
        except OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        except DatabaseError as error:
            raise LedgerError(
                f"ledger.url: {engine.url.database} is no SQLite database ({error.orig}); name another file"
            ) from error
