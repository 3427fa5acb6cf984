"""Erasure: what is erased cannot be found in any byte, what it added up to stays, and it stays erased."""

from __future__ import annotations

import random
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from ledger_cases import KEY, NOW, MakeDecision, lease_of, record, record_all, reserve
from sqlalchemy import text

from qiance.domain import Decision, EventType, Outcome, OutcomeType, Purpose, ShopEvent
from qiance.ledger import Claim, ErasedDecisionError, ErasureState, Ledger
from qiance.ledger.schema import metadata

BOTH = dict.fromkeys(Purpose, True)
WORDS = "planted words of a search"


@pytest.fixture
def plain(url: str) -> Iterator[Ledger]:
    """A ledger whose statements nobody watches: tests look into its tables."""
    opened = Ledger.open(url, key=KEY, now=lambda: NOW)
    yield opened
    opened.close()


def search(number: int, user: str) -> ShopEvent:
    return ShopEvent(f"{user}-event-{number}", user, EventType.SEARCH, NOW, query=f"{WORDS} of {user}")


def live(
    ledger: Ledger, make: MakeDecision, user: str, count: int, budget: str | None = None
) -> list[Decision]:
    """A user's life: decisions, reservations, outcomes, consent, events. Ids are built from the user's."""
    decisions = [
        make(
            pseudonym=ledger.pseudonym(user),
            request_id=f"{user}-request-{secrets.token_hex(4)}",
            decided_at=NOW + timedelta(hours=number, minutes=7),
            surface="home" if number % 2 else "email",
        )
        for number in range(count)
    ]
    claims = None
    if budget:
        lease = lease_of(ledger, budget, 100 * count)
        claims = [Claim(lease.lease_id, budget, 100, 30, NOW + timedelta(days=9))] * count
    record_all(ledger, decisions, claims)
    ledger.record_outcomes(
        [
            Outcome(f"{user}-order-{secrets.token_hex(4)}", d.decision_id, kind, d.decided_at, value)
            for d in decisions[::2]
            for kind, value in ((OutcomeType.CLICK, 0), (OutcomeType.CONVERSION, 250))
        ]
    )
    ledger.set_consent(user, BOTH, by="shop")
    ledger.record_events([search(number, user) for number in range(3)])
    return decisions


def totals(ledger: Ledger) -> dict[str, int]:
    """Counts and sums over living and erased users."""
    rows, erased = ledger.decision_outcomes(), ledger.erased_aggregates()
    pairs = {"clicks": "click", "conversions": "conversion", "sales": "sales", "events": "n_events"}
    sums = {name: (pc.sum(rows[column]).as_py() or 0) for name, column in pairs.items()}
    sums["decisions"] = rows.num_rows
    return {name: value + (pc.sum(erased[name]).as_py() or 0) for name, value in sums.items()}


def cells(ledger: Ledger) -> list[str]:
    """Every value of every table, as text."""
    with ledger.engine.connect() as connection:
        return [
            value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for table in metadata.tables
            for row in connection.execute(text(f"SELECT * FROM {table}"))
            for value in row
        ]


def test_a_user_goes_and_the_sums_stay(plain: Ledger, make: MakeDecision) -> None:
    plain.open_budget("b", 10_000)
    gone = live(plain, make, "alice", 6, "b")
    live(plain, make, "bob", 4, "b")
    plain.settle(gone[0].decision_id, 80)
    before, name = totals(plain), plain.pseudonym("alice")
    erasure = plain.erase("alice", by="hotline", reason="asked by letter")
    assert erasure.state is ErasureState.DONE
    assert erasure.removed == {
        "decisions": 6, "outcomes": 6, "reservations": 6, "consents": 4, "shop_events": 3,
        "user_keys": 1, "pseudonyms": 1,
    }  # fmt: skip
    assert totals(plain) == before
    assert plain.decision_outcomes().num_rows == 4, "nothing of the user is left to train on"
    budget = plain.budget("b")
    assert (budget.spent, budget.reserved) == (80 + 5 * 30, 4 * 100), "each ended as at its expiry"
    held = "\n".join(cells(plain))
    assert [word for word in ("alice", name, gone[0].decision_id) if word in held] == []
    assert "bob" in held
    assert plain.resolve(["alice"]) == {}
    assert plain.consents(["alice"]) == {"alice": frozenset()}
    assert plain.consent_history("alice") == []


