"""Leases: spent + reserved ≤ cap, no minor unit is lost, and what a dead holder had comes back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ledger_cases import KEY, LATER, NOW, MakeDecision, actions, lease_of, record, record_all
from sqlalchemy import func, select

from qiance.ledger import BudgetStatus, Claim, Entry, Lease, Ledger, Recorded, new_decision_id
from qiance.ledger.schema import leases, reservations


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self):  # type: ignore[no-untyped-def]
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(url: str, clock: Clock) -> Iterator[Ledger]:
    """A ledger whose leases run out by `clock`."""
    opened = Ledger.open(url, key=KEY, system_now=clock)
    opened.open_budget("b", 100)
    yield opened
    opened.close()


def claim(lease: Lease, amount: int, certain: int = 0) -> Claim:
    return Claim(lease.lease_id, lease.budget_id, amount, certain, LATER)


def balance(ledger: Ledger, budget: str = "b") -> tuple[int, int, int]:
    """(spent, reserved, leased), after comparing `reserved` with the rows that it is the sum of."""
    status = ledger.budget(budget)
    with ledger.engine.connect() as connection:
        held = connection.execute(
            select(func.coalesce(func.sum(reservations.c.amount), 0)).where(
                reservations.c.tenant_id == ledger.tenant,
                reservations.c.budget_id == budget,
                reservations.c.state == "open",
            )
        ).scalar_one()
        unused = connection.execute(
            select(func.coalesce(func.sum(leases.c.amount - leases.c.used), 0)).where(
                leases.c.tenant_id == ledger.tenant, leases.c.budget_id == budget
            )
        ).scalar_one()
    assert status.reserved == int(held) + int(unused)
    assert status.leased == int(unused)
    assert status.spent + status.reserved <= status.cap
    return status.spent, status.reserved, status.leased


def test_a_lease_is_handed_out_bit_by_bit_and_ends(timed: Ledger, make: MakeDecision) -> None:
    lease = lease_of(timed, "b", 60)
    assert timed.lease("b", 41, "other", 5.0) is None
    assert (lease.budget_id, lease.amount, lease.expires_at) == ("b", 60, NOW + timedelta(seconds=600))
    first, second = make(), make()
    assert record(timed, first, claim(lease, 25, certain=5)) is Recorded.STORED
    assert record(timed, second, claim(lease, 30)) is Recorded.STORED
    assert record(timed, make(), claim(lease, 6)) is Recorded.OVER_BUDGET
    assert balance(timed) == (0, 60, 5)
    assert timed.settle(first.decision_id, 20) == 20
    assert balance(timed) == (20, 35, 5)
    assert timed.end_lease(lease.lease_id) == 5
    assert timed.end_lease(lease.lease_id) == 0
    assert record(timed, make(), claim(lease, 0)) is Recorded.OVER_BUDGET, "not even nothing"
    assert balance(timed) == (20, 30, 0)
    assert timed.budget("b") == BudgetStatus("b", 100, 20, 30)


def test_what_a_dead_holder_did_not_use_comes_back(timed: Ledger, make: MakeDecision, clock: Clock) -> None:
    dead, alive = timed.lease("b", 60, "dead", 10.0), timed.lease("b", 40, "alive", 10.0)
    assert dead is not None
    assert alive is not None
    assert record(timed, make(), claim(dead, 15)) is Recorded.STORED
    clock.move(9.0)
    assert timed.renew([alive.lease_id, "never was"], 10.0) == {alive.lease_id}
    assert timed.reclaim_leases() == 0
    clock.move(1.0)
    assert record(timed, make(), claim(dead, 1)) is Recorded.OVER_BUDGET, "its term is over"
    assert timed.renew([dead.lease_id, alive.lease_id], 10.0) == {alive.lease_id}
    assert balance(timed) == (0, 100, 85), "nothing is back before it is reclaimed"
    assert timed.reclaim_leases() == 1
    assert timed.reclaim_leases() == 0
    assert balance(timed) == (0, 55, 40)
    assert lease_of(timed, "b", 45).amount == 45
    assert record(timed, make(), claim(alive, 40)) is Recorded.STORED


def test_all_that_one_holder_has_can_be_ended(timed: Ledger, make: MakeDecision) -> None:
    timed.open_budget("c", 100)
    lease_of(timed, "b", 30, "mine")
    used = lease_of(timed, "b", 20, "mine")
    lease_of(timed, "c", 40, "mine")
    lease_of(timed, "b", 25, "mine too")
    assert record(timed, make(), claim(used, 15)) is Recorded.STORED
    assert timed.end_leases_of("mine") == 30 + 5 + 40
    assert timed.end_leases_of("mine") == timed.end_leases_of("nobody") == 0
    assert (balance(timed, "b"), balance(timed, "c")) == ((0, 15 + 25, 25), (0, 0, 0))


def test_leases_run_in_the_time_of_the_machines(url: str, make: MakeDecision) -> None:
    """A shop whose time is simulated, years away, leases for real seconds."""
    ledger = Ledger.open(url, key=KEY, now=lambda: NOW - timedelta(days=4_000))
    ledger.open_budget("b", 10)
    lease = ledger.lease("b", 10, "r", 3600.0)
    assert lease is not None
    assert record(ledger, make(decided_at=NOW), claim(lease, 4)) is Recorded.STORED
    assert ledger.renew([lease.lease_id], 3600.0) == {lease.lease_id}
    assert ledger.reclaim_leases() == 0
    ledger.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("never", 1, "r", 1.0), "budget_id: 'never' is not open; call open_budget first"),
        (("b", -1, "r", 1.0), "amount: -1 is not an integer number"),
        (("b", 1.5, "r", 1.0), "amount: 1.5 is not an integer number"),
        (("b", 1, "", 1.0), "holder: is empty"),
        (("b", 1, "r", 0.0), r"term_s: 0.0 is outside \(0, 86400\] seconds"),
        (("b", 1, "r", float("nan")), "term_s: nan is outside"),
    ],
)
def test_bad_leases_are_refused(timed: Ledger, arguments: tuple[str, int, str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timed.lease(*arguments)
    assert balance(timed) == (0, 0, 0)


def test_a_cap_cannot_be_moved_below_what_is_leased(timed: Ledger) -> None:
    lease = lease_of(timed, "b", 60)
    with pytest.raises(ValueError, match="cap: 59 is below what budget 'b' has spent and reserved"):
        timed.open_budget("b", 59)
    timed.end_lease(lease.lease_id)
    assert timed.open_budget("b", 0).left == 0


def test_one_batch_takes_from_several_leases_in_order(timed: Ledger, make: MakeDecision) -> None:
    timed.open_budget("c", 100)
    one, two = lease_of(timed, "b", 10), lease_of(timed, "c", 30)
    taken = [claim(one, 6), claim(two, 20), claim(one, 5), None, claim(one, 4), claim(two, 11)]
    results = record_all(timed, [make() for _ in taken], taken)
    stored, over = Recorded.STORED, Recorded.OVER_BUDGET
    assert results == [stored, stored, over, stored, stored, over]
    assert balance(timed) == (0, 10, 0)
    assert balance(timed, "c") == (0, 30, 10)


def test_eight_holders_never_pass_the_cap(url: str, make: MakeDecision) -> None:
    """Each holder dies now and then; what they leave is reclaimed by whoever comes by."""
    clock = Clock()
    ledger = Ledger.open(url, key=KEY, system_now=clock)
    for name in ("b", "c"):
        ledger.open_budget(name, 500)
    ledger.put_candidates(actions(2))

    def work(seed: int) -> int:
        dice, booked = random.Random(seed), 0
        held: list[Lease] = []
        open_: list[str] = []
        for _ in range(40):
            turn = dice.random()
            if turn < 0.3 or not held:
                lease = ledger.lease(
                    dice.choice("bc"), dice.randint(1, 90), f"r{seed}", dice.choice([1.0, 9.0])
                )
                held += [lease] if lease else []
            elif turn < 0.7:
                slates = [
                    (Entry(make(width=2, decision_id=new_decision_id()), claim(lease, dice.randint(0, 30))),)
                    for lease in dice.choices(held, k=dice.randint(1, 3))
                ]
                for slate, result in zip(slates, ledger.record_slates(slates), strict=True):
                    assert result in (Recorded.STORED, Recorded.OVER_BUDGET)
                    open_ += [slate[0].decision.decision_id] if result is Recorded.STORED else []
            elif turn < 0.8 and open_:
                booked += ledger.settle(open_.pop(), dice.randint(0, 40))
            elif turn < 0.85:
                clock.move(1.0)
                ledger.reclaim_leases()
            elif turn < 0.9:
                held = [
                    lease for lease in held if lease.lease_id in ledger.renew([h.lease_id for h in held], 5.0)
                ]
            elif turn < 0.95:
                ledger.end_lease(held.pop().lease_id)
            else:
                held.clear()  # it died
            for name in ("b", "c"):
                status = ledger.budget(name)
                assert status.spent + status.reserved <= status.cap
        return booked

    with ThreadPoolExecutor(8) as pool:
        booked = sum(pool.map(work, range(8)))
    assert booked == balance(ledger, "b")[0] + balance(ledger, "c")[0]
    clock.move(99.0)
    ledger.reclaim_leases()
    ledger.release_expired(LATER)
    for name in ("b", "c"):
        assert balance(ledger, name)[1:] == (0, 0), "everything that was not spent is back"
    ledger.close()


class Histories(RuleBasedStateMachine):
    """Any history of leases, claims, settlements, expiries and deaths against a plain model."""

    ledger: Ledger
    make: MakeDecision

    @initialize(cap=st.integers(0, 300))
    def start(self, cap: int) -> None:
        self.clock = Clock()
        self.ledger._system_now = self.clock  # one database for all histories, each with a budget of its own
        self.budget = new_decision_id()
        self.ledger.open_budget(self.budget, cap)
        self.cap, self.spent = cap, 0
        self.leases: list[dict] = []  # type: ignore[type-arg]
        self.open: list[dict] = []  # type: ignore[type-arg]

    def reserved(self) -> int:
        return sum(r["amount"] for r in self.open) + sum(e["left"] for e in self.leases)

    @rule(amount=st.integers(0, 120), term=st.integers(1, 20))
    def lease(self, amount: int, term: int) -> None:
        lease = self.ledger.lease(self.budget, amount, "r", float(term))
        assert (lease is not None) == (self.spent + self.reserved() + amount <= self.cap)
        if lease is not None:
            due = self.clock.now + timedelta(seconds=term)
            self.leases.append({"lease": lease, "left": amount, "due": due})

    @rule(picks=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50), st.integers(0, 5)), max_size=4))
    def claim(self, picks: list[tuple[int, int, int]]) -> None:
        known = [entry["lease"] for entry in self.leases]
        if not known:
            return
        wanted = [(known[n % len(known)], amount, min(amount, certain)) for n, amount, certain in picks]
        slates = [
            (Entry(self.make(width=2, decision_id=new_decision_id()), claim(lease, amount, certain)),)
            for lease, amount, certain in wanted
        ]
        results = self.ledger.record_slates(slates)
        for slate, (lease, amount, certain), result in zip(slates, wanted, results, strict=True):
            entry = next(entry for entry in self.leases if entry["lease"] is lease)
            fits = entry["due"] > self.clock.now and amount <= entry["left"]
            assert result is (Recorded.STORED if fits else Recorded.OVER_BUDGET)
            if fits:
                entry["left"] -= amount
                name = slate[0].decision.decision_id
                self.open.append({"id": name, "amount": amount, "certain": certain})

    @rule(pick=st.integers(0, 9), amount=st.integers(0, 80))
    def settle(self, pick: int, amount: int) -> None:
        if self.open:
            held = self.open.pop(pick % len(self.open))
            booked = self.ledger.settle(held["id"], amount)
            assert booked == min(amount, held["amount"])
            self.spent += booked

    @rule()
    def expire_reservations(self) -> None:
        self.ledger.release_expired(LATER)
        self.spent += sum(held["certain"] for held in self.open)
        self.open.clear()

    @rule(pick=st.integers(0, 9))
    def end(self, pick: int) -> None:
        if self.leases:
            entry = self.leases.pop(pick % len(self.leases))
            assert self.ledger.end_lease(entry["lease"].lease_id) == entry["left"]

    @rule(seconds=st.integers(1, 10))
    def pass_time(self, seconds: int) -> None:
        self.clock.move(float(seconds))

    @rule(term=st.integers(1, 20))
    def renew(self, term: int) -> None:
        alive = [entry for entry in self.leases if entry["due"] > self.clock.now]
        renewed = self.ledger.renew([entry["lease"].lease_id for entry in self.leases], float(term))
        assert renewed == {entry["lease"].lease_id for entry in alive}
        for entry in alive:
            entry["due"] = self.clock.now + timedelta(seconds=term)

    @rule()
    def reclaim(self) -> None:
        due = [entry for entry in self.leases if entry["due"] <= self.clock.now]
        assert self.ledger.reclaim_leases() >= len(due)  # those of earlier histories among them
        self.leases = [entry for entry in self.leases if entry not in due]

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "budget"):
            leased = sum(entry["left"] for entry in self.leases)
            assert balance(self.ledger, self.budget) == (self.spent, self.reserved(), leased)


def test_any_history_agrees_with_a_plain_model(tmp_path: Path, make: MakeDecision) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'l.db'}", key=KEY)
    ledger.put_candidates(actions(2))
    machine = type("Machine", (Histories,), {"ledger": ledger, "make": staticmethod(make)})
    case = machine.TestCase()
    case.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
    case.runTest()
    ledger.close()
