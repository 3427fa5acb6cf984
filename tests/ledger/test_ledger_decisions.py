"""The decision log, outcomes and pseudonyms, on both databases."""

from __future__ import annotations

import sqlite3
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import KEY, NOW, MakeDecision

from qiance.domain import CONTROL, Outcome, OutcomeType
from qiance.ledger import DuplicateDecisionError, Ledger, LedgerUnavailableError, Recorded, Reservation

LATER = NOW + timedelta(hours=1)


def event(name: str, decision_id: str, kind: OutcomeType = OutcomeType.CLICK, value: int = 0) -> Outcome:
    return Outcome(name, decision_id, kind, NOW, value)


def test_a_decision_comes_back_as_it_was(ledger: Ledger, make: MakeDecision) -> None:
    decision = make(
        width=300, request_id="r-1", surface="首页", degraded=("predictor",), snapshot="abc", uniform=1 / 3
    )
    assert ledger.record_decision(decision)
    assert ledger.decision(decision.decision_id) == decision
    assert ledger.find_request("r-1") == decision
    assert ledger.decision("nobody") is None
    assert ledger.find_request("nobody") is None
    assert ledger.find_request("nul\x00") is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    score=st.floats(width=32, allow_nan=False),
    probability=st.floats(0, 1, exclude_min=True),
    uniform=st.floats(0, 1),
    moment=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)
def test_numbers_and_times_survive_bit_for_bit(
    ledger: Ledger, make: MakeDecision, score: float, probability: float, uniform: float, moment: datetime
) -> None:
    decision = make(width=1, chosen=0, uniform=uniform, decided_at=moment)
    decision = replace(decision, scores=(score,), probabilities=(probability,))
    ledger.record_decision(decision)
    stored = ledger.decision(decision.decision_id)
    assert stored is not None
    assert struct.pack("<f", stored.scores[0]) == struct.pack("<f", score)
    assert struct.pack("<d", stored.propensity) == struct.pack("<d", probability)
    assert struct.pack("<d", stored.uniform) == struct.pack("<d", uniform)
    assert stored.decided_at == moment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tenant_id": "other"}, "decision.tenant_id: 'other' is not this ledger's tenant"),
        ({"decision_id": ""}, "decision.decision_id: is empty"),
        ({"request_id": "x" * 201}, "decision.request_id: .* 201 characters"),
        ({"surface": "a\x00b"}, "decision.surface: .*NUL"),
        ({"surface": "\ud800"}, "decision.surface: .* surrogate"),
        ({"scores": (1.0,)}, "decision.scores: 1 entries for 4 candidates"),
        ({"scores": (1.0, float("nan"), 0.0, 0.0)}, "decision.scores: NaN"),
        ({"costs": (0.0, float("inf"), 0.0, 0.0)}, "decision.costs"),
        ({"probabilities": (0.5, 1.5, 0.0, 0.0)}, r"decision.probabilities: .* \[0, 1\]"),
        ({"probabilities": (1.0, 0.0, 0.0, 0.0)}, "decision.propensity: 0, yet"),
        ({"chosen": 4}, "decision.chosen: 4 is not an index"),
        ({"chosen": -1}, "decision.chosen: -1 is not an index"),
        ({"decided_at": datetime(2017, 1, 1)}, "decision.decided_at: has no time zone"),
        ({"candidates": ("a", "b", "", "d")}, "decision.candidates: is empty"),
    ],
)
def test_a_decision_that_could_not_be_replayed_is_refused(
    ledger: Ledger, make: MakeDecision, changes: dict[str, Any], message: str
) -> None:
    decision = make(**changes)
    with pytest.raises(ValueError, match=message):
        ledger.record_decision(decision)
    assert ledger.decision(decision.decision_id or "none") is None


def test_a_repeated_request_gets_the_stored_decision(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 100)
    first, second = make(request_id="r"), make(request_id="r")
    assert ledger.record_decision(first, Reservation("b", 10, LATER))
    with pytest.raises(DuplicateDecisionError, match="request_id 'r' is already logged") as caught:
        ledger.record_decision(second, Reservation("b", 10, LATER))
    assert caught.value.stored == first
    with pytest.raises(DuplicateDecisionError):
        ledger.record_decision(first)
    assert ledger.decision(second.decision_id) is None
    assert ledger.budget("b").reserved == 10


def test_concurrent_repeats_make_one_row(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 10_000)
    attempts = [make(request_id=f"r-{number % 5}") for number in range(40)]

    def attempt(number: int) -> str:
        try:
            ledger.record_decision(attempts[number], Reservation("b", 10, LATER))
        except DuplicateDecisionError as duplicate:
            return duplicate.stored.decision_id
        return attempts[number].decision_id

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(40)))
    assert len(set(answers)) == 5
    for number, answer in enumerate(answers):
        stored = ledger.find_request(f"r-{number % 5}")
        assert stored is not None
        assert stored.decision_id == answer
    assert ledger.budget("b").reserved == 50