def test_nothing_says_which_totals_were_one_users(plain: Ledger, make: MakeDecision) -> None:
    live(plain, make, "alice", 30)
    live(plain, make, "bob", 30)
    plain.erase("alice", by="test")
    plain.erase("bob", by="test")
    table = plain.erased_aggregates()
    assert sorted(table["decisions"].to_pylist()) == [12, 12, 18, 18], "two days, two surfaces, both users"
    assert {at.hour for at in table["day"].to_pylist()} == {0}


def test_an_erased_decision_says_so_and_takes_no_more_outcomes(ledger: Ledger, make: MakeDecision) -> None:
    (decision,) = live(ledger, make, "alice", 1)
    ledger.erase("alice", by="test")
    with pytest.raises(ErasedDecisionError, match="is erased with its user; nothing can be told of it"):
        ledger.decision(decision.decision_id)
    assert ledger.decision("never logged") is None
    assert ledger.answered([str(decision.request_id)]) == {}
    late = [
        Outcome("late", decision.decision_id, OutcomeType.CLICK, NOW),
        Outcome("lost", "never logged", OutcomeType.CLICK, NOW),
    ]
    receipt = ledger.record_outcomes(late)
    assert [r.code for r in receipt.rejected] == ["erased_decision", "unknown_decision"]


def test_the_audit_line_names_the_erasure_only(plain: Ledger) -> None:
    plain.set_consent("alice", BOTH, by="shop")
    erasure = plain.erase("alice", by="hotline", reason="asked by letter")
    line = plain.audit_lines()[0]
    assert (line.event, line.subject, line.by) == ("user.erased", erasure.erasure_id, "hotline")
    assert line.detail["reason"] == "asked by letter"
    assert plain.erasures() == [erasure]


