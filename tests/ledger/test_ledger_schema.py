"""The schema: migrated as the code says, by any number of openers, on a database that is really ours."""

from __future__ import annotations

import multiprocessing
import os
import stat
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from ledger_cases import KEY, MakeDecision, record
from sqlalchemy import create_engine, text

import qiance.ledger
from qiance.domain import Decision
from qiance.ledger import (
    Ledger,
    LedgerError,
    LedgerUnavailableError,
    load_or_create_key,
)
from qiance.ledger.migrate import HEAD, VERSION_TABLE
from qiance.ledger.schema import metadata


def test_every_table_has_a_tenant() -> None:
    for table in metadata.tables.values():
        assert not table.c.tenant_id.nullable, table.name
        for index in table.indexes:
            assert next(iter(index.columns)).name == "tenant_id", f"{index.name} mixes tenants"


def test_the_migrations_lead_to_what_the_code_declares(url: str) -> None:
    ledger = Ledger.open(url, key=KEY)
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    ledger.close()


def test_head_is_the_newest_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(qiance.ledger.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_a_newer_schema_is_refused(url: str) -> None:
    Ledger.open(url, key=KEY).close()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(LedgerError, match=r"revision '0999', newer than this Qiance knows .* upgrade Qiance"):
        Ledger.open(url, key=KEY)


def test_another_key_is_refused(url: str) -> None:
    Ledger.open(url, key=KEY).close()
    with pytest.raises(LedgerError, match="pseudonym_key_file: this is not the key that tenant 'default'"):
        Ledger.open(url, key=KEY[::-1])
    with pytest.raises(LedgerError, match="key: 3 bytes; a pseudonym key has at least 16"):
        Ledger.open(url, key=b"abc")


def test_threads_may_open_at_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        ledgers = list(pool.map(lambda _: Ledger.open(url, key=KEY), range(6)))
    assert {ledger.pseudonym("u") for ledger in ledgers} == {ledgers[0].pseudonym("u")}
    for ledger in ledgers:
        ledger.close()


def open_and_record(url: str, decision: Decision) -> tuple[str, str]:
    ledger = Ledger.open(url, key=KEY)
    record(ledger, decision)
    (answered,) = ledger.answered([str(decision.request_id)])[str(decision.request_id)]
    found = answered.decision_id, ledger.pseudonym("same user")
    ledger.close()
    return found


def test_processes_may_open_and_record_at_once(tmp_path: Path, make: MakeDecision) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    decisions = [make(request_id="the same") for _ in range(2)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(open_and_record, [url] * 2, decisions))
    assert len(set(found)) == 1


def test_sqlite_is_durable_and_checks_its_references(tmp_path: Path) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'deep' / 'er' / 'l.db'}", key=KEY)
    with ledger.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "secure_delete": 1,
        "busy_timeout": 30_000,
    }
    ledger.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "ledger.url: SQLite in memory would lose"),
        ("sqlite:///:memory:", "ledger.url: SQLite in memory would lose"),
        ("mysql://root:secret@host/x", "ledger.url: 'mysql' is not supported; use sqlite"),
        ("not a url with secret", "ledger.url: cannot be read; use sqlite"),
    ],
)
def test_other_databases_are_refused(url: str, message: str) -> None:
    with pytest.raises(LedgerError, match=message) as caught:
        Ledger.open(url, key=KEY)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    path.write_bytes(b"decision,user\n" * 500)
    with pytest.raises(LedgerError, match=r"l\.db is no SQLite database .*; name another file"):
        Ledger.open(f"sqlite:///{path}", key=KEY)


def test_a_server_that_is_not_there_is_told_without_its_password() -> None:
    with pytest.raises(LedgerUnavailableError, match="cannot be opened") as caught:
        Ledger.open("postgresql://shop:secret@127.0.0.1:1/x?connect_timeout=2", key=KEY)
    assert "secret" not in str(caught.value)


def test_the_key_file_is_made_once_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "pseudonym.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(load_or_create_key, [path] * 16))
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["pseudonym.key"]
    path.write_bytes(b"short")
    with pytest.raises(LedgerError, match="holds 5 bytes, a key has at least 16; restore it"):
        load_or_create_key(path)
