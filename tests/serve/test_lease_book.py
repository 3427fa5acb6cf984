"""A replica's slices of a budget, on a real ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from qiance.ledger import Ledger
from serve.leases import DRY_S, SHARE, LeaseBook
from tests.serve.serve_cases import START

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
