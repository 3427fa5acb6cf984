"""Erasure of a user from the ledger, and the list of erasures that outlives a restore."""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Row, bindparam, delete, select, update

from qiance.ledger.codec import time_to_text
from qiance.ledger.database import checked, insert_ignoring
from qiance.ledger.events import Events
from qiance.ledger.folding import Folding
from qiance.ledger.marks import PSEUDONYM
from qiance.ledger.records import Erasure, ErasureState
from qiance.ledger.schema import (
    decisions,
    erased_totals,
    erasures,
    pseudonyms,
    shop_events,
    user_keys,
)
from qiance.ledger.scrub import scrub_database
from qiance.ledger.sealing import seal, unseal

MOST_REASON = 500  # characters
_USER = (
    select(pseudonyms)
    .where(pseudonyms.c.tenant_id == bindparam("tenant"), pseudonyms.c.lookup == bindparam("wanted"))
    .with_for_update()
)
_DECIDED = (
    select(decisions.c.decision_id)
    .where(decisions.c.tenant_id == bindparam("tenant"), decisions.c.pseudonym == bindparam("wanted"))
    .order_by(decisions.c.decision_id)
    .with_for_update()
)
TOTALS_SCHEMA = pa.schema(
    [
        ("day", pa.timestamp("us", tz="UTC")),
        ("action_id", pa.string()),
        ("surface", pa.string()),
        ("holdout", pa.bool_()),
        ("model_version", pa.string()),
        ("policy_version", pa.string()),
        *((name, pa.int64()) for name in ("decisions", "clicks", "conversions", "sales", "events")),
    ]
)


