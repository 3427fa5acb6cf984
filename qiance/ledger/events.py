"""Shop events of users who agreed to them, encrypted under a key of each user."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Select, and_, bindparam, delete, func, select

from qiance.domain import EventType, Purpose, ShopEvent
from qiance.ledger.consent_rules import granted
from qiance.ledger.consents import Consents
from qiance.ledger.database import chunks, insert_ignoring, text_problem
from qiance.ledger.records import EventReceipt, Known, RejectedEvent, StoredEvent
from qiance.ledger.schema import pseudonyms, shop_events, to_micros, user_keys
from qiance.ledger.sealing import Sealer, seal, unseal

MOST_MINOR_UNITS = 2**53
MOST_WORDS = 256  # characters of a search
_VALUED = (EventType.CART, EventType.PURCHASE)
_KEYS = select(user_keys.c.pseudonym, user_keys.c.wrapped).where(
    user_keys.c.tenant_id == bindparam("tenant"),
    user_keys.c.pseudonym.in_(bindparam("names", expanding=True)),
)
_OF_USER = and_(
    user_keys.c.tenant_id == shop_events.c.tenant_id, user_keys.c.pseudonym == shop_events.c.pseudonym
)

EVENTS_SCHEMA = pa.schema(
    [
        ("pseudonym", pa.string()),
        ("event_id", pa.string()),
        ("type", pa.string()),
        ("occurred_at", pa.timestamp("us", tz="UTC")),
        ("received_at", pa.timestamp("us", tz="UTC")),
        ("item_id", pa.string()),
        ("query", pa.string()),
        ("value", pa.int64()),
    ]
)


class Events(Consents):
    """Recording shop events and reading them back."""

    @cached_property
    def _sealer(self) -> Sealer:
        return Sealer(self._key, self.tenant)

    def record_events(
        self, batch: Sequence[ShopEvent], unrecorded: frozenset[Purpose] = frozenset()
    ) -> EventReceipt:
        """Stores shop events in one transaction; what is counted as accepted is durable.

        An event id seen before, in this batch or an earlier one, is a duplicate and changes nothing. Events
        of users who did not agree to personalisation are not stored. Malformed ones are rejected
        (`invalid`). unrecorded: the purposes that a user who was never asked counts as having agreed to.
        """
        rejected = [
            RejectedEvent(index, "invalid", problem)
            for index, event in enumerate(batch)
            if (problem := _problem(event)) is not None
        ]
        bad = {entry.index for entry in rejected}
        sound = [event for index, event in enumerate(batch) if index not in bad]
        with self.write() as connection:
            users = self._agreeing(connection, {event.user_id for event in sound}, unrecorded)
            wanted = [event for event in sound if event.user_id in users]
            accepted = self._insert_events(connection, wanted, users)
        return EventReceipt(
            accepted,
            len(wanted) - accepted,
            len(sound) - len(wanted),
            rejected,
            tuple(dict.fromkeys(event.user_id for event in wanted)),
        )

    def recent_events(
        self,
        user_ids: Sequence[str],
        since: datetime,
        limit: int = 50,
        unrecorded: frozenset[Purpose] = frozenset(),
    ) -> dict[str, list[StoredEvent]]:
        """The newest `limit` events of each user at or after `since`, oldest first; one query.

        Every user asked for is in the answer; those who do not agree to personalisation have none.
        """
        lookups = {self._lookup(user_id): user_id for user_id in user_ids}
        found: dict[str, list[StoredEvent]] = {user_id: [] for user_id in user_ids}
        keys: dict[str, bytes] = {}
        statement = _recent(Purpose.PERSONALISATION in unrecorded)
        with self.read() as connection:
            for part in chunks(list(lookups)):
                asking = self._asking(part) | {"since": since, "most": limit}
                for row in connection.execute(statement, asking):
                    user_id = lookups[row.lookup]
                    found[user_id].append(self._stored(row, user_id, keys))
        return found

    def shop_events_table(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        unrecorded: frozenset[Purpose] = frozenset(),
    ) -> pa.Table:
        """Events that occurred in [since, until), oldest first (EVENTS_SCHEMA).

        Only of users who agree to learning; `resolve` gives the pseudonyms of user ids.
        """
        query = (
            select(shop_events, user_keys.c.wrapped)
            .join(user_keys, _OF_USER)
            .where(shop_events.c.tenant_id == self.tenant, granted(shop_events, Purpose.LEARNING, unrecorded))
            .order_by(shop_events.c.occurred_at, shop_events.c.event_key)
        )
        if since is not None:
            query = query.where(shop_events.c.occurred_at >= since)
        if until is not None:
            query = query.where(shop_events.c.occurred_at < until)
        keys: dict[str, bytes] = {}
        with self.read() as connection:
            rows = [_flat(row, self._stored(row, "", keys)) for row in connection.execute(query)]
        return pa.Table.from_pylist(rows, schema=EVENTS_SCHEMA)

    def drop_events_before(self, at: datetime) -> int:
        """Deletes the events that were received before `at`; how many."""
        statement = delete(shop_events).where(
            shop_events.c.tenant_id == self.tenant, shop_events.c.received_at < at
        )
        with self.write() as connection:
            return connection.execute(statement).rowcount

    def _agreeing(
        self, connection: Connection, user_ids: Iterable[str], unrecorded: frozenset[Purpose]
    ) -> dict[str, Known]:
        """The users whose events may be kept, locked against an erasure until the transaction ends."""
        lookups = {self._lookup(user_id): user_id for user_id in user_ids}
        if Purpose.PERSONALISATION in unrecorded:
            self._ensure(connection, list(lookups))
        else:  # who was never seen has not agreed, and stays unseen
            self._locked(connection, list(lookups))
        found = self._with_consents(connection, list(lookups), unrecorded)
        return {
            lookups[lookup]: user
            for lookup, user in found.items()
            if Purpose.PERSONALISATION in user.purposes
        }

    def _insert_events(
        self, connection: Connection, events: Sequence[ShopEvent], users: Mapping[str, Known]
    ) -> int:
        """How many of `events` were new."""
        if not events:
            return 0
        names = sorted({users[event.user_id].pseudonym for event in events})
        keys = self._user_keys(connection, names)
        received_at = self._now()
        rows = [self._event_row(event, users[event.user_id].pseudonym, keys, received_at) for event in events]
        # In one order for everybody, so that two senders of the same events cannot deadlock.
        rows.sort(key=lambda row: row["event_key"])
        statement = insert_ignoring(self.dialect, shop_events).returning(shop_events.c.event_key)
        return len(connection.execute(statement, rows).all())

    def _user_keys(self, connection: Connection, names: Sequence[str]) -> dict[str, bytes]:
        """pseudonym → key, made where there is none."""
        wrapped = self._wrapped(connection, names)
        missing = [name for name in names if name not in wrapped]
        if missing:
            now = self._now()
            rows = [
                {
                    "tenant_id": self.tenant,
                    "pseudonym": name,
                    "wrapped": self._sealer.new_key(name),
                    "created_at": now,
                }
                for name in missing
            ]
            connection.execute(insert_ignoring(self.dialect, user_keys), rows)
            wrapped |= self._wrapped(connection, missing)  # another writer's, if it was first
        return {name: self._sealer.unwrap(name, key) for name, key in wrapped.items()}

    def _wrapped(self, connection: Connection, names: Sequence[str]) -> dict[str, bytes]:
        return {
            row.pseudonym: row.wrapped
            for part in chunks(names)
            for row in connection.execute(_KEYS, {"tenant": self.tenant, "names": part})
        }

    def _event_row(
        self, event: ShopEvent, pseudonym: str, keys: Mapping[str, bytes], received_at: datetime
    ) -> dict[str, Any]:
        event_key = self._event_key(event.event_id)
        content = [event.event_id, event.item_id, event.query, event.value]
        plain = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        about = self._event_about(event_key, event.type, event.occurred_at)
        return {
            "tenant_id": self.tenant,
            "event_key": event_key,
            "pseudonym": pseudonym,
            "type": event.type.value,
            "occurred_at": event.occurred_at,
            "received_at": received_at,
            "payload": seal(keys[pseudonym], plain, about),
        }

    def _stored(self, row: Any, user_id: str, keys: dict[str, bytes]) -> StoredEvent:
        """The event in `row`; `keys` holds those that were unwrapped already."""
        key = keys.get(row.pseudonym)
        if key is None:
            key = keys[row.pseudonym] = self._sealer.unwrap(row.pseudonym, row.wrapped)
        about = self._event_about(row.event_key, row.type, row.occurred_at)
        event_id, item_id, query, value = json.loads(unseal(key, row.payload, about))
        event = ShopEvent(event_id, user_id, EventType(row.type), row.occurred_at, item_id, query, value)
        return StoredEvent(event, row.received_at)

    def _event_key(self, event_id: str) -> str:
        message = f"qiance event\x00{self.tenant}\x00{event_id}"
        return hmac.new(self._key, message.encode(), hashlib.sha256).hexdigest()

    def _event_about(self, event_key: str, kind: str, occurred_at: datetime) -> bytes:
        return f"{self.tenant}\x00{event_key}\x00{kind!s}\x00{to_micros(occurred_at)}".encode()


@cache
def _recent(unrecorded: bool) -> Select[Any]:
    """Built once: making the statement takes longer than running it."""
    newest = func.row_number().over(
        partition_by=shop_events.c.pseudonym,
        order_by=(shop_events.c.occurred_at.desc(), shop_events.c.event_key.desc()),
    )
    ranked = (
        select(shop_events, pseudonyms.c.lookup, user_keys.c.wrapped, newest.label("place"))
        .join(
            pseudonyms,
            and_(
                pseudonyms.c.tenant_id == shop_events.c.tenant_id,
                pseudonyms.c.pseudonym == shop_events.c.pseudonym,
            ),
        )
        .join(user_keys, _OF_USER)
        .where(
            pseudonyms.c.tenant_id == bindparam("tenant"),
            pseudonyms.c.lookup.in_(bindparam("lookups", expanding=True)),
            shop_events.c.occurred_at >= bindparam("since", type_=shop_events.c.occurred_at.type),
            granted(pseudonyms, Purpose.PERSONALISATION, frozenset(Purpose) if unrecorded else frozenset()),
        )
        .subquery()
    )
    return (
        select(ranked)
        .where(ranked.c.place <= bindparam("most"))
        .order_by(ranked.c.occurred_at, ranked.c.event_key)
    )


def _flat(row: Any, stored: StoredEvent) -> dict[str, Any]:
    event = stored.event
    return {
        "pseudonym": row.pseudonym,
        "event_id": event.event_id,
        "type": event.type.value,
        "occurred_at": event.occurred_at,
        "received_at": stored.received_at,
        "item_id": event.item_id,
        "query": event.query,
        "value": event.value,
    }


def _problem(event: ShopEvent) -> str | None:
    """Why an event cannot be stored, naming the field; None if it can."""
    for name in ("event_id", "user_id"):
        if (problem := text_problem(getattr(event, name))) is not None:
            return f"{name}: {problem}"
    if event.item_id is not None and (problem := text_problem(event.item_id)) is not None:
        return f"item_id: {problem}"
    if event.query is not None and (problem := text_problem(event.query, MOST_WORDS)) is not None:
        return f"query: {problem}"
    return _kind_problem(event)


def _kind_problem(event: ShopEvent) -> str | None:
    if event.occurred_at.tzinfo is None:
        return "occurred_at: has no time zone; send one in UTC"
    if event.type is EventType.SEARCH:
        if event.query is None:
            return "query: a search has words"
    elif event.item_id is None:
        return f"item_id: a {event.type.value} is about an item"
    elif event.query is not None:
        return f"query: only a search has words, not a {event.type.value}"
    value = event.value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_MINOR_UNITS:
        return f"value: {value!r} is not an integer number of minor units in [0, 2**53]"
    if value and event.type not in _VALUED:
        return f"value: {value} on a {event.type.value}; only a cart or a purchase has a value"
    return None