def test_a_batch_tells_what_became_of_each(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("small", 25)
    batch = [make(request_id=name) for name in ("a", "b", "a", "c", "d")]
    batch.append(batch[1])
    claims = [Reservation("small", 10, LATER)] * 4 + [None, Reservation("small", 1, LATER)]
    stored, refused, duplicate = Recorded.STORED, Recorded.REFUSED, Recorded.DUPLICATE
    results = ledger.record_decisions(batch, claims)
    assert results[1] is stored
    assert sorted([results[0], results[2]]) == sorted([stored, duplicate])
    assert results[3:] == [refused, stored, duplicate]
    assert ledger.find_request("c") is None
    assert ledger.budget("small").reserved == 20
    assert ledger.record_decisions([]) == []
    with pytest.raises(ValueError, match="reservations: 1 for 2 decisions"):
        ledger.record_decisions([make(), make()], [None])


def test_a_large_batch_is_stored_whole(ledger: Ledger, make: MakeDecision) -> None:
    batch = [make(width=2, pseudonym=f"{number % 7:032x}") for number in range(6_000)]
    assert set(ledger.record_decisions(batch)) == {Recorded.STORED}
    outcomes = [event(f"e{number}", decision.decision_id) for number, decision in enumerate(batch)]
    assert ledger.record_outcomes(outcomes).accepted == 6_000
    assert ledger.record_outcomes(outcomes).duplicates == 6_000
    assert ledger.decision_outcomes().column("click").to_pylist() == [1] * 6_000


def test_contacts_count_what_reached_the_user(ledger: Ledger, make: MakeDecision) -> None:
    for hour in range(4):
        ledger.record_decision(make(pseudonym="u1", decided_at=NOW + timedelta(hours=hour)))
    ledger.record_decision(make(pseudonym="u1", chosen=0))
    ledger.record_decision(make(pseudonym="u2"))
    assert ledger.contacts_since("u1", NOW) == 4
    assert ledger.contacts_since("u1", NOW + timedelta(hours=2)) == 2
    shanghai = (NOW + timedelta(hours=2)).astimezone(timezone(timedelta(hours=8)))
    assert ledger.contacts_since("u1", shanghai) == 2
    assert ledger.contacts_since_many(["u1", "u2", "u3"], NOW) == {"u1": 4, "u2": 1, "u3": 0}
    with pytest.raises(ValueError, match="no time zone"):
        ledger.contacts_since("u1", datetime(2017, 1, 1))


def test_outcomes_are_counted_once(ledger: Ledger, make: MakeDecision) -> None:
    decision = make()
    ledger.record_decision(decision)
    known = decision.decision_id
    batch = [
        event("e1", known),
        event("e1", known),
        event("e2", "never-decided"),
        event("e3", known, OutcomeType.CONVERSION, 1999),
        event("", known),
        event("e4\x00", known),
        event("e5", known, OutcomeType.CONVERSION, -5),
        event("e6", known, OutcomeType.CLICK, 5),
        Outcome("e7", known, OutcomeType.CLICK, datetime(2017, 1, 1)),
        event("e8", known, OutcomeType.CONVERSION, 2**70),
    ]
    receipt = ledger.record_outcomes(batch)
    assert (receipt.accepted, receipt.duplicates) == (2, 1)
    told = [(entry.index, entry.code, entry.detail.split(":")[0]) for entry in receipt.rejected]
    assert told == [
        (2, "unknown_decision", "decision_id"),
        (4, "invalid", "event_id"),
        (5, "invalid", "event_id"),
        (6, "invalid", "value"),
        (7, "invalid", "value"),
        (8, "invalid", "occurred_at"),
        (9, "invalid", "value"),
    ]
    again = ledger.record_outcomes(batch[:4])
    assert (again.accepted, again.duplicates, len(again.rejected)) == (0, 3, 1)
    assert ledger.record_outcomes([]).accepted == 0


def test_concurrent_senders_of_the_same_outcomes(ledger: Ledger, make: MakeDecision) -> None:
    decision = make()
    ledger.record_decision(decision)
    events = [event(f"e{number}", decision.decision_id) for number in range(200)]
    with ThreadPoolExecutor(6) as pool:
        receipts = list(pool.map(ledger.record_outcomes, [events, events[::-1]] * 3))
    assert sum(receipt.accepted for receipt in receipts) == 200
    assert sum(receipt.duplicates for receipt in receipts) == 1_000


def test_the_learning_table_joins_outcomes_to_decisions(ledger: Ledger, make: MakeDecision) -> None:
    bought, ignored, old = make(), make(chosen=0, holdout=True), make(decided_at=NOW - timedelta(days=9))
    ledger.record_decisions([ignored, bought, old])
    ledger.record_outcomes(
        [
            event("e1", bought.decision_id, OutcomeType.IMPRESSION),
            event("e2", bought.decision_id),
            event("e3", bought.decision_id, OutcomeType.CONVERSION, 1500),
            event("e4", bought.decision_id, OutcomeType.CONVERSION, 900),
            event("e5", bought.decision_id, OutcomeType.REFUND, 400),
            event("e6", old.decision_id),
        ]
    )
    rows = {row["decision_id"]: row for row in ledger.decision_outcomes(since=NOW).to_pylist()}
    assert rows.keys() == {bought.decision_id, ignored.decision_id}
    won = rows[bought.decision_id]
    assert (won["click"], won["conversion"], won["sales"], won["n_events"]) == (1, 1, 2000, 5)
    assert (won["propensity"], won["decided_at"], won["action_id"]) == (0.25, NOW, "action-1")
    lost = rows[ignored.decision_id]
    assert (lost["click"], lost["sales"], lost["holdout"], lost["action_id"]) == (0, 0, True, CONTROL)
    assert ledger.decision_outcomes().num_rows == 3
    assert ledger.decision_outcomes(until=NOW).column("decision_id").to_pylist() == [old.decision_id]
    empty = ledger.decision_outcomes(until=NOW - timedelta(days=99))
    assert empty.schema == ledger.decision_outcomes().schema
    assert empty.num_rows == 0


def test_pseudonyms_are_made_once_and_never_reveal_the_id(ledger: Ledger) -> None:
    users = [f"user-{number}" for number in range(50)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ledger.pseudonyms, [users, users[::-1]] * 4))
    assert all(answer == answers[0] for answer in answers[::2])
    assert answers[1][::-1] == answers[0]
    assert len(set(answers[0])) == 50
    assert ledger.pseudonym("user-3") == answers[0][3]
    assert ledger.resolve(["user-3", "stranger"]) == {"user-3": answers[0][3]}
    assert ledger.pseudonym("\ud800") == ledger.pseudonym("\ud800")
    with pytest.raises(ValueError, match="user_id: '' is not"):
        ledger.pseudonym("")


