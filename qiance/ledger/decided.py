"""Reading decisions together with what came of them: what a policy that did not act is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import select, tuple_

from qiance.domain import Purpose
from qiance.ledger.consent_rules import granted
from qiance.ledger.decisions import Decisions
from qiance.ledger.outcomes import Outcomes, outcomes_by_decision
from qiance.ledger.packing import from_row
from qiance.ledger.records import LoggedDecision
from qiance.ledger.schema import decisions

PAGE = 1_000


class Decided(Decisions, Outcomes):
    """Decisions with their outcomes, page by page."""

    def decided(
        self, until: datetime, unrecorded: frozenset[Purpose] = frozenset()
    ) -> Iterator[list[LoggedDecision]]:
        """First positions of answers made before `until` outside the holdout, newest first, in pages.

        Only of users who agree to learning; unrecorded: the purposes that a user who was never asked counts
        as having agreed to. Further positions hang on the ones before, so they are left out.
        """
        d = decisions.c
        base = (
            select(decisions)
            .where(
                d.tenant_id == self.tenant,
                d.holdout.is_(False),
                d.decision_id.not_like("%.%"),
                granted(decisions, Purpose.LEARNING, unrecorded),
            )
            .order_by(d.decided_at.desc(), d.decision_id.desc())
            .limit(PAGE)
        )
        page = base.where(d.decided_at < until)
        while True:
            with self.read() as connection:
                rows = connection.execute(page).all()
            if not rows:
                return
            yield self._with_sales(rows)
            last = rows[-1]
            page = base.where(tuple_(d.decided_at, d.decision_id) < (last.decided_at, last.decision_id))

    def _with_sales(self, rows: Any) -> list[LoggedDecision]:
        wanted = [row.decision_id for row in rows]
        made = [decisions.c.tenant_id == self.tenant, decisions.c.decision_id.in_(wanted)]
        with self.read() as connection:
            found = connection.execute(outcomes_by_decision(self.tenant, made)).all()
            sets = self._sets(connection, {row.candidate_set for row in rows})
        sales = {row.decision_id: int(row.sales) for row in found}
        return [
            LoggedDecision(from_row(row, sets[row.candidate_set].ids), sales.get(row.decision_id, 0))
            for row in rows
        ]
