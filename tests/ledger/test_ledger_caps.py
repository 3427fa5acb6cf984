"""Caps on contacts: never passed, whoever records at once, and counted as they are told to the caller."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import KEY, LATER, NOW, MakeDecision, actions, lease_of, record, record_all

from qiance.domain import Cap, Channel
from qiance.ledger import Asker, Claim, Entry, Ledger, Recorded, new_decision_id

DAY = timedelta(days=1)
STORED, OVER_CAP = Recorded.STORED, Recorded.OVER_CAP


def contacts(ledger: Ledger, user: str, at: datetime, *windows: Cap) -> tuple[int, ...]:
    (known,) = ledger.identify([Asker(user, None, at)], windows)
    return known.contacts


def test_contacts_are_counted_per_window_and_channel(ledger: Ledger, make: MakeDecision) -> None:
    name = ledger.pseudonym("u")
    record_all(ledger, [make(pseudonym=name, decided_at=NOW + hour * DAY / 24) for hour in range(4)])
    record_all(ledger, [make(pseudonym=name, channel="push", decided_at=NOW + DAY / 24)])
    record_all(ledger, [make(pseudonym=name, chosen=0), make(pseudonym="2" * 32)])
    any_, mail, push = Cap(0, 7.0), Cap(0, 7.0, Channel.EMAIL), Cap(0, 7.0, Channel.PUSH)
    at = NOW + DAY / 24 * 3
    assert contacts(ledger, "u", at, any_, mail, push) == (5, 4, 1)
    assert contacts(ledger, "u", at, Cap(0, 2 / 24), Cap(0, 1 / 24, Channel.EMAIL)) == (4, 2)
    assert contacts(ledger, "u", NOW + DAY / 24, any_) == (3,), "what comes later is not counted"
    assert contacts(ledger, "u", NOW + 8 * DAY, any_) == (0,)
    assert contacts(ledger, "stranger", at, any_, mail) == (0, 0)
    assert contacts(ledger, "u", at) == ()
    with pytest.raises(ValueError, match="no time zone"):
        contacts(ledger, "u", datetime(2017, 1, 1), any_)


def test_what_would_pass_a_cap_is_refused(ledger: Ledger, make: MakeDecision) -> None:
    caps = [Cap(3, 7.0), Cap(1, 1.0, Channel.PUSH)]
    assert record(ledger, make(channel="push"), caps=caps) is STORED
    assert record(ledger, make(channel="push"), caps=caps) is OVER_CAP
    assert record(ledger, make(channel="push", decided_at=NOW + 2 * DAY), caps=caps) is STORED
    assert record(ledger, make(), caps=caps) is STORED
    assert record(ledger, make(), caps=caps) is OVER_CAP
    assert record(ledger, make(chosen=0), caps=caps) is STORED, "control contacts nobody"
    assert record(ledger, make(pseudonym="1" * 32), caps=caps) is STORED, "another user"
    assert record(ledger, make(decided_at=NOW + 10 * DAY), caps=caps) is STORED, "another week"
    assert record(ledger, make(), caps=[]) is STORED


def test_a_decision_dated_back_is_counted_with_those_after_it(ledger: Ledger, make: MakeDecision) -> None:
    """At most n in any week means also the weeks that end after the decision."""
    cap = [Cap(1, 7.0)]
    assert record(ledger, make(decided_at=NOW), caps=cap) is STORED
    assert record(ledger, make(decided_at=NOW - 6 * DAY), caps=cap) is OVER_CAP
    assert record(ledger, make(decided_at=NOW - 8 * DAY), caps=cap) is STORED


def test_slates_of_one_batch_see_each_other(ledger: Ledger, make: MakeDecision) -> None:
    ledger.put_candidates(actions(4))
    ledger.open_budget("b", 100)
    claim = Claim(lease_of(ledger, "b", 100).lease_id, "b", 10, 0, LATER)
    cap = [Cap(3, 7.0)]

    def slate(size: int, **changes: object) -> tuple[Entry, ...]:
        first = make(**changes)
        rest = [make(decision_id=f"{first.decision_id}.{n}", **changes) for n in range(1, size)]
        return tuple(Entry(decision, claim) for decision in (first, *rest))

    batch = [slate(2), slate(2), slate(1, pseudonym="1" * 32), slate(1), slate(1), slate(1, chosen=0)]
    assert ledger.record_slates(batch, cap) == [STORED, OVER_CAP, STORED, STORED, OVER_CAP, STORED]
    assert ledger.record_slates([slate(4, pseudonym="2" * 32)], cap) == [OVER_CAP]
    assert ledger.decision_outcomes().num_rows == 5
    assert ledger.budget("b").leased == 50, "who was refused took nothing"
    far = [slate(1, pseudonym="3" * 32, decided_at=NOW + n * 8 * DAY) for n in range(5)]
    assert set(ledger.record_slates(far, [Cap(1, 7.0)])) == {STORED}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hours=st.lists(st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=4), max_size=6),
    most=st.integers(0, 4),
    days=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_no_window_ever_holds_more_than_its_cap(
    ledger: Ledger, make: MakeDecision, hours: list[list[tuple[int, bool]]], most: int, days: float
) -> None:
    """Whatever the order of times and the cut into batches; and nothing is refused that would have fitted."""
    name, made = new_decision_id()[:32], []
    caps, width = [Cap(most, days, Channel.EMAIL)], days * 24
    for batch in hours:
        decisions = [
            make(
                width=2,
                decision_id=new_decision_id(),
                pseudonym=name,
                decided_at=NOW + timedelta(hours=hour),
                chosen=int(contact),
            )
            for hour, contact in batch
        ]
        results = record_all(ledger, decisions, caps=caps)
        for (hour, contact), result in zip(batch, results, strict=True):
            near = sum(abs(hour - other) <= width for other in made)
            assert result is (OVER_CAP if contact and near >= most else STORED)
            if contact and result is STORED:
                made.append(hour)
    for start in made:
        assert sum(start <= other <= start + width for other in made) <= most


def test_replicas_at_once_pass_no_cap(url: str, make: MakeDecision) -> None:
    """Eight threads of two replicas, few users, batches: no user is contacted more often than a cap says."""
    replicas = [Ledger.open(url, key=KEY) for _ in range(2)]
    users = [f"{user:032x}" for user in range(3)]
    for user in range(3):
        users[user] = replicas[0].pseudonym(f"u{user}")
    caps = [Cap(5, 7.0), Cap(2, 1.0, Channel.PUSH)]
    replicas[0].put_candidates(actions(4))

    def work(seed: int) -> list[Recorded]:
        dice, ledger, results = random.Random(seed), replicas[seed % 2], []
        for _ in range(12):
            slates = []
            for _ in range(dice.randint(1, 3)):
                channel, user = dice.choice(["email", "push"]), dice.choice(users)
                made = make(
                    decision_id=new_decision_id(),
                    pseudonym=user,
                    channel=channel,
                    request_id=new_decision_id(),
                )
                second = make(decision_id=f"{made.decision_id}.1", pseudonym=user, channel=channel)
                slates.append((Entry(made), Entry(second))[: dice.randint(1, 2)])
            results += ledger.record_slates(slates, caps)
        return results

    with ThreadPoolExecutor(8) as pool:
        results = [result for each in pool.map(work, range(8)) for result in each]
    assert set(results) == {STORED, OVER_CAP}
    rows = [
        known.contacts for known in replicas[1].identify([Asker(f"u{n}", None, NOW) for n in range(3)], caps)
    ]
    assert [any_ for any_, _ in rows] == [5] * 3, "the cap is reached and not passed"
    assert all(push <= 2 for _, push in rows)
    for ledger in replicas:
        ledger.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 7.0), "cap.contacts: -1 is not an integer ≥ 0"),
        ((1.5, 7.0), "cap.contacts: 1.5 is not an integer"),
        ((1, 0.0), r"cap.days: 0.0 is outside \(0, 3650\]"),
        ((1, float("nan")), "cap.days: nan is outside"),
        ((1, 7.0, Channel.NONE), "cap.channel: 'none' is control"),
    ],
)
def test_bad_caps_are_refused(arguments: tuple[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cap(*arguments)
