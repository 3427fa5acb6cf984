"""What was erased, as keyed hashes: enough to say `erased` of an id, not enough to find what it was."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, bindparam, select

from qiance.ledger.database import Database, chunks, insert_ignoring
from qiance.ledger.schema import erased_marks

DECISION, PSEUDONYM = "decision", "pseudonym"
_MARKED = select(erased_marks.c.mark).where(
    erased_marks.c.tenant_id == bindparam("tenant"),
    erased_marks.c.mark.in_(bindparam("marks", expanding=True)),
)


class Marks(Database):
    """Marking ids as erased, and knowing them again."""

    def _marked(self, connection: Connection, kind: str, values: Iterable[str]) -> set[str]:
        """Those of the ids that are erased."""
        marks = {self._mark(kind, value): value for value in values}
        return {
            marks[mark]
            for part in chunks(sorted(marks))
            for mark in connection.execute(_MARKED, {"tenant": self.tenant, "marks": part}).scalars()
        }

    def _put_marks(self, connection: Connection, kind: str, values: Sequence[str]) -> None:
        rows = [{"tenant_id": self.tenant, "mark": self._mark(kind, value)} for value in values]
        if rows:
            # Sorted: in the order of the values, neighbours on disk would be one user's.
            rows.sort(key=lambda row: row["mark"])
            connection.execute(insert_ignoring(self.dialect, erased_marks), rows)

    def _mark(self, kind: str, value: str) -> str:
        message = "\x00".join(("qiance erased", kind, self.tenant, value))
        return hmac.new(self._key, message.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
