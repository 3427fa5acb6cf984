"""A database that hangs is told apart from one that is slow, by who has no time to wait."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from ledger_cases import KEY
from sqlalchemy import NullPool, create_engine

from qiance.ledger import Ledger, LedgerError, LedgerUnavailableError
from qiance.ledger.database import parse_url
from qiance.ledger.migrate import _ADVISORY_LOCK

SHORT_S = 0.2


@contextmanager
def held(url: str, lock: str) -> Iterator[None]:
    """Another session holds the lock of `budgets`, or that of an upgrade; on SQLite there is but one."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        lock = "BEGIN IMMEDIATE"
    with create_engine(parsed, poolclass=NullPool).connect() as connection:
        connection.exec_driver_sql(lock)
        yield


BUDGETS = "LOCK TABLE budgets IN ACCESS EXCLUSIVE MODE"
UPGRADE = f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"


def outlasts(url: str, lock: str, work: Callable[[], object]) -> None:
    """Asserts that `work` waits for a lock that is held for five times `SHORT_S`, and is done then."""
    with ThreadPoolExecutor(1) as pool:
        with held(url, lock):
            done = pool.submit(work)
            time.sleep(5 * SHORT_S)
            assert not done.done()
        done.result(timeout=20.0)


def test_a_method_that_waits_too_long_says_that_the_ledger_does_not_answer(url: str) -> None:
    ledger = Ledger.open(url, key=KEY, timeout_s=SHORT_S)
    ledger.open_budget("b", 10)
    with held(url, BUDGETS):
        for work in (lambda: ledger.open_budget("b", 11), lambda: ledger.lease("b", 5, "r", 60.0)):
            started = time.monotonic()
            with pytest.raises(LedgerUnavailableError, match="does not answer"):
                work()
            assert SHORT_S * 0.9 < time.monotonic() - started < 1.5
    assert ledger.open_budget("b", 12).cap == 12, "the connection is as good as before"
    ledger.close()


def test_who_has_time_waits(url: str) -> None:
    ledger = Ledger.open(url, key=KEY)
    outlasts(url, BUDGETS, lambda: ledger.open_budget("b", 10))
    assert ledger.budget("b").cap == 10
    ledger.close()


def test_an_upgrade_is_waited_for_however_short_the_timeout(url: str) -> None:
    outlasts(url, UPGRADE, lambda: Ledger.open(url, key=KEY, timeout_s=SHORT_S).close())


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, started = server.getsockname()[1], time.monotonic()
        with pytest.raises(LedgerUnavailableError, match="cannot be opened"):
            Ledger.open(f"postgresql://shop@127.0.0.1:{port}/x", key=KEY, timeout_s=SHORT_S)
        assert time.monotonic() - started < 6.0, "the driver takes two seconds at least"


def test_a_thread_of_this_process_is_not_waited_for_longer(url: str) -> None:
    """SQLite's writers queue in the process before they queue for the file."""
    ledger = Ledger.open(url, key=KEY, timeout_s=SHORT_S)
    ledger.open_budget("b", 10)
    writing, seen = threading.Event(), threading.Event()

    def write() -> None:
        with ledger.write() as connection:
            connection.exec_driver_sql("UPDATE budgets SET cap = 11 WHERE tenant_id = 'default'")
            writing.set()
            assert seen.wait(20.0)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(write)
        assert writing.wait(20.0)
        started = time.monotonic()
        with pytest.raises(LedgerUnavailableError):
            ledger.open_budget("b", 12)
        assert time.monotonic() - started < 1.5
        seen.set()
        job.result()
    assert ledger.budget("b").cap == 11
    ledger.close()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(url: str, bad: float) -> None:
    with pytest.raises(LedgerError, match=r"timeout_s: .* is not a positive number of seconds"):
        Ledger.open(url, key=KEY, timeout_s=bad)
