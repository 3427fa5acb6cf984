"""What users agreed to: the choice as it is now, and every change of it with who recorded it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, select

from qiance.domain import Purpose
from qiance.ledger.database import checked, chunks, insert_ignoring, insert_into
from qiance.ledger.pseudonyms import Pseudonyms
from qiance.ledger.records import ConsentChange, Known
from qiance.ledger.schema import consent_changes, consents, pseudonyms

_CLOCK_SKEW = timedelta(minutes=5)
_IN_LIST = (
    pseudonyms.c.tenant_id == bindparam("tenant"),
    pseudonyms.c.lookup.in_(bindparam("lookups", expanding=True)),
)
_WITH_CONSENTS = (
    select(pseudonyms.c.lookup, pseudonyms.c.pseudonym, consents.c.purpose, consents.c.granted)
    .outerjoin(
        consents,
        and_(consents.c.tenant_id == pseudonyms.c.tenant_id, consents.c.pseudonym == pseudonyms.c.pseudonym),
    )
    .where(*_IN_LIST)
)
# Locked: an erasure of these users waits until what is written for them is there, and then removes it.
_LOCKED = (
    select(pseudonyms.c.lookup, pseudonyms.c.pseudonym)
    .where(*_IN_LIST)
    .order_by(pseudonyms.c.lookup)
    .with_for_update(read=True, key_share=True)
)
_NOW = select(consents).where(
    consents.c.tenant_id == bindparam("tenant"),
    consents.c.pseudonym.in_(bindparam("names", expanding=True)),
)


class Consents(Pseudonyms):
    """Recording and reading consent."""

    def set_consent(
        self, user_id: str, purposes: Mapping[Purpose, bool], by: str, at: datetime | None = None
    ) -> None:
        """`set_consents` for one user."""
        self.set_consents([user_id], purposes, by, at)

    def set_consents(
        self,
        user_ids: Iterable[str],
        purposes: Mapping[Purpose, bool],
        by: str,
        at: datetime | None = None,
    ) -> None:
        """Records what users say about each purpose; the others stay as they are. Durable on return.

        by: who records it. at: when they said it; now unless given. What was said earlier than what is
        already recorded goes to the history only.
        """
        said_at = self._check_consent(purposes, by, at)
        lookups = list(dict.fromkeys(self._lookup(user_id) for user_id in user_ids))
        if not lookups or not purposes:
            return
        with self.write() as connection:
            names = sorted(self._ensure(connection, lookups).values())
            current = self._current(connection, names)
            said = [(name, purpose, value) for name in names for purpose, value in purposes.items()]
            self._write_consents(
                connection, [entry for entry in said if said_at >= current.get(entry[:2], said_at)], said_at
            )
            self._write_history(connection, said, by, said_at)

    def consents(
        self, user_ids: Sequence[str], unrecorded: frozenset[Purpose] = frozenset()
    ) -> dict[str, frozenset[Purpose]]:
        """user id → purposes agreed to, in one query; makes no pseudonyms.

        unrecorded: the purposes that a user who was never asked about them counts as having agreed to.
        """
        found = self.known(user_ids, unrecorded)
        nothing_said = frozenset(unrecorded)
        return {
            user_id: found[user_id].purposes if user_id in found else nothing_said for user_id in user_ids
        }

    def known(
        self, user_ids: Sequence[str], unrecorded: frozenset[Purpose] = frozenset()
    ) -> dict[str, Known]:
        """user id → pseudonym and purposes of the users that have a pseudonym, in one query."""
        lookups = {user_id: self._lookup(user_id) for user_id in user_ids}
        with self.read() as connection:
            found = self._with_consents(connection, list(lookups.values()), unrecorded)
        return {user_id: found[lookup] for user_id, lookup in lookups.items() if lookup in found}

    def consent_history(self, user_id: str) -> list[ConsentChange]:
        """Everything that was recorded of the user's consent, oldest first; empty after an erasure."""
        statement = (
            select(consent_changes)
            .join(
                pseudonyms,
                and_(
                    consent_changes.c.tenant_id == pseudonyms.c.tenant_id,
                    consent_changes.c.pseudonym == pseudonyms.c.pseudonym,
                ),
            )
            .where(*_IN_LIST)
            .order_by(consent_changes.c.change)
        )
        with self.read() as connection:
            rows = connection.execute(statement, self._asking([self._lookup(user_id)])).all()
        return [ConsentChange(Purpose(row.purpose), row.granted, row.at, row.by) for row in rows]

    def _check_consent(self, purposes: Mapping[Purpose, bool], by: str, at: datetime | None) -> datetime:
        checked("consent.by", by)
        for purpose, value in purposes.items():
            if purpose not in list(Purpose) or not isinstance(value, bool):
                wanted = ", ".join(Purpose)
                raise ValueError(f"purposes: {purpose!r}: {value!r}; give true or false for {wanted}")
        now = self._now()
        if at is None:
            return now
        if at.tzinfo is None:
            raise ValueError("consent.at: has no time zone; pass one in UTC")
        if at > now + _CLOCK_SKEW:  # nothing said later could ever replace it
            raise ValueError(f"consent.at: {at.isoformat()} has not come yet; leave it out, or send the past")
        return at

    def _with_consents(
        self, connection: Connection, lookups: Sequence[str], unrecorded: frozenset[Purpose]
    ) -> dict[str, Known]:
        names: dict[str, str] = {}
        purposes: dict[str, set[Purpose]] = {}
        for part in chunks(lookups):
            for lookup, name, purpose, is_granted in connection.execute(_WITH_CONSENTS, self._asking(part)):
                names[lookup] = name
                agreed = purposes.setdefault(lookup, set(unrecorded))
                if purpose is not None:
                    (agreed.add if is_granted else agreed.discard)(Purpose(purpose))
        return {lookup: Known(name, frozenset(purposes[lookup])) for lookup, name in names.items()}

    def _ensure(self, connection: Connection, lookups: Sequence[str]) -> dict[str, str]:
        """lookup → pseudonym, made where there is none; locked until the transaction ends."""
        found = self._locked(connection, lookups)
        # Again where an erasure took one away between the making and the looking.
        while missing := [lookup for lookup in lookups if lookup not in found]:
            connection.execute(insert_ignoring(self.dialect, pseudonyms), self._new_rows(missing))
            found |= self._locked(connection, missing)
        return found

    def _locked(self, connection: Connection, lookups: Sequence[str]) -> dict[str, str]:
        """lookup → pseudonym of those that have one; locked until the transaction ends."""
        return {
            row.lookup: row.pseudonym
            for part in chunks(sorted(lookups))
            for row in connection.execute(_LOCKED, self._asking(part))
        }

    def _current(self, connection: Connection, names: Sequence[str]) -> dict[tuple[str, str], datetime]:
        """(pseudonym, purpose) → when what is recorded now was said."""
        return {
            (row.pseudonym, row.purpose): row.changed_at
            for part in chunks(names)
            for row in connection.execute(_NOW, {"tenant": self.tenant, "names": part})
        }

    def _write_consents(
        self, connection: Connection, said: Sequence[tuple[str, Purpose, bool]], at: datetime
    ) -> None:
        insert = insert_into(self.dialect, consents)
        statement = insert.on_conflict_do_update(
            index_elements=[consents.c.tenant_id, consents.c.pseudonym, consents.c.purpose],
            set_={"granted": insert.excluded.granted, "changed_at": insert.excluded.changed_at},
        )
        rows = [
            {
                "tenant_id": self.tenant,
                "pseudonym": name,
                "purpose": purpose.value,
                "granted": value,
                "changed_at": at,
            }
            for name, purpose, value in said
        ]
        if rows:
            connection.execute(statement, rows)

    def _write_history(
        self, connection: Connection, said: Sequence[tuple[str, Purpose, bool]], by: str, at: datetime
    ) -> None:
        rows = [
            {
                "tenant_id": self.tenant,
                "pseudonym": name,
                "purpose": purpose.value,
                "granted": value,
                "at": at,
                "by": by,
            }
            for name, purpose, value in said
        ]
        connection.execute(consent_changes.insert(), rows)

    def _forget_consents(self, connection: Connection, pseudonym: str) -> int:
        """Removes the user's choices and their history; how many rows."""
        removed = 0
        for table in (consents, consent_changes):
            statement = delete(table).where(table.c.tenant_id == self.tenant, table.c.pseudonym == pseudonym)
            removed += connection.execute(statement).rowcount
        return removed

    def _asking(self, lookups: Sequence[str]) -> dict[str, Any]:
        return {"tenant": self.tenant, "lookups": lookups}
