"""Who asks: everything that a decision needs to know of its users, in one read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from ledger_cases import KEY, NOW, MakeDecision, actions, record, record_all

from qiance.domain import Cap, Purpose
from qiance.ledger import Asker, Entry, Ledger


@contextmanager
def counted_reads(ledger: Ledger) -> Iterator[list[int]]:
    """How often a connection is taken for reading or writing."""
    seen, read, write = [0], ledger.read, ledger.write

    @contextmanager
    def counting(method):  # type: ignore[no-untyped-def]
        seen[0] += 1
        with method() as connection:
            yield connection

    ledger.read, ledger.write = lambda: counting(read), lambda: counting(write)  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        ledger.read, ledger.write = read, write  # type: ignore[method-assign]


def test_a_batch_of_known_users_is_one_read(ledger: Ledger, make: MakeDecision) -> None:
    users = [f"u{number}" for number in range(40)]
    names = ledger.pseudonyms(users)
    ledger.set_consent("u3", {Purpose.PERSONALISATION: True, Purpose.LEARNING: False}, by="shop")
    record_all(ledger, [make(pseudonym=names[5], decided_at=NOW - timedelta(days=1))] * 1)
    with counted_reads(ledger) as seen:
        found = ledger.identify([Asker(user, f"new-{user}", NOW) for user in users], [Cap(0, 7.0)])
    assert seen == [1]
    assert [known.pseudonym for known in found] == names
    assert dict(found[3].purposes) == {Purpose.PERSONALISATION: True, Purpose.LEARNING: False}
    assert [place for place, known in enumerate(found) if known.purposes] == [3]
    assert [known.contacts[0] for known in found] == [int(place == 5) for place in range(40)]
    assert not any(known.stored for known in found)


def test_strangers_get_a_pseudonym_once(ledger: Ledger) -> None:
    askers = [Asker(f"u{number % 20}", None, NOW) for number in range(60)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: [who.pseudonym for who in ledger.identify(askers)], range(6)))
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0])) == 20
    assert answers[0][:20] == ledger.pseudonyms([f"u{number}" for number in range(20)])
    assert ledger.identify([]) == []
    with pytest.raises(ValueError, match="user_id: '' is not"):
        ledger.identify([Asker("", None, NOW)])


def test_a_repeated_request_brings_all_its_positions(ledger: Ledger, make: MakeDecision) -> None:
    ledger.put_candidates(actions(4))
    name = ledger.pseudonym("u")
    first = make(pseudonym=name, request_id="r", decision_id="d")
    rest = [make(pseudonym=name, decision_id=f"d.{n}", chosen=n) for n in (1, 2)]
    ledger.record_slates([tuple(map(Entry, (first, *rest)))])
    other = make(request_id="s")
    record(ledger, other)
    askers = [
        Asker("u", "r", NOW),
        Asker("u", None, NOW),
        Asker("somebody else", "r", NOW),
        Asker("u", "s", NOW),
        Asker("u", "nul\x00", NOW),
        Asker("u", "\ud800", NOW),
    ]
    stored = [known.stored for known in ledger.identify(askers)]
    assert stored == [(first, *rest), (), (first, *rest), (other,), (), ()]


def test_ids_in_any_script_are_found(ledger: Ledger, make: MakeDecision) -> None:
    for text in ("用户 '1'", 'a"b\\c', "%s :x {}", "🛒" * 50, "line\nbreak"):
        made = make(request_id=text, pseudonym=ledger.pseudonym(text))
        record(ledger, made)
        (known,) = ledger.identify([Asker(text, text, NOW)], [Cap(0, 1.0)])
        assert known.stored == (made,)
        assert known.contacts == (1,)


def test_a_lookup_finds_its_user_without_the_id(ledger: Ledger) -> None:
    lookups = [ledger.lookup(user) for user in ("a", "b", "a")]
    assert "a" not in lookups
    names = ledger.pseudonyms_of(lookups)
    assert names == [ledger.pseudonym("a"), ledger.pseudonym("b"), ledger.pseudonym("a")]


def test_a_lookup_of_an_erased_user_finds_nobody(url: str) -> None:
    clock = [NOW]
    ledger = Ledger.open(url, key=KEY, now=lambda: clock[0])
    lookup = ledger.lookup("a")
    (before,) = ledger.pseudonyms_of([lookup])
    clock[0] += timedelta(hours=1)
    ledger.erase("a", by="test")
    assert ledger.pseudonyms_of([lookup, ledger.lookup("b")])[0] is None
    assert ledger.resolve(["a"]) == {}, "asking makes no new pseudonym of who is erased"
    early, late = NOW, clock[0] + timedelta(hours=1)
    assert ledger.pseudonyms_of([lookup], [early]) == [None]
    (after,) = ledger.pseudonyms_of([lookup], [late])
    assert after not in (None, before), "who came back is a stranger"
    assert ledger.pseudonyms_of([lookup, lookup], [early, late]) == [None, after]
    assert ledger.pseudonyms_of([lookup]) == [after]
    ledger.close()


def test_identifying_amid_erasures_always_answers(url: str) -> None:
    ledger = Ledger.open(url, key=KEY)
    stop = threading.Event()

    def ask(_: int) -> int:
        count = 0
        while not stop.is_set():
            known = ledger.identify([Asker("a", None, NOW), Asker("b", None, NOW)], [Cap(0, 1.0)])
            assert all(who.pseudonym for who in known)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(ask, number) for number in range(3)]
        for _ in range(10):
            ledger.begin_erasure("a", by="test")
        stop.set()
        assert all(worker.result() for worker in workers)
    ledger.close()
