"""Erasing from the online stores of packed rows, without Feast."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path

import yaml

from qiance.features.rows import RedisRows, SqliteRows, partition_of
from qiance.ledger.scrub import scrub_sqlite

_NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


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


def online_eraser(repository: Path, env: Mapping[str, str]) -> Callable[[str], int]:
    """What erases a user from the online store that `repository`/feature_store.yaml names.

    env: values for `${NAME}` in that file, usually `os.environ`. Without the file nothing was ever served,
    and nothing is erased. Raises ValueError for a store that is none of ours.
    """
    file = repository / "feature_store.yaml"
    if not file.is_file():
        return lambda user_id: 0
    config = yaml.safe_load(_NAMED.sub(lambda found: _value(found[1], env), file.read_text()))
    project, store = str(config["project"]), config["online_store"]
    kind = str(store.get("type", "")).rpartition(".")[2]
    if kind == "PackedSqliteOnlineStore":
        path = repository / store.get("path", "online.db")
        return lambda user_id: erase_packed_sqlite(path, project, user_id)
    if kind == "PackedRedisOnlineStore":
        connection = str(store.get("connection_string", "localhost:6379"))
        return lambda user_id: _erase_redis(connection, project, user_id)
    raise ValueError(
        f"online_store.type: {store.get('type')!r} in {file.name} has no way to erase a user; "
        "use one of feature_repo.packed_store"
    )


def _erase_redis(connection: str, project: str, user_id: str) -> int:
    rows = RedisRows(connection, project, timeout_s=5.0)
    try:
        removed = rows.delete(partition_of("user_id", user_id))
        rows.forget()
        return removed
    finally:
        rows.close()


def _value(name: str, env: Mapping[str, str]) -> str:
    if name not in env:
        raise ValueError(f"feature_store.yaml: the environment has no {name}; set it, as the service has it")
    return env[name]
