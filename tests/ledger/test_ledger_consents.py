"""Consent: what is read is what was said last, per purpose, with its history."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_cases import KEY, NOW

from qiance.domain import Purpose
from qiance.ledger import Asker, Known, Ledger

PERSONALISATION, LEARNING = Purpose.PERSONALISATION, Purpose.LEARNING
BOTH = frozenset(Purpose)


def test_who_was_never_asked_has_agreed_to_what_the_caller_says(ledger: Ledger) -> None:
    assert ledger.consents(["a"]) == {"a": frozenset()}
    assert ledger.consents(["a"], frozenset({LEARNING})) == {"a": {LEARNING}}
    assert ledger.resolve(["a"]) == {}, "asking makes no pseudonym"


def test_each_purpose_stands_alone(ledger: Ledger) -> None:
    ledger.set_consent("a", {PERSONALISATION: True}, by="shop")
    assert ledger.consents(["a"]) == {"a": {PERSONALISATION}}
    assert ledger.consents(["a"], BOTH) == {"a": BOTH}, "learning was never asked about"
    ledger.set_consent("a", {LEARNING: False}, by="shop")
    assert ledger.consents(["a", "b"], BOTH) == {"a": {PERSONALISATION}, "b": BOTH}


def test_pseudonym_and_purposes_come_together(ledger: Ledger) -> None:
    ledger.set_consent("a", {LEARNING: True}, by="shop")
    ledger.set_consent("b", {PERSONALISATION: False}, by="shop")
    found = ledger.identify([Asker(user, None, NOW) for user in ("a", "b", "c", "a")])
    assert [dict(known.purposes) for known in found[:3]] == [{LEARNING: True}, {PERSONALISATION: False}, {}]
    names = ledger.resolve(["a", "b", "c"])
    assert [known.pseudonym for known in found] == [names[user] for user in "abca"]
    assert ledger.known(["a", "stranger"]) == {"a": Known(names["a"], frozenset({LEARNING}))}


def test_every_change_is_kept_with_who_and_when(url: str) -> None:
    ledger = Ledger.open(url, key=KEY, now=lambda: NOW)
    ledger.set_consent("a", {PERSONALISATION: True}, by="shop", at=NOW - timedelta(days=2))
    ledger.set_consent("a", {PERSONALISATION: False}, by="hotline")
    ledger.set_consent("a", {PERSONALISATION: True}, by="late post", at=NOW - timedelta(days=1))
    changes = ledger.consent_history("a")
    assert [(c.granted, c.by, (NOW - c.at).days) for c in changes] == [
        (True, "shop", 2),
        (False, "hotline", 0),
        (True, "late post", 1),
    ]
    assert ledger.consents(["a"]) == {"a": frozenset()}, "what was said last counts, not what came last"
    ledger.close()


@pytest.mark.parametrize(
    ("purposes", "by", "at", "message"),
    [
        ({"spam": True}, "x", None, "purposes: 'spam': True; give true or false for personalisation, learn"),
        ({LEARNING: 1}, "x", None, "purposes: .*: 1; give true or false"),
        ({LEARNING: True}, "", None, "consent.by: is empty"),
        ({LEARNING: True}, "x", datetime(2017, 1, 1), "consent.at: has no time zone"),
        ({LEARNING: True}, "x", NOW + timedelta(days=1), "consent.at: .* has not come yet"),
    ],
)
def test_bad_consent_is_refused(
    url: str, purposes: dict[Purpose, bool], by: str, at: datetime | None, message: str
) -> None:
    ledger = Ledger.open(url, key=KEY, now=lambda: NOW)
    with pytest.raises(ValueError, match=message):
        ledger.set_consent("a", purposes, by, at)
    assert ledger.resolve(["a"]) == {}
    ledger.close()


def test_many_users_at_once(ledger: Ledger) -> None:
    users = [f"user-{number}" for number in range(2_500)]
    started = time.perf_counter()
    ledger.set_consents(users, dict.fromkeys(Purpose, True), by="import")
    took = time.perf_counter() - started
    assert set(ledger.consents(users).values()) == {BOTH}
    assert took < 10.0, f"{took:.1f} s; a second on an idle machine"


def test_tenants_do_not_share_consent(url: str) -> None:
    one, two = (Ledger.open(url, tenant=name, key=KEY) for name in ("one", "two"))
    one.set_consent("a", {LEARNING: True}, by="shop")
    assert two.consents(["a"]) == {"a": frozenset()}
    assert two.consent_history("a") == []
    one.close()
    two.close()


USERS = ("a", "b", "c")
Steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("say"),
            st.lists(st.sampled_from(USERS), min_size=1, max_size=3),
            st.dictionaries(st.sampled_from(list(Purpose)), st.booleans()),
            st.integers(0, 5),
        ),
        st.tuples(st.just("erase"), st.sampled_from(USERS)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=Steps, unrecorded=st.frozensets(st.sampled_from(list(Purpose))))
def test_consent_is_what_a_plain_model_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple], unrecorded: frozenset[Purpose]
) -> None:
    file: Path = tmp_path_factory.mktemp("model") / "l.db"
    ledger = Ledger.open(f"sqlite:///{file}", key=KEY, now=lambda: NOW)
    model: dict[tuple[str, Purpose], tuple[int, bool]] = {}
    for kind, *said in steps:
        if kind == "erase":
            ledger.erase(said[0], by="test")
            model = {place: value for place, value in model.items() if place[0] != said[0]}
            continue
        users, purposes, days = said
        ledger.set_consents(users, purposes, by="test", at=NOW - timedelta(days=days))
        for place in ((user, purpose) for user in users for purpose in purposes):
            if place not in model or -days >= model[place][0]:
                model[place] = (-days, purposes[place[1]])
    expected = {
        user: {purpose for purpose in Purpose if model.get((user, purpose), (0, purpose in unrecorded))[1]}
        for user in USERS
    }
    assert ledger.consents(USERS, unrecorded) == expected
    ledger.close()
