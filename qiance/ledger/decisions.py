"""Reading the decision log."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select

from qiance.domain import Decision
from qiance.ledger.candidates import CandidateSets
from qiance.ledger.database import chunks, text_problem
from qiance.ledger.marks import DECISION, Marks
from qiance.ledger.packing import from_row
from qiance.ledger.records import ErasedDecisionError
from qiance.ledger.schema import decisions

_BY_IDS = select(decisions).where(
    decisions.c.tenant_id == bindparam("tenant"),
    decisions.c.decision_id.in_(bindparam("wanted", expanding=True)),
)
_BY_REQUESTS = select(decisions.c.request_id, decisions.c.decision_id).where(
    decisions.c.tenant_id == bindparam("tenant"),
    decisions.c.request_id.in_(bindparam("wanted", expanding=True)),
)
_POSITIONS = 16  # of an answer, looked for at a time


def new_decision_id() -> str:
    """A new random id, 32 hex characters; it ascends with time, so that rows written together lie together.

    That makes half as many pages of the indexes to be written as with ids that are random from the start.
    """
    return f"{time.time_ns() // 1_000:014x}{secrets.token_hex(9)}"


def position_id(decision_id: str, position: int) -> str:
    """Id of a position of an answer: that of the answer, then `.1`, `.2`, …"""
    return f"{decision_id}.{position}" if position else decision_id


class Decisions(CandidateSets, Marks):
    """Finding decisions."""

    def decision(self, decision_id: str) -> Decision | None:
        """The logged decision, or None; ErasedDecisionError if its user was erased."""
        if text_problem(decision_id) is not None:
            return None  # what cannot be stored is not there
        with self.read() as connection:
            found = self._by_ids(connection, [decision_id]).get(decision_id)
            if found is None and self._marked(connection, DECISION, [decision_id]):
                raise ErasedDecisionError(decision_id)
        return found

    def answered(self, request_ids: Iterable[str]) -> dict[str, tuple[Decision, ...]]:
        """request id → the positions that answered it, in order, for the requests that were answered."""
        wanted = sorted({name for name in request_ids if text_problem(name) is None})
        with self.read() as connection:
            first: dict[str, str] = {}
            for part in chunks(wanted):
                asking = {"tenant": self.tenant, "wanted": part}
                first |= {row.request_id: row.decision_id for row in connection.execute(_BY_REQUESTS, asking)}
            stored = self._positions(connection, list(first.values()))
        return {name: stored[decision_id] for name, decision_id in first.items() if decision_id in stored}

    def _positions(self, connection: Connection, first_ids: Sequence[str]) -> dict[str, tuple[Decision, ...]]:
        """decision id of an answer → its positions in order."""
        found: dict[str, list[Decision]] = defaultdict(list)
        start, left = 0, list(dict.fromkeys(first_ids))
        while left:
            names = {name: [position_id(name, start + k) for k in range(_POSITIONS)] for name in left}
            rows = self._by_ids(connection, [wanted for group in names.values() for wanted in group])
            for name, group in names.items():
                found[name] += [rows[wanted] for wanted in group if wanted in rows]
            left = [name for name, group in names.items() if group[-1] in rows]
            start += _POSITIONS
        return {name: tuple(positions) for name, positions in found.items() if positions}

    def _by_ids(self, connection: Connection, decision_ids: Sequence[str]) -> dict[str, Decision]:
        rows: list[Any] = []
        for part in chunks(decision_ids):
            rows += connection.execute(_BY_IDS, {"tenant": self.tenant, "wanted": part}).all()
        sets = self._sets(connection, {row.candidate_set for row in rows})
        return {row.decision_id: from_row(row, sets[row.candidate_set].ids) for row in rows}
