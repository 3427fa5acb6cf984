"""Connections of the ledger: one engine, short reads, and writes that take their lock at the start."""

from __future__ import annotations

import math
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from qiance.ledger.records import LedgerError, LedgerUnavailableError
from qiance.ledger.schema import ID_LENGTH, TENANT_LENGTH

T = TypeVar("T")
Clock = Callable[[], datetime]
PATIENCE_S = 30.0  # how long a writer of SQLite waits for another where no timeout is given
# Ids per IN list: far below the parameter limits of SQLite (32,766) and PostgreSQL (65,535).
CHUNK = 5_000
# Pages of SQLite's log after which a commit moves them to the file itself, and waits for that.
CHECKPOINT_PAGES = 4_000
_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")


def utc_now() -> datetime:
    """The system's clock, in UTC."""
    return datetime.now(UTC)


def parse_url(url: str) -> URL:
    """The database named by `url`; only file-based SQLite and PostgreSQL are taken."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The text may hold a password, so it is not repeated.
        raise LedgerError(
            "ledger.url: cannot be read; use sqlite:///path/to/file.db or postgresql+psycopg://host/name"
        ) from None
    if parsed.drivername in _POSTGRES:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise LedgerError(
            f"ledger.url: {parsed.drivername!r} is not supported; use sqlite:///… or postgresql+psycopg://…"
        )
    if not parsed.database or parsed.database.startswith((":memory:", "file:")):
        raise LedgerError(
            "ledger.url: SQLite in memory would lose what was decided; name a file, sqlite:///path"
        )
    return parsed


def build_engine(url: URL, timeout_s: float | None = None) -> Engine:
    """An engine for `url`; nothing is connected yet. timeout_s: see `Ledger.open`."""
    if url.get_backend_name() == "postgresql":
        return _build_postgres(url, timeout_s)
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    wait_s = PATIENCE_S if timeout_s is None else timeout_s
    engine = create_engine(url, pool_size=8, max_overflow=56, pool_timeout=wait_s)
    event.listen(engine, "connect", partial(_prepare_sqlite, wait_s))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _build_postgres(url: URL, timeout_s: float | None) -> Engine:
    if timeout_s is None:
        return create_engine(url, pool_size=8, max_overflow=24, pool_pre_ping=True)
    limits = {
        "connect_timeout": math.ceil(timeout_s),  # whole seconds; the driver waits for two at least
        # A server that vanished: what is sent is not acknowledged, or the probes of a connection are not.
        "tcp_user_timeout": math.ceil(timeout_s * 1_000.0),
        "keepalives_idle": 1,
        "keepalives_interval": 1,
    }
    told = {name: value for name, value in limits.items() if name not in url.query}
    engine = create_engine(
        url, pool_size=8, max_overflow=24, pool_pre_ping=True, pool_timeout=timeout_s, connect_args=told
    )
    event.listen(engine, "connect", partial(_limit_postgres, timeout_s))
    return engine


def _limit_postgres(timeout_s: float, connection: Any, _record: object) -> None:
    # By a statement: the parameter `options` may be taken by the URL, and poolers refuse it.
    milliseconds = math.ceil(timeout_s * 1_000.0)
    connection.execute(f"SET statement_timeout = {milliseconds}")  # waiting for locks included
    connection.commit()


def _prepare_sqlite(wait_s: float, connection: Any, _record: object) -> None:
    # The driver's own transaction handling starts too late to lock before reading; we send BEGIN.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {math.ceil(wait_s * 1_000.0)}")
    connection.execute("PRAGMA synchronous = FULL")  # a commit that returned survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten with zeros
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")


def _begin_sqlite(connection: Connection) -> None:
    # A write takes SQLite's one write lock at once: upgrading from a read later could fail at any time.
    # A read is one statement, which SQLite gives a snapshot of its own.
    if connection.get_execution_options().get("writes"):
        try:
            cursor_of(connection).execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise OperationalError("BEGIN IMMEDIATE", None, error) from error


def cursor_of(connection: Connection) -> Any:
    """The driver's own cursor, for the statements of the decision path.

    SQLAlchemy takes several times as long for a short statement as SQLite does. Errors are the driver's own.
    """
    return connection.connection.cursor()


@cache
def native(dialect: str, sql: str) -> str:
    """`sql` with parameters written `:name` as the driver wants them."""
    return re.sub(r":(\w+)", r"%(\1)s", sql) if dialect == "postgresql" else sql


@cache
def insert_ignoring(dialect: str, table: Table) -> Any:
    """INSERT … ON CONFLICT DO NOTHING into `table`: rows already there are left alone."""
    return insert_into(dialect, table).on_conflict_do_nothing()


def insert_into(dialect: str, table: Table) -> Any:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def inserted(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Inserts `row` unless its key is taken; whether it did (drivers disagree on an INSERT's row count)."""
    statement = insert_ignoring(connection.dialect.name, table).returning(table.c.tenant_id)
    return connection.execute(statement, row).first() is not None