class Erasures(Folding, Events):
    """Erasing users, and knowing who was erased."""

    @cached_property
    def _scrubbing(self) -> threading.Lock:
        return threading.Lock()

    def erase(self, user_id: str, by: str, reason: str = "") -> Erasure:
        """Erases a user from the ledger alone; `qiance.privacy.Eraser` erases them from everything."""
        begun = self.begin_erasure(user_id, by, reason)
        self.finish_erasure(begun.erasure_id)
        self.scrub()
        return self._erasure_of(begun.erasure_id)

    def begin_erasure(self, user_id: str, by: str, reason: str = "") -> Erasure:
        """Removes the user from the ledger, in one transaction, and notes that the rest is to be done.

        Gone are pseudonym, key, events and consent; decisions and outcomes become totals. An audit line
        tells of the erasure, not of whom. A user whose erasure is pending already keeps its id.
        """
        checked("erasure.by", by)
        lookup = self._lookup(user_id)
        _check_reason(reason, user_id)
        with self.write() as connection:
            removed = self._unlink(connection, lookup)
            erasure_id = self._pending_id(connection, lookup) or secrets.token_hex(16)
            self._note(connection, erasure_id, lookup, by, reason, self._sealed(erasure_id, user_id), removed)
            detail = {"reason": reason, "removed": dict(removed)}
            self._write_line(connection, "user.erased", erasure_id, by, detail)
        return self._erasure_of(erasure_id)

    def finish_erasure(
        self, erasure_id: str, removed: Mapping[str, int] | None = None, problems: Sequence[str] = ()
    ) -> Erasure:
        """Notes what was removed elsewhere; without problems the user's id is forgotten."""
        with self.write() as connection:
            row = self._row(connection, erasure_id)
            detail = json.loads(row.detail)
            counts = Counter(detail["removed"]) + Counter(removed or {})
            change: dict[str, Any] = {"detail": _detail(counts, problems)}
            if not problems:
                change |= {"state": ErasureState.SCRUBBING.value, "subject": None}
            connection.execute(self._changing(erasure_id), change)
        return self._erasure_of(erasure_id)

    def scrub(self, patience_s: float = 3.0) -> bool:
        """Removes what erased rows left in the database's files; whether it could be done.

        SQLite rewrites its file, once for all erasures that wait, and empties its log: not while somebody
        reads an old state; then False, and every later call tries again. PostgreSQL: VACUUM. See
        docs/privacy.md for what archives and backups hold.
        """
        with self._scrubbing:
            with self.read() as connection:
                waiting = connection.execute(self._in_state(ErasureState.SCRUBBING)).all()
            if not waiting:
                return True
            if not scrub_database(self.engine, self._write_lock or nullcontext(), patience_s):
                return False
            with self.write() as connection:
                for row in waiting:
                    connection.execute(self._changing(row.erasure_id), {"state": ErasureState.DONE.value})
        return True

    def erasures(self) -> list[Erasure]:
        """Every erasure, oldest first."""
        statement = (
            select(erasures)
            .where(erasures.c.tenant_id == self.tenant)
            .order_by(erasures.c.erased_at, erasures.c.erasure_id)
        )
        with self.read() as connection:
            return [_erasure(row) for row in connection.execute(statement)]

    def erasure(self, erasure_id: str) -> Erasure | None:
        """One erasure, or None."""
        with self.read() as connection:
            row = connection.execute(self._finding(erasure_id)).one_or_none()
        return None if row is None else _erasure(row)

    def pending_erasures(self) -> list[tuple[str, str]]:
        """(erasure id, user id) of those that are not finished outside the ledger, oldest first."""
        with self.read() as connection:
            rows = connection.execute(self._in_state(ErasureState.PENDING)).all()
        return [(row.erasure_id, self._unsealed(row)) for row in rows if row.subject is not None]

    def erased_before(self, user_ids: Sequence[str]) -> dict[str, datetime]:
        """user id → when they were last erased, for those who were: what is older must not be used."""
        lookups = {self._lookup(user_id): user_id for user_id in user_ids}
        return {lookups[lookup]: at for lookup, at in self._last_erased(list(lookups)).items()}

    def erased_aggregates(self) -> pa.Table:
        """What the decisions of erased users add up to (TOTALS_SCHEMA), by day, action and version.

        clicks, conversions: decisions that had any. sales: conversions − refunds, minor units. events: all
        outcome events. With the rows of `decision_outcomes` they make the sums from before the erasures.
        """
        names = TOTALS_SCHEMA.names
        statement = (
            select(*(erased_totals.c[name] for name in names))
            .where(erased_totals.c.tenant_id == self.tenant)
            .order_by(*(erased_totals.c[name] for name in names[:6]))
        )
        with self.read() as connection:
            rows = [row._asdict() for row in connection.execute(statement)]
        return pa.Table.from_pylist(rows, schema=TOTALS_SCHEMA)

    def export_erasures(self) -> dict[str, Any]:
        """The list as plain JSON: keyed hashes of the users, useless without the tenant's secret."""
        statement = select(erasures).where(erasures.c.tenant_id == self.tenant).order_by(erasures.c.erased_at)
        with self.read() as connection:
            rows = connection.execute(statement).all()
        entries = [
            {
                "erasure_id": row.erasure_id,
                "lookup": row.lookup,
                "erased_at": time_to_text(row.erased_at),
                "by": row.by,
                "reason": row.reason,
            }
            for row in rows
        ]
        return {"version": 1, "tenant": self.tenant, "key": self._fingerprint(), "erasures": entries}

    def replay_erasures(self, exported: Mapping[str, Any], by: str = "system") -> int:
        """Erases again whom a restored backup brought back; how many users.

        A user who came back after the erasure has a newer pseudonym, and is left alone. Safe to repeat.
        Raises ValueError for a list of another tenant or key, or one that cannot be read.
        """
        entries = self._entries(exported)
        checked("erasure.by", by)
        again = 0
        with self.write() as connection:
            for entry in entries:
                removed = self._unlink(connection, entry["lookup"], entry["erased_at"])
                self._remember(connection, entry)
                if removed:
                    again += 1
                    detail = {"replayed": True, "removed": dict(removed)}
                    self._write_line(connection, "user.erased", entry["erasure_id"], by, detail)
        self.scrub()
        return again

    def _unlink(
        self, connection: Connection, lookup: str, seen_before: datetime | None = None
    ) -> Counter[str]:
        """Removes the user of `lookup`, if it is known (and was by `seen_before`); rows by table."""
        removed: Counter[str] = Counter()
        user = connection.execute(_USER, {"tenant": self.tenant, "wanted": lookup}).one_or_none()
        if user is None or (seen_before is not None and user.created_at > seen_before):
            return removed
        name = user.pseudonym
        asking = {"tenant": self.tenant, "wanted": name}
        removed += self._fold(connection, connection.execute(_DECIDED, asking).scalars().all())
        removed["consents"] = self._forget_consents(connection, name)
        for table in (shop_events, user_keys, pseudonyms):
            statement = delete(table).where(table.c.tenant_id == self.tenant, table.c.pseudonym == name)
            removed[table.name] = connection.execute(statement).rowcount
        self._put_marks(connection, PSEUDONYM, [name])
        return removed

    def _note(
        self,
        connection: Connection,
        erasure_id: str,
        lookup: str,
        by: str,
        reason: str,
        subject: bytes,
        removed: Mapping[str, int],
    ) -> None:
        values = {
            "lookup": lookup,
            "erased_at": self._now(),
            "by": by,
            "reason": reason,
            "state": ErasureState.PENDING.value,
            "subject": subject,
            "detail": _detail(removed, ()),
        }
        changed = connection.execute(self._changing(erasure_id), values).rowcount
        if not changed:
            row = {"tenant_id": self.tenant, "erasure_id": erasure_id, **values}
            connection.execute(erasures.insert(), row)

    def _remember(self, connection: Connection, entry: Mapping[str, Any]) -> None:
        row = {
            "tenant_id": self.tenant,
            **entry,
            "state": ErasureState.SCRUBBING.value,
            "subject": None,
            "detail": _detail({}, ()),
        }
        connection.execute(insert_ignoring(self.dialect, erasures), row)

    def _entries(self, exported: Mapping[str, Any]) -> list[dict[str, Any]]:
        if exported.get("tenant") != self.tenant or exported.get("key") != self._fingerprint():
            raise ValueError(
                f"erasures: the list is not of tenant {self.tenant!r} with this ledger's key; "
                "export it from the ledger that the backup was made of"
            )
        try:
            return [
                {
                    "erasure_id": checked("erasure_id", entry["erasure_id"], 32),
                    "lookup": checked("lookup", entry["lookup"], 64),
                    "erased_at": datetime.fromisoformat(entry["erased_at"]),
                    "by": checked("by", entry["by"]),
                    "reason": str(entry["reason"]),
                }
                for entry in exported["erasures"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"erasures: the list lacks {error}; export it again") from None

    def _pending_id(self, connection: Connection, lookup: str) -> str | None:
        statement = self._in_state(ErasureState.PENDING).where(erasures.c.lookup == lookup).limit(1)
        row = connection.execute(statement).first()
        return None if row is None else str(row.erasure_id)

    def _in_state(self, state: ErasureState) -> Any:
        return (
            select(erasures)
            .where(erasures.c.tenant_id == self.tenant, erasures.c.state == state.value)
            .order_by(erasures.c.erased_at, erasures.c.erasure_id)
        )

    def _finding(self, erasure_id: str) -> Any:
        return select(erasures).where(
            erasures.c.tenant_id == self.tenant, erasures.c.erasure_id == erasure_id
        )

    def _changing(self, erasure_id: str) -> Any:
        return update(erasures).where(
            erasures.c.tenant_id == self.tenant, erasures.c.erasure_id == erasure_id
        )

    def _row(self, connection: Connection, erasure_id: str) -> Row[Any]:
        row = connection.execute(self._finding(erasure_id).with_for_update()).one_or_none()
        if row is None:
            raise ValueError(f"erasure_id: {erasure_id!r} is not known; see `qiance users erasures list`")
        return row

    def _erasure_of(self, erasure_id: str) -> Erasure:
        found = self.erasure(erasure_id)
        assert found is not None, "an erasure's row is never deleted"
        return found

    def _sealed(self, erasure_id: str, user_id: str) -> bytes:
        return seal(self._sealer.subjects, user_id.encode("utf-8", "surrogatepass"), erasure_id.encode())

    def _unsealed(self, row: Any) -> str:
        plain = unseal(self._sealer.subjects, row.subject, row.erasure_id.encode())
        return plain.decode("utf-8", "surrogatepass")


def _detail(removed: Mapping[str, int], problems: Sequence[str]) -> str:
    return json.dumps({"removed": {k: v for k, v in removed.items() if v}, "problems": list(problems)})


def _erasure(row: Any) -> Erasure:
    detail = json.loads(row.detail)
    return Erasure(
        row.erasure_id,
        row.erased_at,
        row.by,
        row.reason,
        ErasureState(row.state),
        detail["removed"],
        tuple(detail["problems"]),
    )


def _check_reason(reason: str, user_id: str) -> None:
    """The reason stays, so it must not name whom it is about."""
    if len(reason) > MOST_REASON or "\x00" in reason:
        raise ValueError(f"reason: at most {MOST_REASON} characters of plain text")
    if re.search(rf"(?<!\w){re.escape(user_id)}(?!\w)", reason):
        raise ValueError("reason: names the user, and would outlive the erasure; say it without the id")
