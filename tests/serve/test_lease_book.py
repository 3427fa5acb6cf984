"""A replica's slices of a budget, on a real ledger."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from qiance.ledger import Ledger, LedgerUnavailableError
from serve.leases import DRY_S, RECLAIM_S, SHARE, LeaseBook
from tests.serve.built_cases import START

EXPIRES = START + timedelta(days=7)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", key=bytes(32))
    yield found
    found.close()


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def book(ledger: Ledger, clock: list[float]) -> Iterator[LeaseBook]:
    found = LeaseBook(ledger, "replica", 60.0, clock=lambda: clock[0])
    yield found
    found.close()


def test_what_a_commit_under_way_holds_back_can_be_had_as_soon_as_it_ends(
    ledger: Ledger, book: LeaseBook
) -> None:
    ledger.open_budget("tight", 3)
    assert book.ensure("tight", 3) == 3
    claim = book.take("tight", 2, 0, EXPIRES)
    assert book.ensure("tight", 2) == 0, "the last unit is in a slice that a commit hangs on"
    book.give_back(claim)
    assert book.ensure("tight", 2) == 2, "and not only when a time has passed"


def test_a_budget_that_had_nothing_is_asked_again_after_a_while(
    ledger: Ledger, book: LeaseBook, clock: list[float]
) -> None:
    ledger.open_budget("tight", 5)
    lease = ledger.lease("tight", 5, "another", 60.0)
    assert book.ensure("tight", 1) == 0
    ledger.end_lease(lease.lease_id)
    assert book.ensure("tight", 1) == 0
    clock[0] = DRY_S + 0.01
    assert book.ensure("tight", 1) == 1


def test_slices_are_parts_of_what_is_left_and_go_back_on_close(ledger: Ledger, book: LeaseBook) -> None:
    ledger.open_budget("wide", 80 * SHARE)
    assert book.ensure("wide", 1) == 80
    assert ledger.budget("wide").leased == 80
    book.close()
    assert ledger.budget("wide").leased == 0


@contextmanager
def locked(ledger: Ledger) -> Iterator[None]:
    """Somebody else holds the write lock of the ledger."""
    other = sqlite3.connect(ledger.engine.url.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


def test_a_ledger_that_does_not_end_a_slice_keeps_none_of_the_others(tmp_path: Path) -> None:
    """Claims on slices that were replaced are all settled; what could not be ended goes back by its term."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    url, names = f"sqlite:///{tmp_path / 'ledger.db'}", ("a", "b", "c")
    ledger = Ledger.open(url, key=bytes(32), system_now=lambda: now[0], timeout_s=0.2)
    book = LeaseBook(ledger, "replica", 60.0)
    claims = []
    for name in names:
        ledger.open_budget(name, 80)
        book.ensure(name, 10)
        claims += [book.take(name, 5, 0, EXPIRES), book.take(name, 5, 0, EXPIRES)]
        assert book.ensure(name, 20) == 20, "a larger slice replaces the one that both claims hang on"
    started = time.monotonic()
    with locked(ledger):
        for claim in claims:
            book.give_back(claim)
    assert time.monotonic() - started < 0.2 * len(names), "one that does not answer is not waited for again"
    now[0] += timedelta(seconds=59)
    book.renew()
    now[0] += timedelta(seconds=2)
    assert ledger.reclaim_leases() == len(names), "the old ones were not renewed, the new ones were"
    assert [ledger.budget(name).leased for name in names] == [20, 20, 20]
    book.close()
    ledger.close()


def test_what_a_dead_replica_had_is_there_when_it_is_needed(tmp_path: Path, clock: list[float]) -> None:
    """Not only when leases are next renewed; and a budget that is used up costs no look at every decision."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger.open(url, key=bytes(32), system_now=lambda: now[0])
    ledger.open_budget("tight", 7)
    assert ledger.lease("tight", 6, "dead", 30.0)
    now[0] += timedelta(hours=5)
    book = LeaseBook(ledger, "replica", 3_600.0, clock=lambda: clock[0])
    assert book.ensure("tight", 2) == 2
    assert ledger.budget("tight").leased == 2
    assert book.ensure("tight", 7) == 7
    looks: list[str] = []

    def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
        looks.extend([statement] if "expires_at <=" in statement else [])

    event.listen(ledger.engine, "before_cursor_execute", count)
    for name in ("other", "third"):
        ledger.open_budget(name, 0)
    for _ in range(40):
        clock[0] += DRY_S / 2.0
        assert (book.ensure("other", 1), book.ensure("third", 1)) == (0, 0)
    assert 3 <= len(looks) <= 40 * DRY_S / 2.0 / RECLAIM_S + 1
    book.close()
    ledger.close()


def test_a_slice_that_ran_out_in_an_outage_is_drawn_by_no_more(tmp_path: Path, clock: list[float]) -> None:
    """Others may have its money by the end of the outage; younger slices stay."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger.open(url, key=bytes(32), system_now=lambda: now[0], timeout_s=0.1)
    book = LeaseBook(ledger, "replica", 60.0, clock=lambda: clock[0])
    for name in ("old", "young"):
        ledger.open_budget(name, 8)
    assert book.ensure("old", 8) == 8
    clock[0], now[0] = 40.0, now[0] + timedelta(seconds=40)
    assert book.ensure("young", 8) == 8
    for passed, left in ((19.0, 8), (2.0, 0)):
        clock[0] += passed
        with locked(ledger), pytest.raises(LedgerUnavailableError):
            book.renew()
        now[0] = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=clock[0])
        if ledger.reclaim_leases():
            assert ledger.lease("old", 8, "another", 600.0)
        assert (book.ensure("old", 1), book.ensure("young", 1)) == (left, 8)
    book.close()
    ledger.close()