def chunks(values: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """`values` in slices of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def text_problem(value: object, length: int = ID_LENGTH) -> str | None:
    """Why `value` cannot be kept as an id, or None if it can."""
    if not isinstance(value, str):
        return f"{value!r} is not text"
    if not value:
        return "is empty"
    if len(value) > length:
        return f"{value[:20]!r}… has {len(value)} characters; at most {length} are kept"
    if "\x00" in value or not (value.isascii() or _is_text(value)):
        return f"{value!r} holds a character that is not text (NUL or half a surrogate pair)"
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def checked(field: str, value: str, length: int = ID_LENGTH) -> str:
    """`value`, or a ValueError that names `field`."""
    problem = text_problem(value, length)
    if problem is not None:
        raise ValueError(f"{field}: {problem}")
    return value


class Database:
    """What every part of the ledger stands on: connections scoped to one tenant.

    Threads may share it; another process opens its own (connections do not survive a fork).
    """

    def __init__(
        self,
        engine: Engine,
        tenant: str,
        key: bytes,
        now: Clock = utc_now,
        system_now: Clock = utc_now,
        timeout_s: float | None = None,
    ) -> None:
        self.engine = engine
        self.tenant = checked("tenant", tenant, TENANT_LENGTH)
        self.dialect = engine.dialect.name
        self._key = key
        self._now = now
        self._system_now = system_now  # of leases, which run out in the time of the machines
        sqlite_engine = self.dialect == "sqlite"
        self._writer = engine.execution_options(writes=True)
        self._reader = engine if sqlite_engine else engine.execution_options(isolation_level="AUTOCOMMIT")
        # SQLite admits one writer: threads of this process queue here instead of polling its lock.
        self._write_lock = threading.Lock() if sqlite_engine else None
        self._lock_wait_s = -1.0 if timeout_s is None else timeout_s  # -1: as long as it takes

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for single SELECT statements."""
        with self._translated(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: committed at the end (durable then), rolled back on any exception."""
        with self._translated():
            if self._write_lock is None:
                with self._writer.begin() as connection:
                    yield connection
            else:
                if not self._write_lock.acquire(timeout=self._lock_wait_s):
                    raise LedgerUnavailableError("ledger: another thread of this process holds its lock")
                try:
                    with self._writer.begin() as connection:
                        yield connection
                finally:
                    self._write_lock.release()

    def checkpoint(self) -> None:
        """Moves what SQLite's log holds to its file, without making a reader or writer wait.

        A commit does that too once the log is long, and then waits for it: a service calls this aside of its
        requests, often. Nothing is to be done on PostgreSQL.
        """
        if self.dialect == "sqlite":
            with self.read() as connection:
                cursor_of(connection).execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns the driver's ways of saying 'not now' into `LedgerUnavailableError`."""
        driver = self.engine.dialect.loaded_dbapi
        try:
            yield
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise _unavailable(getattr(error, "orig", None) or error) from error
        except (driver.OperationalError, driver.InterfaceError) as error:
            raise _unavailable(error) from error
        except StatementError as error:
            if isinstance(error.orig, ValueError):  # ours, from a column's type
                raise error.orig from None
            raise


def _unavailable(error: BaseException) -> LedgerUnavailableError:
    # The driver's own first line: no SQL, no parameters, no URL.
    reason = str(error).strip().split("\n", 1)[0]
    return LedgerUnavailableError(f"ledger: the database does not answer ({reason})")
