"""The bank of words: only what the guard has linted enters it, and only what passes is approved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, select, update

from qiance.domain import Channel, CreativeState
from qiance.guard import Linted, Subject, Verdict, is_sealed
from qiance.ledger.codec import subject_from_dict, subject_to_dict
from qiance.ledger.database import checked, chunks, inserted, text_problem
from qiance.ledger.records import BankEntry
from qiance.ledger.schema import creatives
from qiance.ledger.versions import VersionRow


class Creatives(VersionRow):
    """Words by segment, channel and language, with their state and their last lint."""

    def put_creatives(self, batch: Sequence[Linted], by: str = "system") -> None:
        """Stores new words as drafts, and the fresh result of words that are known.

        Words that were approved and do not pass any more become drafts again: they are not served from then
        on. What is not a `Linted` raises TypeError.
        """
        if not batch:
            return
        with self.write() as connection:
            known = self._known_creatives(connection, [_linted(each).creative_id for each in batch])
            changed = [self._bank(connection, each, known.get(each.creative_id), by) for each in batch]
            if any(changed):
                self._bump(connection, strategies_changed=True)

    def creative(self, creative_id: str) -> BankEntry | None:
        """One entry, or None."""
        if text_problem(creative_id) is not None:
            return None
        statement = self._creatives().where(creatives.c.creative_id == creative_id)
        with self.read() as connection:
            row = connection.execute(statement).one_or_none()
        return None if row is None else _entry(row)

    def creatives(
        self,
        state: CreativeState | None = None,
        segment: str | None = None,
        channel: Channel | None = None,
        language: str | None = None,
    ) -> list[BankEntry]:
        """Entries, oldest first; only those that match what is given."""
        given = {"state": state, "segment": segment, "channel": channel, "language": language}
        statement = self._creatives().order_by(creatives.c.created_at, creatives.c.creative_id)
        for name, value in given.items():
            if value is not None:
                statement = statement.where(creatives.c[name] == str(value))
        with self.read() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def approved_creatives(self) -> dict[str, str]:
        """What may be served: creative id → digest of what its last, passing lint hung on."""
        statement = select(creatives.c.creative_id, creatives.c.checked).where(
            creatives.c.tenant_id == self.tenant,
            creatives.c.state == CreativeState.APPROVED.value,
            creatives.c.verdict != Verdict.BLOCK.value,
        )
        with self.read() as connection:
            return {row.creative_id: row.checked for row in connection.execute(statement)}

    def approve_creative(self, linted: Linted, by: str, reason: str) -> None:
        """Approves words that the guard has just linted; ValueError if they are blocked or retired."""
        with self.write() as connection:
            self._approve_creatives(connection, [linted], by, reason)
            self._bump(connection, strategies_changed=True)

    def retire_creative(self, creative_id: str, by: str, reason: str) -> None:
        """Takes words out of service for good; ValueError if they are not known or retired already."""
        checked("creative_id", creative_id)
        with self.write() as connection:
            old = self._known_creatives(connection, [creative_id]).get(creative_id)
            if old is None:
                raise ValueError(
                    f"creative_id: {creative_id!r} is not in the bank; `qiance creatives list` shows it"
                )
            if old.state is CreativeState.RETIRED:
                raise ValueError(f"creative_id: {creative_id!r} is retired already")
            self._move_creative(connection, old, CreativeState.RETIRED, by, reason)
            self._bump(connection, strategies_changed=True)

    def _approve_creatives(
        self, connection: Connection, batch: Sequence[Linted], by: str, reason: str
    ) -> None:
        for each in batch:
            if _linted(each).result.blocked:
                raise ValueError(f"creative {each.creative_id!r} is blocked: {each.result.why()}")
        known = self._known_creatives(connection, [each.creative_id for each in batch])
        for each in batch:
            self._bank(connection, each, known.get(each.creative_id), by)
        for entry in self._known_creatives(connection, [each.creative_id for each in batch]).values():
            if entry.state is CreativeState.RETIRED:
                raise ValueError(f"creative {entry.creative_id!r} is retired; write other words")
            if entry.state is CreativeState.DRAFT:
                self._move_creative(connection, entry, CreativeState.APPROVED, by, reason)

    def _bank(self, connection: Connection, linted: Linted, old: BankEntry | None, by: str) -> bool:
        """Stores one result; whether that changed what may be served."""
        if old is None:
            self._insert_creative(connection, linted, by)
            return False
        if old.checked != linted.checked:
            self._change_creative(connection, old.creative_id, **_lint_columns(linted))
        if old.state is CreativeState.APPROVED and linted.result.blocked:
            self._move_creative(connection, old, CreativeState.DRAFT, by, linted.result.why())
            return True
        return False

    def _insert_creative(self, connection: Connection, linted: Linted, by: str) -> None:
        subject, now = linted.subject, self._now()
        row = {
            "tenant_id": self.tenant,
            "creative_id": linted.creative_id,
            "version": self._next_version(connection, subject),
            "segment": checked("segment", subject.segment),
            "channel": str(subject.creative.channel),
            "language": subject.creative.language,
            "item_id": subject.item_id,
            "payload": json.dumps(subject_to_dict(subject), allow_nan=False),
            "state": CreativeState.DRAFT.value,
            "by": checked("by", by),
            "created_at": now,
            "changed_at": now,
            **_lint_columns(linted),
        }
        if inserted(connection, creatives, row):
            detail = {"verdict": linted.result.verdict.value, "rules": linted.result.rules}
            self._write_line(connection, "creative.proposed", linted.creative_id, by, detail)

    def _next_version(self, connection: Connection, subject: Subject) -> int:
        same = (
            creatives.c.tenant_id == self.tenant,
            creatives.c.segment == subject.segment,
            creatives.c.channel == str(subject.creative.channel),
            creatives.c.language == subject.creative.language,
            creatives.c.item_id.is_(None)
            if subject.item_id is None
            else creatives.c.item_id == subject.item_id,
        )
        newest = connection.execute(select(func.max(creatives.c.version)).where(*same)).scalar()
        return int(newest or 0) + 1

    def _move_creative(
        self, connection: Connection, old: BankEntry, state: CreativeState, by: str, reason: str
    ) -> None:
        self._change_creative(
            connection, old.creative_id, state=state.value, by=checked("by", by), changed_at=self._now()
        )
        detail = {"from": old.state.value, "to": state.value, "reason": reason, "rules": old.rules}
        self._write_line(connection, f"creative.{state.value}", old.creative_id, by, detail)

    def _change_creative(self, connection: Connection, creative_id: str, **values: Any) -> None:
        connection.execute(
            update(creatives)
            .where(creatives.c.tenant_id == self.tenant, creatives.c.creative_id == creative_id)
            .values(**values)
        )

    def _creatives(self) -> Select[Any]:
        return select(creatives).where(creatives.c.tenant_id == self.tenant)

    def _known_creatives(self, connection: Connection, ids: Iterable[str]) -> dict[str, BankEntry]:
        """Stored entries by id, locked until the transaction ends."""
        return {
            row.creative_id: _entry(row)
            for part in chunks(sorted(set(ids)))
            for row in connection.execute(
                self._creatives()
                .where(creatives.c.creative_id.in_(part))
                .order_by(creatives.c.creative_id)
                .with_for_update()
            )
        }


def _linted(value: Linted) -> Linted:
    if not is_sealed(value):
        raise TypeError(
            f"creatives: {type(value).__name__} was not linted; only what Guard.lint gives is taken"
        )
    return value


def _lint_columns(linted: Linted) -> dict[str, str]:
    findings = [finding.to_dict() for finding in linted.result.findings]
    return {
        "verdict": linted.result.verdict.value,
        "findings": json.dumps(findings, allow_nan=False),
        "rules": linted.result.rules,
        "checked": linted.checked,
    }


def _entry(row: Any) -> BankEntry:
    return BankEntry(
        creative_id=row.creative_id,
        version=row.version,
        subject=subject_from_dict(json.loads(row.payload)),
        state=CreativeState(row.state),
        verdict=Verdict(row.verdict),
        findings=tuple(json.loads(row.findings)),
        rules=row.rules,
        checked=row.checked,
        by=row.by,
        created_at=row.created_at,
        changed_at=row.changed_at,
    )
