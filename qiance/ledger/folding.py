"""Decisions of erased users become totals: what they add up to stays, whose they were does not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select

from qiance.ledger.budgets import OPEN, Budgets
from qiance.ledger.database import chunks, insert_into
from qiance.ledger.marks import DECISION, PSEUDONYM, Marks
from qiance.ledger.outcomes import outcomes_by_decision
from qiance.ledger.schema import decisions, erased_totals, outcomes, pseudonyms, reservations

_GROUP = ("action_id", "surface", "holdout", "model_version", "policy_version")
_SUMS = ("decisions", "clicks", "conversions", "sales", "events")
# The lock makes an erasure wait for decisions in flight, and those wait for an erasure.
_PRESENT = (
    select(pseudonyms.c.pseudonym)
    .where(
        pseudonyms.c.tenant_id == bindparam("tenant"),
        pseudonyms.c.pseudonym.in_(bindparam("wanted", expanding=True)),
    )
    .order_by(pseudonyms.c.pseudonym)
    .with_for_update(read=True, key_share=True)
)
_DELETES = {
    table.name: delete(table).where(
        table.c.tenant_id == bindparam("tenant"), table.c.decision_id.in_(bindparam("ids", expanding=True))
    )
    for table in (reservations, outcomes, decisions)
}
_MINE = (
    decisions.c.tenant_id == bindparam("tenant"),
    decisions.c.decision_id.in_(bindparam("ids", expanding=True)),
)


class Folding(Budgets, Marks):
    """Adding decisions to the totals and removing their rows."""

    def _erased_pseudonyms(self, connection: Connection, names: Sequence[str]) -> set[str]:
        """Those of the pseudonyms whose user was erased since they were looked up."""
        wanted = sorted(set(names))
        present = {
            name
            for part in chunks(wanted)
            for name in connection.execute(_PRESENT, {"tenant": self.tenant, "wanted": part}).scalars()
        }
        missing = [name for name in wanted if name not in present]
        return self._marked(connection, PSEUDONYM, missing) if missing else set()

    def _fold(self, connection: Connection, ids: Sequence[str]) -> Counter[str]:
        """Replaces decisions and what hangs on them by totals; rows removed by table.

        An open reservation ends as it would have at its expiry: no outcome can settle it any more.
        """
        removed: Counter[str] = Counter()
        for part in chunks(sorted(ids)):
            self._end_reservations(connection, part)
            self._add_totals(connection, part)
            for name, statement in _DELETES.items():
                removed[name] += connection.execute(statement, {"tenant": self.tenant, "ids": part}).rowcount
            self._put_marks(connection, DECISION, part)
        return removed

    def _end_reservations(self, connection: Connection, ids: Sequence[str]) -> None:
        held = [row for row in self._held(connection, list(ids)).values() if row.state == OPEN]
        freed: dict[str, int] = defaultdict(int)
        booked: dict[str, int] = defaultdict(int)
        for row in held:
            freed[row.budget_id] += row.amount
            booked[row.budget_id] += row.certain
        for budget_id in sorted(freed):
            self._move(connection, budget_id, booked=booked[budget_id], freed=freed[budget_id])

    def _add_totals(self, connection: Connection, ids: Sequence[str]) -> None:
        events = outcomes_by_decision(self.tenant, _MINE).subquery()
        columns = ("click", "conversion", "sales", "n_events")
        query = (
            select(
                decisions.c.decided_at,
                *(decisions.c[name] for name in _GROUP),
                *(func.coalesce(events.c[name], 0).label(name) for name in columns),
            )
            .outerjoin(events, events.c.decision_id == decisions.c.decision_id)
            .where(*_MINE)
        )
        totals: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(_SUMS))
        for row in connection.execute(query, {"tenant": self.tenant, "ids": ids}):
            total = totals[(_day(row.decided_at), *(getattr(row, name) for name in _GROUP))]
            for place, more in enumerate((1, row.click, row.conversion, row.sales, row.n_events)):
                total[place] += more
        if totals:
            connection.execute(self._adding(), [self._total_row(*entry) for entry in sorted(totals.items())])

    def _total_row(self, group: tuple[Any, ...], sums: list[int]) -> dict[str, Any]:
        named = zip(("day", *_GROUP, *_SUMS), (*group, *sums), strict=True)
        return {"tenant_id": self.tenant, **dict(named)}

    def _adding(self) -> Any:
        insert = insert_into(self.dialect, erased_totals)
        return insert.on_conflict_do_update(
            index_elements=list(erased_totals.primary_key.columns),
            set_={name: erased_totals.c[name] + insert.excluded[name] for name in _SUMS},
        )


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