@pytest.mark.parametrize(
    ("user", "by", "reason", "message"),
    [
        ("", "x", "", "user_id: '' is not a non-empty text"),
        ("a", "", "", "erasure.by: is empty"),
        ("a.b", "x", "for a.b!", "reason: names the user, and would outlive the erasure"),
        ("a", "x", "y" * 501, "reason: at most 500 characters"),
    ],
)
def test_bad_erasures_are_refused(ledger: Ledger, user: str, by: str, reason: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ledger.erase(user, by, reason)
    assert ledger.erasures() == []


def test_who_was_never_seen_is_listed_all_the_same(ledger: Ledger) -> None:
    """Files that the ledger knows nothing of may hold the user."""
    assert ledger.erase("stranger", by="test").removed == {}
    assert list(ledger.erased_before(["stranger", "other"])) == ["stranger"]


def test_who_comes_back_is_a_stranger(ledger: Ledger, make: MakeDecision) -> None:
    live(ledger, make, "alice", 2)
    name = ledger.pseudonym("alice")
    ledger.erase("alice", by="test")
    assert ledger.record_events([search(1, "alice")]).without_consent == 1
    assert ledger.pseudonym("alice") != name
    ledger.set_consent("alice", BOTH, by="shop")
    assert ledger.record_events([search(1, "alice")]).accepted == 1, "ids of erased events are forgotten too"
    first = ledger.erased_before(["alice"])["alice"]
    ledger.erase("alice", by="test")
    assert ledger.erased_before(["alice"])["alice"] > first


def test_learning_leaves_out_who_did_not_agree(ledger: Ledger, make: MakeDecision) -> None:
    for user in ("yes", "no", "never asked"):
        record(ledger, make(pseudonym=ledger.pseudonym(user)))
    ledger.set_consent("yes", {Purpose.LEARNING: True}, by="shop")
    ledger.set_consent("no", {Purpose.LEARNING: False}, by="shop")
    names = ledger.resolve(["yes", "no", "never asked"])
    rows = ledger.decision_outcomes(learnable_only=True)["pseudonym"].to_pylist()
    assert rows == [names["yes"]]
    rows = ledger.decision_outcomes(learnable_only=True, unrecorded=frozenset(Purpose))["pseudonym"]
    assert set(rows.to_pylist()) == {names["yes"], names["never asked"]}
    assert ledger.decision_outcomes().num_rows == 3


def test_a_pending_erasure_is_one_until_it_is_finished(ledger: Ledger) -> None:
    first = ledger.begin_erasure("alice", by="one")
    assert first.state is ErasureState.PENDING
    ledger.set_consent("alice", BOTH, by="shop")
    again = ledger.begin_erasure("alice", by="two")
    assert again.erasure_id == first.erasure_id
    assert ledger.pending_erasures() == [(first.erasure_id, "alice")]
    stuck = ledger.finish_erasure(first.erasure_id, {"files": 3}, ["files: disk full"])
    assert (stuck.state, stuck.problems) == (ErasureState.PENDING, ("files: disk full",))
    done = ledger.finish_erasure(first.erasure_id, {"files": 2})
    assert (done.state, done.removed["files"], done.problems) == (ErasureState.SCRUBBING, 5, ())
    assert ledger.pending_erasures() == []
    with pytest.raises(ValueError, match="erasure_id: 'x' is not known"):
        ledger.finish_erasure("x")


def test_tenants_do_not_touch_each_other(url: str, make: MakeDecision) -> None:
    one, two = (Ledger.open(url, tenant=name, key=KEY, now=lambda: NOW) for name in ("one", "two"))
    for ledger in (one, two):
        live(ledger, lambda ledger=ledger, **given: make(tenant_id=ledger.tenant, **given), "alice", 3)
    before = two.decision_outcomes()
    one.erase("alice", by="test")
    assert one.decision_outcomes().num_rows == 0
    assert two.decision_outcomes() == before
    assert two.erased_aggregates().num_rows == len(two.erasures()) == 0
    assert two.erased_before(["alice"]) == {}
    assert len(two.recent_events(["alice"], NOW)["alice"]) == 3
    one.close()
    two.close()


def found(folder: Path, words: list[str]) -> list[tuple[str, str]]:
    """(file, word) of every word that a file below `folder` holds, in whatever encoding SQLite stores."""
    return [
        (path.name, word)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for word in words
        if word.encode() in path.read_bytes()
    ]


def test_no_byte_is_left_in_the_files_of_sqlite(tmp_path: Path, make: MakeDecision) -> None:
    """Many rows in random order, so that pages split and rows are moved between them."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'l.db'}", key=KEY, now=lambda: NOW)
    users = [f"user-{number}-x" for number in range(12)]
    words: dict[str, list[str]] = {user: [user] for user in users}
    random.seed(5)
    for _ in range(15):
        for user in random.sample(users, len(users)):
            decisions = live(ledger, make, user, random.randrange(1, 5))
            words[user] += [decision.decision_id for decision in decisions]
    with ledger.read() as connection:
        for table in ("pseudonyms", "user_keys", "shop_events"):
            column = {"pseudonyms": "pseudonym", "user_keys": "hex(wrapped)", "shop_events": "event_key"}[
                table
            ]
            for user, name in ledger.resolve(users).items():
                where = "tenant_id = 'default' AND pseudonym = :name"
                rows = connection.execute(text(f"SELECT {column} FROM {table} WHERE {where}"), {"name": name})
                words[user] += [value for value in rows.scalars() if table != "user_keys"]
                words[user].append(name)
    before = totals(ledger)
    gone = users[:8]
    everything = [word for user in gone for word in words[user]]
    assert {word for _, word in found(tmp_path, everything)} == set(everything)
    for user in gone:
        assert ledger.erase(user, by="test").state is ErasureState.DONE
    assert found(tmp_path, everything) == []
    assert totals(ledger) == before
    assert {word for _, word in found(tmp_path, words[users[9]])} == set(words[users[9]])
    ledger.close()


def test_a_reader_delays_the_end_and_the_next_erasure_makes_up_for_it(
    tmp_path: Path, make: MakeDecision
) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'l.db'}", key=KEY)
    live(ledger, make, "alice", 2)
    begun = ledger.begin_erasure("alice", by="test")
    with ledger.engine.connect() as reader:
        reader.exec_driver_sql("BEGIN")
        reader.exec_driver_sql("SELECT count(*) FROM decisions").scalar()
        ledger.finish_erasure(begun.erasure_id)
        assert not ledger.scrub(patience_s=0.2)
        assert ledger.erasures()[0].state is ErasureState.SCRUBBING
        reader.exec_driver_sql("COMMIT")
    ledger.erase("bob", by="test")
    assert {erasure.state for erasure in ledger.erasures()} == {ErasureState.DONE}
    assert found(tmp_path, ["alice"]) == []
    ledger.close()


def test_a_restored_backup_is_cleaned_by_the_list(tmp_path: Path, make: MakeDecision) -> None:
    file, clock = tmp_path / "l.db", [NOW]

    def open_it() -> Ledger:
        return Ledger.open(f"sqlite:///{file}", key=KEY, now=lambda: clock[0])

    ledger = open_it()
    live(ledger, make, "alice", 3)
    live(ledger, make, "bob", 2)
    live(ledger, make, "carol", 1)
    before = totals(ledger)
    ledger.close()
    shutil.copy(file, tmp_path / "backup")
    clock[0] += timedelta(days=1)
    ledger = open_it()
    ledger.erase("alice", by="test")
    ledger.erase("carol", by="test")
    exported = ledger.export_erasures()
    ledger.close()
    assert "alice" not in str(exported)

    shutil.copy(tmp_path / "backup", file)
    (tmp_path / "backup").unlink()
    ledger = open_it()
    assert len(ledger.resolve(["alice", "bob", "carol"])) == 3, "they are back"
    assert ledger.replay_erasures(exported, by="restore") == 2
    assert list(ledger.resolve(["alice", "bob", "carol"])) == ["bob"]
    assert totals(ledger) == before
    assert set(ledger.erased_before(["alice", "bob"])) == {"alice"}
    assert found(tmp_path, ["alice", "carol"]) == []
    clock[0] += timedelta(days=1)
    name = ledger.pseudonym("alice")
    assert ledger.replay_erasures(exported, by="restore") == 0
    assert ledger.pseudonym("alice") == name, "who came back since is left alone"
    assert {erasure.state for erasure in ledger.erasures()} == {ErasureState.DONE}
    ledger.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tenant": "other"}, "the list is not of tenant 'default' with this ledger's key"),
        ({"key": "0"}, "the list is not of tenant 'default' with this ledger's key"),
        ({"erasures": [{"lookup": "x"}]}, "the list lacks 'erasure_id'; export it again"),
    ],
)
def test_a_list_of_somebody_else_is_refused(ledger: Ledger, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ledger.replay_erasures(ledger.export_erasures() | change)


def test_erasures_amid_traffic_lose_nothing_and_leave_nothing(plain: Ledger, make: MakeDecision) -> None:
    """Decisions, outcomes, events and consent of a user go on while the user is erased again and again."""
    plain.open_budget("b", 10**9)
    stored, stop = [0] * 4, threading.Event()
    names: set[str] = set()

    def traffic(worker: int) -> None:
        while not stop.is_set():
            name = plain.pseudonym("alice")
            names.add(name)
            decision = make(pseudonym=name)
            assert reserve(plain, decision, "b", 100, NOW + timedelta(days=1), certain=30)
            stored[worker] += 1
            plain.record_outcomes(
                [Outcome(decision.decision_id, decision.decision_id, OutcomeType.CLICK, NOW)]
            )
            plain.set_consent("alice", BOTH, by="shop")
            plain.record_events([ShopEvent(decision.decision_id, "alice", EventType.VIEW, NOW, item_id="i")])

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(traffic, worker) for worker in range(4)]
        for _ in range(10):
            plain.begin_erasure("alice", by="test")
        deadline = time.monotonic() + 30
        while len(names) < 2 and time.monotonic() < deadline:
            plain.begin_erasure("alice", by="test")
            time.sleep(0.05)
        stop.set()
        for worker in workers:
            worker.result()
    plain.erase("alice", by="test")
    assert len(names) > 1, "nothing happened meanwhile"
    assert totals(plain)["decisions"] == sum(stored)
    assert plain.decision_outcomes().num_rows == 0
    assert plain.budget("b").reserved == 0
    assert plain.budget("b").spent == 30 * sum(stored)
    with plain.read() as connection:
        for table in (
            "pseudonyms",
            "user_keys",
            "shop_events",
            "consents",
            "consent_changes",
            "reservations",
        ):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 0, table


def test_a_decision_that_was_underway_is_folded_at_once(plain: Ledger, make: MakeDecision) -> None:
    plain.open_budget("b", 1_000)
    name = plain.pseudonym("alice")
    plain.erase("alice", by="test")
    late = make(pseudonym=name)
    assert reserve(plain, late, "b", 100, NOW, certain=10)
    assert plain.erased_aggregates()["decisions"].to_pylist() == [1]
    assert (plain.budget("b").spent, plain.budget("b").reserved) == (10, 0)
    with pytest.raises(ErasedDecisionError):
        plain.decision(late.decision_id)
    assert late.decision_id not in "\n".join(cells(plain))


def test_a_ledger_of_the_first_schema_is_upgraded_with_its_users(tmp_path: Path, make: MakeDecision) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine

    import qiance.ledger

    url = f"sqlite:///{tmp_path / 'l.db'}"
    ledger = Ledger.open(url, key=KEY)
    record(ledger, make(pseudonym=ledger.pseudonym("alice")))
    ledger.close()
    config = Config()
    config.set_main_option("script_location", str(Path(qiance.ledger.__file__).parent / "migrations"))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    engine.dispose()
    ledger = Ledger.open(url, key=KEY)
    assert ledger.erase("alice", by="test").removed["decisions"] == 1
    ledger.close()
