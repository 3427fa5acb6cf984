"""The decision log, outcomes and pseudonyms, on both databases."""

from __future__ import annotations

import sqlite3
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import KEY, LATER, NOW, MakeDecision, actions, lease_of, record, record_all, reserve

from qiance.domain import CONTROL, Outcome, OutcomeType
from qiance.ledger import Claim, Entry, Ledger, LedgerUnavailableError, Recorded


def event(name: str, decision_id: str, kind: OutcomeType = OutcomeType.CLICK, value: int = 0) -> Outcome:
    return Outcome(name, decision_id, kind, NOW, value)


def test_a_decision_comes_back_as_it_was(ledger: Ledger, make: MakeDecision) -> None:
    decision = make(
        width=300, request_id="r-1", surface="首页", degraded=("predictor",), items="abc", uniform=1 / 3,
        user_row=bytes(range(256)), channel="email", epsilon=0.25, shadow_price=1.5, serial=9,
    )  # fmt: skip
    assert record(ledger, decision) is Recorded.STORED
    assert ledger.decision(decision.decision_id) == decision
    assert ledger.answered(["r-1", "nobody", "nul\x00"]) == {"r-1": (decision,)}
    assert ledger.decision("nobody") is None
    assert ledger.candidates(decision.candidate_set) == actions(300)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    score=st.floats(width=32, allow_nan=False, allow_infinity=False),
    probability=st.floats(0, 1, exclude_min=True),
    uniform=st.floats(0, 1, exclude_max=True),
    moment=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)
def test_numbers_and_times_survive_bit_for_bit(
    ledger: Ledger, make: MakeDecision, score: float, probability: float, uniform: float, moment: datetime
) -> None:
    logged = struct.pack("<f", score)
    decision = make(
        width=1, chosen=0, uniform=uniform, decided_at=moment, scores=logged, propensity=probability
    )
    record(ledger, decision)
    stored = ledger.decision(decision.decision_id)
    assert stored is not None
    assert stored.scores == logged
    assert stored.score_row().tobytes() == logged
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
        ({"scores": b"\0" * 12}, "decision.scores: 12 bytes for 4 admissible candidates"),
        ({"scores": struct.pack("<4f", 1, float("nan"), 0, 0)}, "decision.scores: NaN"),
        ({"scores": (0.0,) * 4}, "decision.scores: tuple is not bytes"),
        ({"admissible": b"\x1f"}, "decision.admissible: 1 bytes do not hold 4 bits"),
        ({"admissible": b"\x0f\0"}, "decision.admissible: 2 bytes do not hold 4 bits"),
        ({"admissible": b"\x0e", "scores": b"\0" * 12}, "decision.admissible: column 0 is control"),
        ({"admissible": b"\x0d", "scores": b"\0" * 12}, "decision.chosen: candidate 1 is not admissible"),
        ({"propensity": 0.0}, r"decision.propensity: 0.0 is outside \(0, 1\]"),
        ({"uniform": 1.0}, r"decision.uniform: 1.0 is outside \[0, 1\)"),
        ({"epsilon": 1.5}, r"decision.epsilon: 1.5 is outside \[0, 1\]"),
        ({"shadow_price": float("nan")}, "decision.shadow_price: nan is outside"),
        ({"channel": "none"}, "decision.channel: 'none' does not fit 'action-1'"),
        ({"channel": "fax"}, "decision.channel: 'fax' is not one of email"),
        ({"serial": -1}, "decision.serial: -1"),
        ({"chosen": 4}, "decision.chosen: 4 is not an index"),
        ({"chosen": -1}, "decision.chosen: -1 is not an index"),
        ({"decided_at": datetime(2017, 1, 1)}, "decision.decided_at: has no time zone"),
        ({"candidates": ("a", "b", "c", "d")}, "decision.candidates: are not those of the set"),
        ({"candidate_set": "0" * 32}, "candidate_set: '0000.*' is not stored; call put_candidates first"),
    ],
)
def test_a_decision_that_could_not_be_replayed_is_refused(
    ledger: Ledger, make: MakeDecision, changes: dict[str, Any], message: str
) -> None:
    decision = make(**changes)
    with pytest.raises(ValueError, match=message):
        record(ledger, decision)
    assert ledger.decision(decision.decision_id or "none") is None