def test_two_tenants_share_nothing(url: str, make: MakeDecision) -> None:
    ours, theirs = Ledger.open(url, key=KEY), Ledger.open(url, tenant="other", key=KEY)
    decision = make(request_id="r")
    ours.record_decision(decision)
    ours.open_budget("b", 5)
    ours.set_versions(model="m9")
    token = ours.create_key("shop", ["admin"])
    assert ours.pseudonym("u") != theirs.pseudonym("u")
    assert theirs.decision(decision.decision_id) is None
    assert theirs.find_request("r") is None
    assert theirs.record_outcomes([event("e", decision.decision_id)]).rejected[0].code == "unknown_decision"
    assert theirs.decision_outcomes().num_rows == 0
    assert theirs.versions().model == "none"
    assert theirs.verify_key(token) is None
    assert not theirs.has_keys()
    assert theirs.audit_lines() == []
    with pytest.raises(ValueError, match="budget_id: 'b' is not open"):
        theirs.budget("b")
    assert theirs.record_decision(replace(decision, tenant_id="other"))
    ours.close()
    theirs.close()


def test_the_user_id_is_nowhere_in_the_file(tmp_path: Path, make: MakeDecision) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(f"sqlite:///{path}", key=KEY)
    user = "household-1753-of-the-panel"
    decision = make(pseudonym=ledger.pseudonym(user))
    ledger.record_decision(decision)
    ledger.record_outcomes([event("e", decision.decision_id)])
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert decision.pseudonym.encode() in written
    assert user.encode() not in written
    ledger.close()
    assert user.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_what_was_accepted_survives_a_crash(tmp_path: Path, make: MakeDecision) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger.open(url, key=KEY)
    decision = make()
    ledger.record_decision(decision)
    program = (
        "import os, sys\nfrom datetime import UTC, datetime\nfrom qiance.domain import Outcome, OutcomeType\n"
        "from qiance.ledger import Ledger\n"
        "ledger = Ledger.open(sys.argv[1], key=sys.argv[2].encode())\n"
        "now = datetime(2017, 1, 1, tzinfo=UTC)\n"
        "ledger.record_outcomes([Outcome('e', sys.argv[3], OutcomeType.CLICK, now)])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, url, KEY.decode(), decision.decision_id], check=False
    )
    assert done.returncode == -9
    assert ledger.decision_outcomes().column("n_events").to_pylist() == [1]
    ledger.close()


def test_a_locked_database_is_told_as_unavailable(tmp_path: Path, make: MakeDecision) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(f"sqlite:///{path}", key=KEY)
    with ledger.engine.connect() as connection:  # the one pooled connection that the ledger will reuse
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailableError, match=r"does not answer .*locked"):
        ledger.record_decision(make())
    assert ledger.versions().serial == 0  # reads go on beside a writer
    other.execute("ROLLBACK")
    assert ledger.record_decision(make())
    other.close()
    ledger.close()
