"""Where packed rows are kept: SQLite on one machine, Redis for many. Both hold one partition per entity.

A partition is all rows of one user, or of one item: the rows of every view, each under its own field, in one
value. So a decision reads a user in one go, and erasing a user is deleting one value. A row is replaced only
by one that is not older, whatever the order in which writers arrive.
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
from qiance.features.partition import VERSION, Partition, pack

SEPARATOR = "\x1f"
REWRITE_WAIT_S = 10.0
MMAP_BYTES = 1 << 28  # read without a system call for each page
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

    def get(self, partitions: Sequence[str]) -> list[bytes]:
        """Partitions as they are kept (`qiance.features.partition`), in order; b"" where nothing is known."""
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
    `secure_delete` overwrites what is deleted; pages that were rebalanced may hold a copy still, so that an
    erasure (`qiance.privacy`) rewrites the file too.
    """

    def __init__(self, path: Path, project: str, timeout_s: float = 5.0) -> None:
        self._busy_timeout_ms = int(timeout_s * 1_000)
        self._path, self._table = Path(path), f"partitions_{project}".replace('"', "")
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()

    def create(self) -> None:
        """Make the table if there is none."""
        with self._writing() as connection:
            connection.execute(
                f'CREATE TABLE IF NOT EXISTS "{self._table}" '
                "(partition TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL)"
            )

    def get(self, partitions: Sequence[str]) -> list[bytes]:
        """See `Rows.get`."""
        with self._translated():
            found = self._packed(self._connection(), partitions)
        return [found.get(name, b"") for name in partitions]

    def _packed(self, connection: sqlite3.Connection, partitions: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for part in _chunks(partitions):
            marks = ",".join("?" * len(part))
            query = f'SELECT partition, value FROM "{self._table}" WHERE partition IN ({marks})'  # noqa: S608
            found.update(connection.execute(query, part))
        return found

    def put(self, rows: Sequence[Row]) -> None:
        """See `Rows.put`."""
        by_partition = _by_partition(rows)
        with self._writing() as connection:
            stored = self._packed(connection, list(by_partition))
            merged = [
                (name, pack(_merged(stored.get(name, b""), fresh))) for name, fresh in by_partition.items()
            ]
            connection.executemany(
                f'INSERT INTO "{self._table}" VALUES (?, ?) '  # noqa: S608
                "ON CONFLICT (partition) DO UPDATE SET value = excluded.value",
                merged,
            )

    def delete(self, partition: str) -> int:
        """See `Rows.delete`; the write-ahead log is emptied too, for it holds old pages."""
        with self._writing() as connection:
            found = self._packed(connection, [partition])
            query = f'DELETE FROM "{self._table}" WHERE partition = ?'  # noqa: S608
            connection.execute(query, (partition,))
        with self._translated():
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(Partition(found.get(partition, b"")))

    def delete_view(self, view: str) -> None:
        """See `Rows.delete_view`; walks all partitions."""
        with self._writing() as connection:
            names = [name for (name,) in connection.execute(f'SELECT partition FROM "{self._table}"')]  # noqa: S608
            for part in _chunks(names):
                changed = [
                    (pack(left), name)
                    for name, packed in self._packed(connection, part).items()
                    if (left := _without(packed, view)) is not None
                ]
                connection.executemany(
                    f'UPDATE "{self._table}" SET value = ? WHERE partition = ?',  # noqa: S608
                    changed,
                )

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
            connection.execute(f"PRAGMA mmap_size = {MMAP_BYTES}")
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


# KEYS[1]: a partition; ARGV: field, row, and so on, or one view to remove. Times are big-endian after a
# four-byte layout id; a Lua number holds microseconds exactly until the year 2255.
_UNPACK_LUA = f"""
local rows, order = {{}}, {{}}
local packed = redis.call('GET', KEYS[1])
if packed and string.byte(packed) == {VERSION[0]} then
  local _, size = struct.unpack('>c1I4', packed)
  local place = 6
  while place < 6 + size do
    local mark = string.find(packed, string.char(0), place, true)
    local name = string.sub(packed, place + 1, mark - 1)
    local start = 6 + size + tonumber(string.sub(packed, mark + 1, mark + 8), 16)
    local length = tonumber(string.sub(packed, mark + 9, mark + 16), 16)
    order[#order + 1] = name
    rows[name] = string.sub(packed, start, start + length - 1)
    place = mark + 17
  end
end
"""
_PACK_LUA = f"""
local entries, parts, start = {{}}, {{}}, 0
for n = 1, #order do
  local row = rows[order[n]]
  local numbers = string.format('%08x%08x', start, #row)
  entries[n] = string.char(30) .. order[n] .. string.char(0) .. numbers
  parts[n] = row
  start = start + #row
end
local directory = table.concat(entries)
local head = struct.pack('>BI4', {VERSION[0]}, #directory)
redis.call('SET', KEYS[1], head .. directory .. table.concat(parts))
"""
_PUT_LUA = f"""{_UNPACK_LUA}
for n = 1, #ARGV, 2 do
  local field, row = ARGV[n], ARGV[n + 1]
  local newer = true
  if rows[field] then
    local _, old_event, old_created = struct.unpack('>c4i8i8', rows[field])
    local _, event, created = struct.unpack('>c4i8i8', row)
    newer = event > old_event or (event == old_event and created >= old_created)
  else
    order[#order + 1] = field
  end
  if newer then rows[field] = row end
end
{_PACK_LUA}"""
_DROP_LUA = f"""{_UNPACK_LUA}
local kept = {{}}
for n = 1, #order do
  local view = string.match(order[n], '^[^' .. string.char(31) .. ']*')
  if view ~= ARGV[1] then kept[#kept + 1] = order[n] end
end
if #kept == #order then return end
order = kept
{_PACK_LUA}"""


class RedisRows:
    """Packed rows in Redis: a value per partition.

    timeout_s bounds every wait, to connect as well as for an answer. There is no retry here, but for a kept
    connection that the server has ended: who reads knows better what to do instead. Safe to use from several
    threads; not across a fork.
    """

    def __init__(self, connection: str, project: str, timeout_s: float = 0.05) -> None:
        # Imported here: a shop on SQLite needs no client.
        from redis import ConnectionError, Redis, RedisError
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._lost, self._failed = ConnectionError, (RedisError, OSError)
        self._local = threading.local()
        self._opened: list[Any] = []
        self._lock = threading.Lock()

        self._prefix = f"{project}:"
        self._redis: Any = Redis(
            **redis_options(connection),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._put = self._redis.register_script(_PUT_LUA)
        self._drop = self._redis.register_script(_DROP_LUA)

    def get(self, partitions: Sequence[str]) -> list[bytes]:
        """See `Rows.get`."""
        prefix = self._prefix
        found: list[bytes | None] = []
        with self._translated():
            for part in _chunks(partitions):
                found += self._mget([prefix + name for name in part])
        return [packed or b"" for packed in found]

    def _mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """MGET on a connection that this thread keeps: asking the pool for one costs a tenth of a read."""
        connection = self._connection()
        kept = connection.is_connected
        try:
            return self._ask(connection, keys)
        except self._lost:
            if not kept:
                raise
        return self._ask(connection, keys)  # the server ended it since the last read, and may be back

    @staticmethod
    def _ask(connection: Any, keys: Sequence[str]) -> list[bytes | None]:
        try:
            connection.send_command("MGET", *keys)
            values: list[bytes | None] = connection.read_response()
        except BaseException:
            connection.disconnect()  # or the next to use it would read our answer
            raise
        return values

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._redis.connection_pool.make_connection()
            with self._lock:
                self._opened.append(connection)
        return connection

    def put(self, rows: Sequence[Row]) -> None:
        """See `Rows.put`."""
        by_partition = _by_partition(rows)
        with self._translated():
            for part in _chunks(list(by_partition)):
                pipeline = self._redis.pipeline(transaction=False)
                for name in part:
                    words = [word for pair in by_partition[name].items() for word in pair]
                    self._put(keys=[self._prefix + name], args=words, client=pipeline)
                pipeline.execute()

    def delete(self, partition: str) -> int:
        """See `Rows.delete`."""
        with self._translated():
            packed = self._redis.getdel(self._prefix + partition)
        return len(Partition(packed or b""))

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
                self._drop(keys=[key], args=[view])

    def drop(self) -> None:
        """Remove every partition of the project."""
        with self._translated():
            for key in self._redis.scan_iter(match=_literal(self._prefix) + "*", count=1_000):
                self._redis.delete(key)

    def close(self) -> None:
        """See `Rows.close`."""
        with self._lock:
            for connection in self._opened:
                connection.disconnect()
            self._opened.clear()
        self._local = threading.local()
        self._redis.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._failed as error:
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


def _by_partition(rows: Sequence[Row]) -> dict[str, dict[str, bytes]]:
    """Rows by partition and field; of several for one place the newest, the last of equals."""
    found: dict[str, dict[str, bytes]] = {}
    for row in rows:
        partition = found.setdefault(row.partition, {})
        _keep_newer(partition, row.field, row.value)
    return found


def _merged(packed: bytes, fresh: Mapping[str, bytes]) -> dict[str, bytes]:
    """The stored partition with those of `fresh` that are not older."""
    merged = dict(Partition(packed))
    for field, row in fresh.items():
        _keep_newer(merged, field, row)
    return merged


def _keep_newer(partition: dict[str, bytes], field: str, row: bytes) -> None:
    stored = partition.get(field)
    if stored is None or times_of(row) >= times_of(stored):
        partition[field] = row


def _without(packed: bytes, view: str) -> dict[str, bytes] | None:
    """The partition without the rows of `view`, None if it has none."""
    rows = Partition(packed)
    left = {field: row for field, row in rows.items() if field.split(SEPARATOR)[0] != view}
    return None if len(left) == len(rows) else left


def _literal(text: str) -> str:
    """`text` for Redis's patterns, without their special characters."""
    return "".join(f"\\{letter}" if letter in "*?[]\\^" else letter for letter in text)


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
