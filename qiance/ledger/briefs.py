"""Briefs, and who works on them: the table is the queue, and survives whoever takes from it."""

from __future__ import annotations

import json
import math
from typing import Any

from sqlalchemy import Connection, Row, and_, func, or_, select, update

from qiance.domain import Brief, BriefState
from qiance.ledger.codec import brief_from_dict, brief_to_dict
from qiance.ledger.creatives import Creatives
from qiance.ledger.database import checked, inserted, text_problem
from qiance.ledger.leases import term_of
from qiance.ledger.records import BriefRecord
from qiance.ledger.schema import briefs

MOST_ATTEMPTS = 3  # of workers that ended before the brief did: one that kills its worker is not for ever


class Briefs(Creatives):
    """Briefs from their arrival to their end.

    A worker takes a brief for a term and renews it while it works. Whose term is over has ended, and another
    takes the brief up anew. Terms are in the machines' time, whatever time is simulated.
    """

    def put_brief(self, brief: Brief) -> None:
        """Stores a new brief, queued; ValueError if its id is taken."""
        now = self._now()
        row = {
            "tenant_id": self.tenant,
            "brief_id": checked("brief_id", brief.brief_id),
            "payload": json.dumps(brief_to_dict(brief), allow_nan=False),
            "state": BriefState.QUEUED.value,
            "progress": 0.0,
            "message": "",
            "created_at": now,
            "updated_at": now,
        }
        with self.write() as connection:
            if not inserted(connection, briefs, row):
                raise ValueError(f"brief_id: {brief.brief_id!r} is taken; choose another")

    def brief(self, brief_id: str) -> BriefRecord | None:
        """A brief and how far it is, or None."""
        if text_problem(brief_id) is not None:
            return None  # what cannot be stored is not there
        with self.read() as connection:
            row = connection.execute(select(briefs).where(*self._is(brief_id))).one_or_none()
        return None if row is None else _record(row)

    def briefs(self, state: BriefState | None = None) -> list[BriefRecord]:
        """All briefs, oldest first; only those in `state` if given."""
        statement = select(briefs).where(briefs.c.tenant_id == self.tenant)
        if state is not None:
            statement = statement.where(briefs.c.state == state.value)
        with self.read() as connection:
            rows = connection.execute(statement.order_by(briefs.c.created_at, briefs.c.brief_id)).all()
        return [_record(row) for row in rows]

    def waiting_briefs(self) -> int:
        """How many nobody has begun."""
        waiting = (briefs.c.tenant_id == self.tenant, briefs.c.state == BriefState.QUEUED.value)
        with self.read() as connection:
            return int(connection.execute(select(func.count()).where(*waiting)).scalar_one())

    def take_brief(self, holder: str, term_s: float) -> BriefRecord | None:
        """The oldest brief that is queued, or whose worker's term is over; now `holder`'s for `term_s`.

        None when there is no such brief. One that workers ended on `MOST_ATTEMPTS` times fails instead.
        """
        checked("holder", holder)
        until = self._system_now() + term_of(term_s)
        with self.read() as connection:  # a poll that finds nothing takes no write lock
            if connection.execute(self._free().limit(1)).first() is None:
                return None
        with self.write() as connection:
            while (row := connection.execute(self._free(lock=True).limit(1)).first()) is not None:
                if row.attempts < MOST_ATTEMPTS:
                    taken = {"attempts": row.attempts + 1, "holder": holder, "held_until": until}
                    self._set(connection, row.brief_id, BriefState.RUNNING, 0.0, _begun(row), **taken)
                    return _record(connection.execute(select(briefs).where(*self._is(row.brief_id))).one())
                said = f"its worker ended {row.attempts} times; see the generator's log"
                self._set(connection, row.brief_id, BriefState.FAILED, 1.0, said)
        return None

    def keep_brief(self, brief_id: str, holder: str, progress: float, message: str, term_s: float) -> bool:
        """Notes how far the work is and renews the term; False where the brief is not `holder`'s any more.

        progress: in [0, 1].
        """
        if not (math.isfinite(progress) and 0.0 <= progress <= 1.0):
            raise ValueError(f"progress: {progress!r} is not a fraction in [0, 1]")
        until = self._system_now() + term_of(term_s)
        with self.write() as connection:
            held = self._lock_held(connection, brief_id, holder)
            if held:
                self._set(connection, brief_id, BriefState.RUNNING, progress, message, held_until=until)
        return held

    def end_brief(self, brief_id: str, holder: str, state: BriefState, message: str) -> bool:
        """Brings a brief to its end; False, and nothing is changed, where it is not `holder`'s any more."""
        if not state.is_final:
            raise ValueError(f"state: {state.value!r} is no end; use done, failed or cancelled")
        with self.write() as connection:
            held = self._lock_held(connection, brief_id, holder)
            if held:
                self._set(connection, brief_id, state, 1.0, message)
        return held

    def cancel_brief(self, brief_id: str, message: str) -> BriefRecord | None:
        """Ends a brief before its time, whoever works on it; one that has ended stays as it is.

        The brief afterwards, or None if there is none of that id.
        """
        if text_problem(brief_id) is not None:
            return None
        with self.write() as connection:
            row = connection.execute(select(briefs).where(*self._is(brief_id)).with_for_update()).first()
            if row is not None and not BriefState(row.state).is_final:
                self._set(connection, brief_id, BriefState.CANCELLED, 1.0, message)
        return self.brief(brief_id)

    def _is(self, brief_id: str) -> tuple[Any, ...]:
        return briefs.c.tenant_id == self.tenant, briefs.c.brief_id == brief_id

    def _free(self, lock: bool = False) -> Any:
        """Briefs that nobody holds, oldest first."""
        over = and_(briefs.c.state == BriefState.RUNNING.value, briefs.c.held_until <= self._system_now())
        free = or_(briefs.c.state == BriefState.QUEUED.value, over)
        found = select(briefs).where(briefs.c.tenant_id == self.tenant, free)
        found = found.order_by(briefs.c.created_at, briefs.c.brief_id)
        return found.with_for_update(skip_locked=True) if lock else found

    def _lock_held(self, connection: Connection, brief_id: str, holder: str) -> bool:
        """Whether `holder` works on the brief; its row stays locked until the transaction ends."""
        row = connection.execute(select(briefs).where(*self._is(brief_id)).with_for_update()).first()
        if row is None:
            raise ValueError(f"brief_id: {brief_id!r} is not known; put_brief first")
        return bool(row.state == BriefState.RUNNING.value and row.holder == holder)

    def _set(
        self,
        connection: Connection,
        brief_id: str,
        state: BriefState,
        progress: float,
        message: str,
        **more: Any,
    ) -> None:
        values = {"state": state.value, "progress": progress, "message": message, "updated_at": self._now()}
        connection.execute(update(briefs).where(*self._is(brief_id)).values(**values, **more))


def _begun(row: Row[Any]) -> str:
    if not row.attempts:
        return "begun"
    return f"begun anew: its worker ended (attempt {row.attempts + 1} of {MOST_ATTEMPTS})"


def _record(row: Row[Any]) -> BriefRecord:
    brief = brief_from_dict(json.loads(row.payload))
    return BriefRecord(brief, BriefState(row.state), row.progress, row.message, row.attempts)
