"""The decision log: a decision and its share of the budget are written in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select

from qiance.domain import CONTROL, Decision
from qiance.ledger.database import chunks, insert_ignoring, text_problem
from qiance.ledger.folding import Folding
from qiance.ledger.marks import DECISION
from qiance.ledger.packing import from_row, to_row
from qiance.ledger.records import DuplicateDecisionError, ErasedDecisionError, Recorded, Reservation
from qiance.ledger.schema import decisions

_BY_ID = select(decisions).where(
    decisions.c.tenant_id == bindparam("tenant"), decisions.c.decision_id == bindparam("wanted")
)
_BY_REQUEST = select(decisions).where(
    decisions.c.tenant_id == bindparam("tenant"), decisions.c.request_id == bindparam("wanted")
)
_FORGET = delete(decisions).where(
    decisions.c.tenant_id == bindparam("tenant"),
    decisions.c.decision_id.in_(bindparam("refused", expanding=True)),
)
_CONTACTS = (
    select(decisions.c.pseudonym, func.count())
    .where(
        decisions.c.tenant_id == bindparam("tenant"),
        decisions.c.pseudonym.in_(bindparam("pseudonyms", expanding=True)),
        decisions.c.decided_at >= bindparam("since", type_=decisions.c.decided_at.type),
        decisions.c.action_id != CONTROL,
    )
    .group_by(decisions.c.pseudonym)
)


class Decisions(Folding):
    """Recording, finding and counting decisions."""

    def record_decision(self, decision: Decision, reservation: Reservation | None = None) -> bool:
        """Logs `decision` and reserves its cost; durable when it returns True.

        False: the budget does not admit the reservation, and nothing was written: decide `control`.
        Raises DuplicateDecisionError (with the stored one) if the decision id or request id is already
        logged, LedgerUnavailableError if the database does not answer.
        """
        (recorded,) = self.record_decisions([decision], [reservation])
        if recorded is Recorded.DUPLICATE:
            stored = self.decision(decision.decision_id) or self._one(_BY_REQUEST, decision.request_id)
            assert stored is not None, "the row that was in the way is gone"
            raise DuplicateDecisionError(stored)
        return recorded is Recorded.STORED

    def record_decisions(
        self, batch: Sequence[Decision], reservations: Sequence[Reservation | None] | None = None
    ) -> list[Recorded]:
        """Logs a batch in one transaction (one flush to disk); what became of each, in order.

        reservations: one per decision, None where it costs nothing. A decision whose user was erased while it
        was made is stored and at once folded into the totals.
        """
        if not batch:
            return []
        wanted = list(reservations) if reservations is not None else [None] * len(batch)
        if len(wanted) != len(batch):
            raise ValueError(f"reservations: {len(wanted)} for {len(batch)} decisions; give one each")
        rows = [to_row(self._own(decision)) for decision in batch]
        for reservation in wanted:
            self._check_reservation(reservation)
        with self.write() as connection:
            return self._record(connection, batch, rows, wanted)

    def _record(
        self,
        connection: Connection,
        batch: Sequence[Decision],
        rows: list[dict[str, Any]],
        wanted: Sequence[Reservation | None],
    ) -> list[Recorded]:
        # First, since it takes the lock that an erasure of the same users waits for.
        erased = self._erased_pseudonyms(connection, [decision.pseudonym for decision in batch])
        fresh = self._insert(connection, rows)
        late = [d.decision_id for d in batch if d.pseudonym in erased and d.decision_id in fresh]
        claims: dict[str, Reservation] = {}
        result: list[Recorded] = []
        for decision, reservation in zip(batch, wanted, strict=True):
            is_new = decision.decision_id in fresh
            fresh.discard(decision.decision_id)  # the same id twice in one batch: the second repeats
            result.append(Recorded.STORED if is_new else Recorded.DUPLICATE)
            if is_new and reservation is not None:
                claims[decision.decision_id] = reservation
        refused = self._reserve(connection, claims)
        for part in chunks(sorted(refused)):
            connection.execute(_FORGET, {"tenant": self.tenant, "refused": part})
        if late:
            self._fold(connection, [decision_id for decision_id in late if decision_id not in refused])
        return [
            Recorded.REFUSED if outcome is Recorded.STORED and decision.decision_id in refused else outcome
            for outcome, decision in zip(result, batch, strict=True)
        ]

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> set[str]:
        """Ids of the rows that were new."""
        # In a fixed order, so that two writers with the same requests wait instead of deadlocking.
        ordered = sorted(rows, key=lambda row: (row["request_id"] or "", row["decision_id"]))
        statement = insert_ignoring(self.dialect, decisions).returning(decisions.c.decision_id)
        return set(connection.execute(statement, ordered).scalars())

    def decision(self, decision_id: str) -> Decision | None:
        """The logged decision, or None; ErasedDecisionError if its user was erased."""
        found = self._one(_BY_ID, decision_id)
        if found is None and text_problem(decision_id) is None:
            with self.read() as connection:
                if self._marked(connection, DECISION, [decision_id]):
                    raise ErasedDecisionError(decision_id)
        return found

    def find_request(self, request_id: str) -> Decision | None:
        """The decision that answered `request_id`, or None."""
        return self._one(_BY_REQUEST, request_id)

    def contacts_since(self, pseudonym: str, since: datetime) -> int:
        """How often the user was contacted (any action but `control`) at or after `since`."""
        return self.contacts_since_many([pseudonym], since)[pseudonym]

    def contacts_since_many(self, pseudonyms: Iterable[str], since: datetime) -> dict[str, int]:
        """pseudonym → contacts at or after `since`; 0 for those that had none."""
        counts = dict.fromkeys(pseudonyms, 0)
        with self.read() as connection:
            for part in chunks(list(counts)):
                parameters = {"tenant": self.tenant, "pseudonyms": part, "since": since}
                for pseudonym, count in connection.execute(_CONTACTS, parameters):
                    counts[pseudonym] = count
        return counts

    def _one(self, statement: Any, wanted: str | None) -> Decision | None:
        if text_problem(wanted) is not None:
            return None  # what cannot be stored is not there
        with self.read() as connection:
            row = connection.execute(statement, {"tenant": self.tenant, "wanted": wanted}).one_or_none()
        return None if row is None else from_row(row)

    def _own(self, decision: Decision) -> Decision:
        if decision.tenant_id != self.tenant:
            raise ValueError(
                f"decision.tenant_id: {decision.tenant_id!r} is not this ledger's tenant {self.tenant!r}"
            )
        return decision
