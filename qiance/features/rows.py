"""Where packed rows are kept: SQLite on one machine, Redis for many. Both hold one partition per entity.

A partition is all rows of one user, or of one item: the rows of every view, each under its own field. So a
decision reads a user in one go, and erasing a user is deleting one partition. A row is replaced only by one
that is not older, whatever the order in which writers arrive.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qiance.features.packed import times_of

SEPARATOR = "\x1f"
Partition = dict[str, bytes]
Fields = Sequence[Sequence[str]]
REWRITE_WAIT_S = 10.0
CHUNK = 500  # partitions per statement or pipeline: far below SQLite's limit of parameters


class RowsUnavailableError(RuntimeError):
    """The online store did not answer in time, or not at all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One packed row with its place."""

    partition: str
    field: str
    value: bytes


class Rows(Protocol):
    """A store of packed rows. Every method raises RowsUnavailableError when the store does not answer."""

    def get(self, partitions: Sequence[str], fields: Fields | None = None) -> list[Partition]:
        """field → packed row of each partition, in order; empty where nothing is known.

        fields: those that are wanted of each partition; all unless given. A store may give more.
        """
        ...

    def put(self, rows: Sequence[Row]) -> None:
        """Write rows; one that is older than what is stored changes nothing."""
        ...

    def delete(self, partition: str) -> int:
        """Remove a partition; how many rows it had."""
        ...

    def delete_view(self, view: str) -> None:
        """Remove the rows of one view from every partition."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


def partition_of(key: str, value: object) -> str:
    """Name of the partition of one entity; text and numbers of the same look stay apart."""
    return f"{key}={value}" if isinstance(value, str) else f"{key}:{value}"


def field_of(view: str, others: Sequence[tuple[str, object]] = ()) -> str:
    """Name of a row in its partition: the view, and the view's further keys."""
    return SEPARATOR.join([view, *(partition_of(key, value) for key, value in others)])


class SqliteRows:
    """Packed rows in one SQLite file; safe to use from several threads and processes.

    timeout_s bounds each wait for a lock: readers wait only while the file is rewritten after an erasure.
    `secure_delete` overwrites what is deleted, so that an erased user's bytes are gone from the file.
    """

    def __init__(self, path: Path, project: str, timeout_s: float = 5.0) -> None:
        self._busy_timeout_ms = int(timeout_s * 1_000)
        self._path, self._table = Path(path), f"rows_{project}".replace('"', "")
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    def create(self) -> None:
        """Make the table if there is none."""
        with self._writing() as connection:
            connection.execute(
                f'CREATE TABLE IF NOT EXISTS "{self._table}" (partition TEXT NOT NULL, field TEXT NOT NULL, '
                "event_us INTEGER NOT NULL, created_us INTEGER NOT NULL, value BLOB NOT NULL, "
                "PRIMARY KEY (partition, field)) WITHOUT ROWID"
            )

    def get(self, partitions: Sequence[str], fields: Fields | None = None) -> list[Partition]:
        """See `Rows.get`; gives whole partitions, which lie together on the same pages."""
        found: dict[str, Partition] = {name: {} for name in partitions}
        with self._translated():
            connection = self._connection()
            for part in _chunks(list(found)):
                marks = ",".join("?" * len(part))
                query = f'SELECT partition, field, value FROM "{self._table}" WHERE partition IN ({marks})'  # noqa: S608
                for name, field, value in connection.execute(query, part):
                    found[name][field] = value
        return [found[name] for name in partitions]

    def put(self, rows: Sequence[Row]) -> None:
        """See `Rows.put`."""
        statement = (
            f'INSERT INTO "{self._table}" VALUES (?, ?, ?, ?, ?) '  # noqa: S608
            "ON CONFLICT (partition, field) DO UPDATE SET event_us = excluded.event_us, "
            "created_us = excluded.created_us, value = excluded.value "
            "WHERE (excluded.event_us, excluded.created_us) >= (event_us, created_us)"
        )
        with self._writing() as connection:
            connection.executemany(
                statement, [(row.partition, row.field, *times_of(row.value), row.value) for row in rows]
            )

    def delete(self, partition: str) -> int:
        """See `Rows.delete`; the write-ahead log is emptied too, for it holds old pages."""
        with self._writing() as connection:
            query = f'DELETE FROM "{self._table}" WHERE partition = ?'  # noqa: S608
            count = connection.execute(query, (partition,)).rowcount
        with self._translated():
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return int(count)

    def delete_view(self, view: str) -> None:
        """See `Rows.delete_view`."""
        with self._writing() as connection:
            query = f'DELETE FROM "{self._table}" WHERE field = ? OR substr(field, 1, ?) = ?'  # noqa: S608
            connection.execute(query, (view, len(view) + 1, view + SEPARATOR))

    def drop(self) -> None:
        """Remove the table."""
        with self._writing() as connection:
            connection.execute(f'DROP TABLE IF EXISTS "{self._table}"')

    def close(self) -> None:
        """See `Rows.close`."""
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
        self._local = threading.local()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Each thread uses its own; `close` may come from another.
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            self._local.connection = connection
            with self._lock:
                self._opened.append(connection)
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that takes the write lock at its start."""
        with self._translated():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RowsUnavailableError(
                f"online store: {self._path.name} does not answer ({error})"
            ) from error


# ARGV: field, value, and so on. Times are big-endian after a four-byte layout id; a Lua number holds
# microseconds exactly until the year 2255.
_PUT_LUA = """
for n = 1, #ARGV, 2 do
  local old = redis.call('HGET', KEYS[1], ARGV[n])
  local newer = true
  if old then
    local _, old_event, old_created = struct.unpack('>c4i8i8', old)
    local _, event, created = struct.unpack('>c4i8i8', ARGV[n + 1])
    newer = event > old_event or (event == old_event and created >= old_created)
  end
  if newer then redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
