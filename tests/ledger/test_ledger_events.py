"""Shop events: stored once, for those who agreed, unreadable without the key, and gone when they are old."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from ledger_cases import KEY, NOW
from sqlalchemy import text

from qiance.domain import EventType, Purpose, ShopEvent
from qiance.ledger import Ledger, LedgerError

BOTH = dict.fromkeys(Purpose, True)
ALL = frozenset(Purpose)


def event(number: int, user: str = "a", **changes: Any) -> ShopEvent:
    given: dict[str, Any] = {
        "event_id": f"e{number}",
        "user_id": user,
        "type": EventType.VIEW,
        "occurred_at": NOW + timedelta(seconds=number),
        "item_id": f"item-{number}",
    }
    return ShopEvent(**(given | changes))


def test_only_who_agreed_is_stored_and_repeats_change_nothing(ledger: Ledger) -> None:
    ledger.set_consent("a", {Purpose.PERSONALISATION: True}, by="shop")
    ledger.set_consent("b", {Purpose.LEARNING: True}, by="shop")
    batch = [event(1), event(1), event(2), event(3, "b"), event(4, "never asked"), event(5, item_id=None)]
    first = ledger.record_events(batch)
    assert (first.accepted, first.duplicates, first.without_consent) == (2, 1, 2)
    assert [(r.index, r.code) for r in first.rejected] == [(5, "invalid")]
    assert first.users == ("a",)
    second = ledger.record_events(batch[:3])
    assert (second.accepted, second.duplicates) == (0, 3)
    assert ledger.resolve(["never asked"]) == {}
    found = ledger.recent_events(["a", "b", "never asked"], NOW)
    assert [stored.event for stored in found["a"]] == [event(1), event(2)]
    assert found["b"] == found["never asked"] == []


def test_who_was_never_asked_is_stored_where_the_shop_says_so(ledger: Ledger) -> None:
    ledger.set_consent("no", {Purpose.PERSONALISATION: False}, by="shop")
    receipt = ledger.record_events([event(1, "new"), event(2, "no")], unrecorded=ALL)
    assert (receipt.accepted, receipt.without_consent) == (1, 1)
    assert len(ledger.recent_events(["new"], NOW, unrecorded=ALL)["new"]) == 1
    assert ledger.recent_events(["new"], NOW)["new"] == [], "the rule was made stricter since"


def test_the_newest_come_oldest_first(ledger: Ledger) -> None:
    ledger.set_consents(["a", "b"], BOTH, by="shop")
    ledger.record_events([event(n) for n in (5, 3, 1, 4, 2)] + [event(n + 10, "b") for n in range(3)])
    found = ledger.recent_events(["a", "b"], NOW + timedelta(seconds=2), limit=3)
    assert [stored.event.event_id for stored in found["a"]] == ["e3", "e4", "e5"]
    assert [stored.event.event_id for stored in found["b"]] == ["e10", "e11", "e12"]


def test_every_field_comes_back(url: str) -> None:
    ledger = Ledger.open(url, key=KEY, now=lambda: NOW + timedelta(days=1))
    ledger.set_consent("a", BOTH, by="shop")
    events = [
        event(1, type=EventType.SEARCH, item_id=None, query="咖啡 “dark”"),
        event(2, type=EventType.PURCHASE, value=2**53),
        event(3, type=EventType.CART, value=1),
    ]
    assert ledger.record_events(events).accepted == 3
    found = ledger.recent_events(["a"], NOW)["a"]
    assert [stored.event for stored in found] == events
    assert {stored.received_at for stored in found} == {NOW + timedelta(days=1)}
    table = ledger.shop_events_table()
    assert table["query"].to_pylist() == ["咖啡 “dark”", None, None]
    assert table["value"].to_pylist() == [0, 2**53, 1]
    assert set(table["pseudonym"].to_pylist()) == {ledger.pseudonym("a")}
    ledger.close()


def test_only_who_agreed_to_learning_is_in_the_table(ledger: Ledger) -> None:
    ledger.set_consents(["a", "b"], BOTH, by="shop")
    ledger.record_events([event(1), event(2, "b"), event(3, "b")])
    ledger.set_consent("a", {Purpose.LEARNING: False}, by="shop")
    assert ledger.shop_events_table()["event_id"].to_pylist() == ["e2", "e3"]
    since = NOW + timedelta(seconds=3)
    assert ledger.shop_events_table(since=since)["event_id"].to_pylist() == ["e3"]
    assert ledger.shop_events_table(until=since)["event_id"].to_pylist() == ["e2"]


def test_withdrawn_consent_hides_what_was_stored(ledger: Ledger) -> None:
    ledger.set_consent("a", BOTH, by="shop")
    ledger.record_events([event(1)])
    ledger.set_consent("a", {Purpose.PERSONALISATION: False}, by="shop")
    assert ledger.recent_events(["a"], NOW)["a"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event_id": ""}, "event_id: is empty"),
        ({"user_id": "x" * 201}, "user_id: .* 201 characters"),
        ({"item_id": None}, "item_id: a view is about an item"),
        ({"item_id": "\ud800"}, "item_id: .* half a surrogate"),
        ({"type": EventType.SEARCH, "item_id": None}, "query: a search has words"),
        ({"query": "words"}, "query: only a search has words, not a view"),
        ({"type": EventType.SEARCH, "query": "x" * 257}, "query: .* 257 characters"),
        ({"value": 1}, "value: 1 on a view"),
        ({"type": EventType.PURCHASE, "value": -1}, "value: -1 is not an integer number"),
        ({"occurred_at": datetime(2017, 1, 1)}, "occurred_at: has no time zone"),
    ],
)
def test_malformed_events_are_told(ledger: Ledger, changes: dict[str, Any], message: str) -> None:
    ledger.set_consent("a", BOTH, by="shop")
    receipt = ledger.record_events([event(0), event(1, **changes)])
    assert receipt.accepted == 1
    (rejected,) = receipt.rejected
    assert rejected.index == 1
    assert re.search(message, rejected.detail), rejected.detail


def test_nothing_is_readable_without_the_secret(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    ledger = Ledger.open(url, key=KEY)
    ledger.set_consent("alice@shop", BOTH, by="shop")
    words = "planted words"
    search = event(1, "alice@shop", event_id="alice@shop-1", type=EventType.SEARCH, item_id=None, query=words)
    ledger.record_events([search])
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert words.encode() not in held
    assert b"alice@shop" not in held
    with ledger.write() as connection:
        connection.execute(text("UPDATE shop_events SET type = 'view' WHERE tenant_id = 'default'"))
    with pytest.raises(LedgerError, match="does not fit its row"):
        ledger.recent_events(["alice@shop"], NOW)
    ledger.close()


def test_old_events_are_dropped_by_when_they_came(url: str) -> None:
    clock = [NOW]
    ledger = Ledger.open(url, key=KEY, now=lambda: clock[0])
    ledger.set_consent("a", BOTH, by="shop")
    ledger.record_events([event(1, occurred_at=NOW + timedelta(days=9_000))])
    clock[0] += timedelta(days=2)
    ledger.record_events([event(2, occurred_at=NOW - timedelta(days=9_000))])
    assert ledger.drop_events_before(NOW + timedelta(days=1)) == 1
    assert ledger.shop_events_table()["event_id"].to_pylist() == ["e2"]
    ledger.close()


def test_many_senders_of_the_same_events_store_each_once(ledger: Ledger) -> None:
    users = [f"u{n}" for n in range(20)]
    ledger.set_consents(users, BOTH, by="shop")
    batch = [event(n, users[n % 20]) for n in range(200)]
    with ThreadPoolExecutor(6) as pool:
        receipts = list(pool.map(ledger.record_events, [batch[::-1], batch] * 3))
    assert sum(receipt.accepted for receipt in receipts) == 200
    assert ledger.shop_events_table().num_rows == 200


def test_tenants_do_not_share_events(url: str) -> None:
    one, two = (Ledger.open(url, tenant=name, key=KEY) for name in ("one", "two"))
    for ledger in (one, two):
        ledger.set_consent("a", BOTH, by="shop")
        assert ledger.record_events([event(1)]).accepted == 1
    one.drop_events_before(NOW + timedelta(days=90_000))
    assert one.recent_events(["a"], NOW)["a"] == []
    assert len(two.recent_events(["a"], NOW)["a"]) == 1
    one.close()
    two.close()