def test_a_repeated_request_is_told_and_leaves_nothing(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 100)
    first, second = make(request_id="r"), make(request_id="r")
    assert reserve(ledger, first, "b", 10)
    assert record(ledger, second) is Recorded.DUPLICATE
    assert record(ledger, first) is Recorded.DUPLICATE
    assert not reserve(ledger, replace(first, request_id=None), "b", 10)
    assert ledger.answered(["r"]) == {"r": (first,)}
    assert ledger.decision(second.decision_id) is None
    assert ledger.budget("b").reserved == 10


def test_concurrent_repeats_make_one_row(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 10_000)
    attempts = [make(request_id=f"r-{number % 5}", pseudonym=f"{number:032x}") for number in range(40)]

    def attempt(number: int) -> str:
        if reserve(ledger, attempts[number], "b", 10):
            return attempts[number].decision_id
        (stored,) = ledger.answered([f"r-{number % 5}"])[f"r-{number % 5}"]
        return stored.decision_id

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(40)))
    assert len(set(answers)) == 5
    for number, answer in enumerate(answers):
        (stored,) = ledger.answered([f"r-{number % 5}"])[f"r-{number % 5}"]
        assert stored.decision_id == answer
    assert ledger.budget("b").reserved == 50


def test_a_batch_tells_what_became_of_each(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("small", 25)
    batch = [make(request_id=name) for name in ("a", "b", "a", "c", "d")]
    batch.append(batch[1])
    claim = Claim(lease_of(ledger, "small", 25).lease_id, "small", 10, 0, LATER)
    claims = [claim, claim, claim, claim, None, replace(claim, amount=1)]
    stored, over, duplicate = Recorded.STORED, Recorded.OVER_BUDGET, Recorded.DUPLICATE
    assert record_all(ledger, batch, claims) == [stored, stored, duplicate, over, stored, duplicate]
    assert ledger.answered("abcd").keys() == {"a", "b", "d"}
    assert (ledger.budget("small").reserved, ledger.budget("small").leased) == (25, 5)
    assert ledger.record_slates([]) == []


def test_a_slate_is_stored_whole_or_not_at_all(ledger: Ledger, make: MakeDecision) -> None:
    ledger.open_budget("b", 100)
    ledger.put_candidates(actions(4))
    claim = Claim(lease_of(ledger, "b", 25).lease_id, "b", 10, 0, LATER)
    first = make(request_id="r")
    rest = [make(decision_id=f"{first.decision_id}.{place}", chosen=place) for place in (1, 2, 3)]
    long = tuple(Entry(decision, claim) for decision in (first, *rest))
    assert ledger.record_slates([long]) == [Recorded.OVER_BUDGET]
    assert [ledger.decision(entry.decision.decision_id) for entry in long] == [None] * 4
    assert ledger.record_slates([long[:2], long]) == [Recorded.STORED, Recorded.DUPLICATE]
    assert ledger.answered(["r"]) == {"r": (first, rest[0])}
    assert (ledger.budget("b").reserved, ledger.budget("b").leased) == (25, 5)


def test_answers_of_any_length_come_back_in_order(ledger: Ledger, make: MakeDecision) -> None:
    ledger.put_candidates(actions(60))
    for length in (1, 15, 16, 17, 33):
        names = [f"d{length}" + (f".{place}" if place else "") for place in range(length)]
        positions = [make(width=60, decision_id=name, chosen=place) for place, name in enumerate(names)]
        positions[0] = replace(positions[0], request_id=f"r{length}")
        assert ledger.record_slates([tuple(map(Entry, positions))]) == [Recorded.STORED]
        assert ledger.answered([f"r{length}"]) == {f"r{length}": tuple(positions)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision_id": "other"}, "decision.decision_id: 'other' is not position 1 of"),
        ({"request_id": "again"}, "slate: only its first position has the request_id"),
        ({"pseudonym": "somebody else"}, "slate: only its first position .* all have one pseudonym"),
    ],
)
def test_positions_that_are_not_one_answer_are_refused(
    ledger: Ledger, make: MakeDecision, change: dict[str, str], message: str
) -> None:
    ledger.put_candidates(actions(4))
    first = make()
    second = make(**({"decision_id": f"{first.decision_id}.1"} | change))
    with pytest.raises(ValueError, match=message):
        ledger.record_slates([(Entry(first), Entry(second))])
    with pytest.raises(ValueError, match="slate: has no positions"):
        ledger.record_slates([(Entry(first),), ()])
    assert ledger.decision_outcomes().num_rows == 0