end
"""

# ARGV: for each key the number of its fields, then the fields. One command is packed and parsed in less time
# than one for each key.
_GET_LUA = """
local found, place = {}, 1
for n = 1, #KEYS do
  local count = tonumber(ARGV[place])
  found[n] = redis.call('HMGET', KEYS[n], unpack(ARGV, place + 1, place + count))
  place = place + count + 1
end
return found
"""


class RedisRows:
    """Packed rows in Redis: a hash per partition.

    timeout_s bounds every wait, to connect as well as for an answer. There is no retry here: who reads
    knows better what to do instead.
    """

    def __init__(self, connection: str, project: str, timeout_s: float = 0.05) -> None:
        # Imported here: a shop on SQLite needs no client.
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._prefix = f"{project}:"
        self._redis: Any = Redis(
            **redis_options(connection),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._put = self._redis.register_script(_PUT_LUA)
        self._get_many = self._redis.register_script(_GET_LUA)

    def get(self, partitions: Sequence[str], fields: Fields | None = None) -> list[Partition]:
        """See `Rows.get`."""
        if fields is not None:
            return self._get_some(partitions, fields)
        found: list[Partition] = []
        with self._translated():
            for part in _chunks(partitions):
                pipeline = self._redis.pipeline(transaction=False)
                for name in part:
                    pipeline.hgetall(self._prefix + name)
                found += [{f.decode(): v for f, v in row.items()} for row in pipeline.execute()]
        return found

    def _get_some(self, partitions: Sequence[str], fields: Fields) -> list[Partition]:
        """The wanted fields, which come back without their names; one command for many partitions."""
        values: list[list[bytes | None]] = []
        with self._translated():
            for start in range(0, len(partitions), CHUNK):
                some = slice(start, start + CHUNK)
                keys = [self._prefix + name for name in partitions[some]]
                values += self._values(keys, fields[some])
        return [
            {field: value for field, value in zip(wanted, found, strict=True) if value is not None}
            for wanted, found in zip(fields, values, strict=True)
        ]

    def _values(self, keys: Sequence[str], fields: Fields) -> list[list[bytes | None]]:
        if len(keys) == 1:
            return [self._redis.execute_command("HMGET", keys[0], *fields[0])]
        arguments = [word for wanted in fields for word in (str(len(wanted)), *wanted)]
        found: list[list[bytes | None]] = self._get_many(keys=keys, args=arguments)
        return found

    def put(self, rows: Sequence[Row]) -> None:
        """See `Rows.put`."""
        by_partition: dict[str, list[str | bytes]] = {}
        for row in rows:
            by_partition.setdefault(row.partition, []).extend((row.field, row.value))
        with self._translated():
            for part in _chunks(list(by_partition)):
                pipeline = self._redis.pipeline(transaction=False)
                for name in part:
                    self._put(keys=[self._prefix + name], args=by_partition[name], client=pipeline)
                pipeline.execute()

    def delete(self, partition: str) -> int:
        """See `Rows.delete`."""
        with self._translated():
            key = self._prefix + partition
            count = int(self._redis.hlen(key))
            self._redis.delete(key)
        return count

    def forget(self) -> None:
        """Have the append-only file rewritten, which goes on holding what was deleted until then.

        A rewrite that is under way began before, so that its end is waited for; RowsUnavailableError if it
        takes longer than `REWRITE_WAIT_S`.
        """
        deadline = time.monotonic() + REWRITE_WAIT_S
        with self._translated():
            while (state := self._redis.info("persistence")).get("aof_rewrite_in_progress"):
                if time.monotonic() > deadline:
                    raise RowsUnavailableError("online store: Redis rewrites its append-only file; try again")
                time.sleep(0.05)
            if state.get("aof_enabled"):
                self._redis.bgrewriteaof()

    def delete_view(self, view: str) -> None:
        """See `Rows.delete_view`; walks all partitions."""
        with self._translated():
            for key in self._redis.scan_iter(match=_literal(self._prefix) + "*", count=1_000):
                fields = [f for f in self._redis.hkeys(key) if f.decode().split(SEPARATOR)[0] == view]
                if fields:
                    self._redis.hdel(key, *fields)

    def drop(self) -> None:
        """Remove every partition of the project."""
        with self._translated():
            for key in self._redis.scan_iter(match=_literal(self._prefix) + "*", count=1_000):
                self._redis.delete(key)

    def close(self) -> None:
        """See `Rows.close`."""
        self._redis.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, OSError) as error:
            # The client's message names host and port, never the password.
            raise RowsUnavailableError(f"online store: Redis does not answer ({error})") from error


def redis_options(connection: str) -> dict[str, Any]:
    """Options of the client from `host:port,name=value,…`, the form in which Feast writes it.

    Raises ValueError that names the part at fault; its value may be a password and is not repeated.
    """
    address, *parts = connection.split(",")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"connection_string: {address!r} is not host:port, such as localhost:6379")
    options: dict[str, Any] = {"host": host, "port": int(port)}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in _REDIS_OPTIONS or not equals:
            raise ValueError(
                f"connection_string: {name!r} is none of {', '.join(_REDIS_OPTIONS)}, as name=value"
            )
        try:
            options[name] = _REDIS_OPTIONS[name](value)
        except (KeyError, ValueError):
            raise ValueError(f"connection_string: the value of {name!r} cannot be read") from None
    return options


_REDIS_OPTIONS: Mapping[str, Any] = {
    "db": int,
    "username": str,
    "password": str,
    "ssl": {"true": True, "false": False}.__getitem__,
    "ssl_ca_certs": str,
}


def _literal(text: str) -> str:
    """`text` for Redis's patterns, without their special characters."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
