"""Who asks for a decision: pseudonym, consent, recent contacts and earlier answers, in one read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from qiance.domain import Cap, Decision, Purpose
from qiance.ledger.asking import identifying, packed
from qiance.ledger.consents import Consents
from qiance.ledger.database import cursor_of, text_problem
from qiance.ledger.decisions import Decisions
from qiance.ledger.records import Asker, Identified
from qiance.ledger.schema import to_micros

_PURPOSES = tuple(Purpose)
_FIRST_COUNT = 3 + len(_PURPOSES)  # after place, pseudonym, purposes and the decision of the request


class Askers(Decisions, Consents):
    """Identifying users on the decision path."""

    def identify(self, askers: Sequence[Asker], windows: Sequence[Cap] = ()) -> list[Identified]:
        """What is known of each asker, in order: one read where all are known and none repeats a request.

        windows: whose contacts to count, in the `days` up to `at`, both ends included. Who has no pseudonym
        gets one.
        """
        rows = [self._asker_row(place, asker) for place, asker in enumerate(askers)]
        statement = identifying(self.dialect, tuple(windows))
        found = self._ask(statement, rows)
        # Again where an erasure came between the making and the finding.
        while missing := [row for row in rows if row[0] not in found]:
            self._create(list(dict.fromkeys(row[1] for row in missing)))
            found |= self._ask(statement, missing)
        return self._identified(found)

    def lookup(self, user_id: str) -> str:
        """The keyed hash by which the ledger finds a user; it reveals nothing without the key."""
        return self._lookup(user_id)

    def pseudonyms_of(
        self, lookups: Sequence[str], asked_at: Sequence[datetime] | None = None
    ) -> list[str | None]:
        """A pseudonym per lookup, made where there is none; None for users who were erased.

        asked_at: when each was heard of, in the ledger's time; who was erased before that and came back since
        is a new user and has a pseudonym. Without it, who was erased has one only after coming back.
        """
        erased = self._last_erased(lookups)
        found = self._find(lookups)
        gone = {
            place
            for place, lookup in enumerate(lookups)
            if lookup in erased
            and (lookup not in found if asked_at is None else asked_at[place] <= erased[lookup])
        }
        wanted = [lookup for place, lookup in enumerate(lookups) if place not in gone]
        while missing := list(dict.fromkeys(lookup for lookup in wanted if lookup not in found)):
            self._create(missing)
            found |= self._find(missing)
        return [None if place in gone else found[lookup] for place, lookup in enumerate(lookups)]

    def _asker_row(self, place: int, asker: Asker) -> list[Any]:
        # What cannot be stored as a name was not stored either.
        request = asker.request_id if text_problem(asker.request_id) is None else None
        return [place, self._lookup(asker.user_id), request, to_micros(asker.at)]

    def _ask(self, statement: str, rows: Sequence[Sequence[Any]]) -> dict[int, Any]:
        """place → row of those that have a pseudonym."""
        with self.read() as connection:
            cursor = cursor_of(connection)
            cursor.execute(statement, {"tenant": self.tenant, "rows": packed(rows)})
            return {row[0]: row for row in cursor.fetchall() if row[1] is not None}

    def _identified(self, found: dict[int, Any]) -> list[Identified]:
        answered = [row[_FIRST_COUNT - 1] for row in found.values() if row[_FIRST_COUNT - 1] is not None]
        stored: dict[str, tuple[Decision, ...]] = {}
        if answered:
            with self.read() as connection:
                stored = self._positions(connection, answered)
        return [
            Identified(
                row[1],
                {p: bool(said) for p, said in zip(_PURPOSES, row[2:], strict=False) if said is not None},
                tuple(row[_FIRST_COUNT:]),
                stored.get(row[_FIRST_COUNT - 1], ()),
            )
            for _, row in sorted(found.items())
        ]
