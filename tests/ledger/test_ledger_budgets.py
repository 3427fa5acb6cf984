"""Budgets: spent + reserved ≤ cap, whatever happens and however many do it at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import KEY, LATER, NOW, MakeDecision, lease_of, record, record_all, reserve

from qiance.ledger import BudgetStatus, Claim, Ledger, Recorded

HOUR = timedelta(hours=1)


def test_a_reservation_is_settled_once(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 100)
    decision = make()
    assert reserve(ledger, decision, "b", 60, NOW + HOUR)
    assert not reserve(ledger, make(), "b", 41, NOW + HOUR)
    assert reserve(ledger, make(), "b", 40, NOW + HOUR)
    assert ledger.settle(decision.decision_id, 25) == 25
    status = ledger.budget("b")
    assert (status.spent, status.reserved, status.left) == (25, 40, 35)
    assert ledger.settle(decision.decision_id, 50) == 25
    assert ledger.budget("b") == status


def test_a_refused_decision_leaves_nothing(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 5)
    claim, decision = Claim(lease_of(ledger, "b", 5).lease_id, "b", 6, 0, LATER), make(request_id="r")
    assert record(ledger, decision, claim) is Recorded.OVER_BUDGET
    assert ledger.decision(decision.decision_id) is None
    assert ledger.answered(["r"]) == {}
    assert ledger.budget("b") == BudgetStatus("b", 5, 0, 5, leased=5)
    with pytest.raises(ValueError, match="holds no reservation"):
        ledger.settle(decision.decision_id, 1)


def test_never_more_is_booked_than_was_reserved(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 100)
    decision = make()
    reserve(ledger, decision, "b", 10, NOW + HOUR)
    assert ledger.settle(decision.decision_id, 99) == 10
    assert ledger.budget("b").spent == 10


def test_expired_reservations_return_and_late_costs_are_booked_if_they_fit(
    ledger: Ledger, make: MakeDecision
) -> None:
    ledger.open_budget("b", 100)
    early, late = make(), make()
    reserve(ledger, early, "b", 60, NOW + HOUR)
    reserve(ledger, late, "b", 40, NOW + 2 * HOUR)
    assert ledger.release_expired(NOW) == 0
    assert ledger.release_expired(NOW + HOUR) == 1
    assert ledger.release_expired(NOW + HOUR) == 0
    assert ledger.budget("b").reserved == 40
    assert reserve(ledger, make(), "b", 50, NOW + 9 * HOUR)
    assert ledger.settle(early.decision_id, 30) == 0
    assert ledger.audit_lines(1)[0].event == "budget.late_cost_not_booked"
    assert ledger.release_expired(NOW + 2 * HOUR) == 1
    assert ledger.settle(late.decision_id, 30) == 30
    assert ledger.budget("b").spent == 30


def test_many_are_settled_in_one_transaction(ledger: Ledger, make: MakeDecision) -> None:
    for name in ("x", "y"):
        ledger.open_budget(name, 1_000)
    batch = [make() for _ in range(40)]
    leases = {name: lease_of(ledger, name, 200).lease_id for name in "xy"}
    claims = [Claim(leases[name], name, 10, 0, LATER) for name in "xy" * 20]
    record_all(ledger, batch, claims)
    booked = ledger.settle_many({decision.decision_id: 7 for decision in batch})
    assert set(booked.values()) == {7}
    assert ledger.budget("x").spent == ledger.budget("y").spent == 140
    assert ledger.budget("x").reserved == 0
    with pytest.raises(ValueError, match="'nobody' holds no reservation"):
        ledger.settle_many({batch[0].decision_id: 7, "nobody": 1})


def test_concurrent_settlements_of_one_decision_book_once(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 1_000)
    for _ in range(5):
        before = ledger.budget("b").spent
        decision = make(width=2)
        reserve(ledger, decision, "b", 50, NOW + HOUR)

        def settle(amount: int, decision_id: str = decision.decision_id) -> int:
            if amount == 13:
                ledger.release_expired(NOW + HOUR)
            return ledger.settle(decision_id, amount)

        with ThreadPoolExecutor(8) as pool:
            booked = set(pool.map(settle, range(10, 18)))
        assert len(booked) == 1
        status = ledger.budget("b")
        assert (status.spent, status.reserved) == (before + booked.pop(), 0)


def test_a_cap_moves_but_not_below_what_is_committed(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 100)
    reserve(ledger, make(), "b", 60, NOW + HOUR)
    assert ledger.open_budget("b", 60).cap == 60
    with pytest.raises(ValueError, match="cap: 59 is below what budget 'b' has spent and reserved"):
        ledger.open_budget("b", 59)
    assert ledger.open_budget("b", 500).left == 440


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"amount": -1}, "claim.amount: -1 is not"),
        ({"amount": 1.5}, "claim.amount: 1.5 is not"),
        ({"amount": True}, "claim.amount: True is not"),
        ({"certain": 5}, r"claim\.certain: 5 is more than the amount 4"),
        ({"budget_id": ""}, "claim.budget_id: is empty"),
        ({"lease_id": "\x00"}, "claim.lease_id: .*NUL"),
        ({"expires_at": datetime(2017, 1, 1)}, "claim.expires_at: has no time zone"),
        ({"budget_id": "other"}, "claim.budget_id: 'other', but the lease is of 'b'"),
    ],
)
def test_bad_claims_are_refused_whole(
    ledger: Ledger, make: MakeDecision, changes: dict[str, Any], message: str
) -> None:
    ledger.open_budget("b", 10)
    claim = Claim(lease_of(ledger, "b", 4).lease_id, "b", 4, 0, LATER)
    good, bad = make(), make()
    with pytest.raises(ValueError, match=message):
        record_all(ledger, [good, bad], [claim, replace(claim, **changes)])
    assert ledger.decision(good.decision_id) is ledger.decision(bad.decision_id) is None
    assert ledger.budget("b").leased == 4


def test_bad_amounts_name_the_field(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="cap: -1 is not"):
        ledger.open_budget("b", -1)
    with pytest.raises(ValueError, match="amount of 'd': nan is not"):
        ledger.settle("d", float("nan"))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    path: Path = tmp_path_factory.mktemp("budgets") / "ledger.db"
    ledger = Ledger.open(f"sqlite:///{path}", key=KEY)
    yield ledger
    ledger.close()


OPERATION = st.one_of(
    st.tuples(st.just("reserve"), st.integers(0, 60), st.integers(1, 9)),
    st.tuples(st.just("settle"), st.integers(0, 30), st.integers(0, 80)),
    st.tuples(st.just("release"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("cap"), st.integers(0, 200), st.just(0)),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=st.lists(OPERATION, max_size=30))
def test_any_history_agrees_with_a_plain_model(
    shared: Ledger, make: MakeDecision, operations: list[tuple[str, int, int]]
) -> None:
    """A model in a few lines of Python books the same as the ledger after every step."""
    budget = make().decision_id
    cap, spent = 100, 0
    held: list[dict[str, Any]] = []
    shared.open_budget(budget, cap)
    for operation, first, second in operations:
        reserved = sum(entry["amount"] for entry in held if entry["state"] == "open")
        if operation == "reserve":
            decision = make(width=2)
            expires = NOW + second * HOUR
            admitted = reserve(shared, decision, budget, first, expires)
            assert admitted == (spent + reserved + first <= cap)
            if admitted:
                held.append({"id": decision.decision_id, "amount": first, "due": expires, "state": "open"})
        elif operation == "settle" and held:
            entry = held[first % len(held)]
            booked = shared.settle(entry["id"], second)
            if entry["state"] == "settled":
                assert booked == entry["booked"]
                continue
            wanted = min(second, entry["amount"])
            fits = entry["state"] == "open" or spent + reserved + wanted <= cap
            assert booked == (wanted if fits else 0)
            spent += booked
            entry |= {"state": "settled", "booked": booked}
        elif operation == "release":
            shared.release_expired(NOW + first * HOUR)
            for entry in held:
                if entry["state"] == "open" and entry["due"] <= NOW + first * HOUR:
                    entry["state"] = "released"
        elif operation == "cap" and first >= spent + reserved:
            shared.open_budget(budget, first)
            cap = first
        status = shared.budget(budget)
        reserved = sum(entry["amount"] for entry in held if entry["state"] == "open")
        assert (status.cap, status.spent, status.reserved) == (cap, spent, reserved)
        assert status.spent + status.reserved <= status.cap


def test_eight_threads_never_pass_the_cap(ledger: Ledger, make: MakeDecision) -> None:
    for name in ("x", "y"):
        ledger.open_budget(name, 500)
    seen: list[bool] = []

    def work(seed: int) -> int:
        dice = random.Random(seed)
        mine: list[str] = []
        booked = 0
        for _ in range(40):
            turn = dice.random()
            if turn < 0.6 or not mine:
                decision = make(width=2)
                if reserve(ledger, decision, dice.choice("xy"), dice.randint(0, 40)):
                    mine.append(decision.decision_id)
            elif turn < 0.95:
                settled = mine.pop(dice.randrange(len(mine)))
                booked += ledger.settle(settled, dice.randint(0, 60))
            else:
                ledger.release_expired(NOW + dice.choice([0, 2]) * HOUR)
            for name in ("x", "y"):
                status = ledger.budget(name)
                seen.append(status.spent + status.reserved <= status.cap)
        return booked

    with ThreadPoolExecutor(8) as pool:
        booked = sum(pool.map(work, range(8)))
    assert all(seen)
    assert booked == ledger.budget("x").spent + ledger.budget("y").spent
    ledger.release_expired(NOW + 9 * HOUR)
    assert ledger.budget("x").reserved == ledger.budget("y").reserved == 0


def test_what_is_certain_stays_booked_when_a_reservation_expires(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 100)
    late = make()
    assert reserve(ledger, late, "b", 40, NOW + HOUR, certain=3)
    assert ledger.release_expired(NOW + HOUR) == 1
    assert (ledger.budget("b").spent, ledger.budget("b").reserved) == (3, 0)
    assert ledger.settle(late.decision_id, 40) == 40, "a late conversion books what is missing to the whole"
    assert ledger.budget("b").spent == 40