def test_a_large_batch_is_stored_whole(ledger: Ledger, make: MakeDecision) -> None:
    batch = [make(width=2, pseudonym=f"{number % 7:032x}") for number in range(6_000)]
    assert set(record_all(ledger, batch)) == {Recorded.STORED}
    assert set(record_all(ledger, batch)) == {Recorded.DUPLICATE}
    outcomes = [event(f"e{number}", decision.decision_id) for number, decision in enumerate(batch)]
    assert ledger.record_outcomes(outcomes).accepted == 6_000
    assert ledger.record_outcomes(outcomes).duplicates == 6_000
    assert ledger.decision_outcomes().column("click").to_pylist() == [1] * 6_000


def test_candidate_sets_are_stored_once_and_read_by_others(url: str) -> None:
    one, two = Ledger.open(url, key=KEY), Ledger.open(url, key=KEY)
    name = one.put_candidates(actions(5))
    assert one.put_candidates(list(actions(5))) == two.put_candidates(actions(5)) == name
    assert one.put_candidates(actions(6)) != name
    third = Ledger.open(url, key=KEY)
    assert third.candidates(name) == actions(5)
    with pytest.raises(ValueError, match="candidate_set: 'x' is not stored"):
        third.candidates("x")
    for wrong, message in [((), "first action must be control"), (actions(3)[1:], "first action must be")]:
        with pytest.raises(ValueError, match=message):
            one.put_candidates(wrong)
    with pytest.raises(ValueError, match="'action-2' is there twice"):
        one.put_candidates([*actions(3), actions(3)[2]])
    for ledger in (one, two, third):
        ledger.close()


def test_outcomes_are_counted_once(ledger: Ledger, make: MakeDecision) -> None:
    decision = make()
    record(ledger, decision)
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
    record(ledger, decision)
    events = [event(f"e{number}", decision.decision_id) for number in range(200)]
    with ThreadPoolExecutor(6) as pool:
        receipts = list(pool.map(ledger.record_outcomes, [events, events[::-1]] * 3))
    assert sum(receipt.accepted for receipt in receipts) == 200
    assert sum(receipt.duplicates for receipt in receipts) == 1_000


def test_the_learning_table_joins_outcomes_to_decisions(ledger: Ledger, make: MakeDecision) -> None:
    bought, ignored, old = make(), make(chosen=0, holdout=True), make(decided_at=NOW - timedelta(days=9))
    record_all(ledger, [ignored, bought, old])
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
    record(ours, decision)
    ours.open_budget("b", 5)
    ours.set_versions(model="m9")
    token = ours.create_key("shop", ["admin"])
    assert ours.pseudonym("u") != theirs.pseudonym("u")
    assert theirs.decision(decision.decision_id) is None
    assert theirs.answered(["r"]) == {}
    assert theirs.record_outcomes([event("e", decision.decision_id)]).rejected[0].code == "unknown_decision"
    assert theirs.decision_outcomes().num_rows == 0
    assert theirs.versions().model == "none"
    assert theirs.verify_key(token) is None
    assert not theirs.has_keys()
    assert theirs.audit_lines() == []
    with pytest.raises(ValueError, match="budget_id: 'b' is not open"):
        theirs.budget("b")
    assert record(theirs, replace(decision, tenant_id="other")) is Recorded.STORED
    ours.close()
    theirs.close()


def test_the_user_id_is_nowhere_in_the_file(tmp_path: Path, make: MakeDecision) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(f"sqlite:///{path}", key=KEY)
    user = "household-1753-of-the-panel"
    decision = make(pseudonym=ledger.pseudonym(user))
    record(ledger, decision)
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
    record(ledger, decision)
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
        record(ledger, make())
    assert ledger.versions().serial == 0  # reads go on beside a writer
    other.execute("ROLLBACK")
    assert record(ledger, make())
    other.close()
    ledger.close()
