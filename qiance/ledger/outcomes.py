"""Outcome events, and the table of decisions joined with what came of them that models learn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from sqlalchemy import BigInteger, Select, bindparam, case, cast, func, select

from qiance.domain import Outcome, OutcomeType, Purpose
from qiance.ledger.consent_rules import granted
from qiance.ledger.database import chunks, insert_ignoring, text_problem
from qiance.ledger.marks import DECISION, Marks
from qiance.ledger.records import OutcomeReceipt, RejectedOutcome
from qiance.ledger.schema import decisions, outcomes

MOST_MINOR_UNITS = 2**53
_VALUED = (OutcomeType.CONVERSION, OutcomeType.REFUND)
# The lock keeps an erasure from taking the decision away before its outcome is there.
_KNOWN = (
    select(decisions.c.decision_id)
    .where(
        decisions.c.tenant_id == bindparam("tenant"),
        decisions.c.decision_id.in_(bindparam("wanted", expanding=True)),
    )
    .order_by(decisions.c.decision_id)
    .with_for_update(read=True, key_share=True)
)

LEARNING_SCHEMA = pa.schema(
    [
        ("decision_id", pa.string()),
        ("pseudonym", pa.string()),
        ("action_id", pa.string()),
        ("propensity", pa.float64()),
        ("holdout", pa.bool_()),
        ("decided_at", pa.timestamp("us", tz="UTC")),
        ("surface", pa.string()),
        ("model_version", pa.string()),
        ("policy_version", pa.string()),
        ("click", pa.int8()),
        ("conversion", pa.int8()),
        ("sales", pa.int64()),
        ("n_events", pa.int64()),
    ]
)


class Outcomes(Marks):
    """Recording outcomes and reading them back joined to their decisions."""

    def record_outcomes(self, batch: Sequence[Outcome]) -> OutcomeReceipt:
        """Stores outcome events in one transaction; what is counted as accepted is durable.

        An event id seen before, in this batch or an earlier one, is a duplicate and changes nothing.
        Rejected are events of unknown decisions (`unknown_decision`), of decisions whose user is erased
        (`erased_decision`) and malformed ones (`invalid`).
        """
        rejected = {
            index: RejectedOutcome(index, "invalid", problem)
            for index, outcome in enumerate(batch)
            if (problem := _problem(outcome)) is not None
        }
        with self.write() as connection:
            candidates = [index for index in range(len(batch)) if index not in rejected]
            known = self._known(connection, {batch[index].decision_id for index in candidates})
            unknown = {index: batch[index].decision_id for index in candidates}
            unknown = {index: name for index, name in unknown.items() if name not in known}
            erased = self._marked(connection, DECISION, unknown.values()) if unknown else set()
            for index, name in unknown.items():
                rejected[index] = _not_there(index, name, name in erased)
            events = [batch[index] for index in candidates if index not in rejected]
            accepted = self._insert_outcomes(connection, events)
        return OutcomeReceipt(
            accepted, len(events) - accepted, [rejected[index] for index in sorted(rejected)]
        )

    def decision_outcomes(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        learnable_only: bool = False,
        unrecorded: frozenset[Purpose] = frozenset(),
    ) -> pa.Table:
        """Every decision made in [since, until) with its outcomes so far, oldest first (LEARNING_SCHEMA).

        click, conversion: 1 if there was any. sales: conversions − refunds, minor units. Decisions of erased
        users are in `erased_aggregates`. learnable_only: leave out users who did not agree to learning;
        unrecorded: the purposes that a user who was never asked counts as having agreed to.
        """
        query = self._learning_query(since, until)
        if learnable_only:
            query = query.where(granted(decisions, Purpose.LEARNING, unrecorded))
        with self.read() as connection:
            rows = connection.execute(query).all()
        columns: Iterable[Sequence[Any]] = zip(*rows, strict=True) if rows else [[]] * len(LEARNING_SCHEMA)
        arrays = [
            pa.array(column, type=field.type) for column, field in zip(columns, LEARNING_SCHEMA, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=LEARNING_SCHEMA)

    def _learning_query(self, since: datetime | None, until: datetime | None) -> Select[Any]:
        made = [decisions.c.tenant_id == self.tenant]
        if since is not None:
            made.append(decisions.c.decided_at >= since)
        if until is not None:
            made.append(decisions.c.decided_at < until)
        events = outcomes_by_decision(self.tenant, made if len(made) > 1 else None).subquery()
        d = decisions.c
        return (
            select(
                d.decision_id, d.pseudonym, d.action_id, d.propensity, d.holdout, d.decided_at, d.surface,
                d.model_version, d.policy_version,
                *(func.coalesce(events.c[name], 0) for name in ("click", "conversion", "sales", "n_events")),
            )
            .outerjoin(events, events.c.decision_id == d.decision_id)
            .where(*made)
            .order_by(d.decided_at, d.decision_id)
        )  # fmt: skip

    def _known(self, connection: Any, decision_ids: set[str]) -> set[str]:
        return {
            decision_id
            for part in chunks(sorted(decision_ids))
            for decision_id in connection.execute(_KNOWN, {"tenant": self.tenant, "wanted": part}).scalars()
        }

    def _insert_outcomes(self, connection: Any, events: Sequence[Outcome]) -> int:
        """How many of `events` were new."""
        if not events:
            return 0
        received_at = self._now()
        rows = [
            {
                "tenant_id": self.tenant,
                "event_id": event.event_id,
                "decision_id": event.decision_id,
                "type": event.type.value,
                "value": event.value,
                "occurred_at": event.occurred_at,
                "received_at": received_at,
            }
            # In one order for everybody, so that two senders of the same events cannot deadlock.
            for event in sorted(events, key=lambda event: event.event_id)
        ]
        statement = insert_ignoring(self.dialect, outcomes).returning(outcomes.c.event_id)
        return len(connection.execute(statement, rows).all())


def outcomes_by_decision(tenant: str, made: Sequence[Any] | None) -> Select[Any]:
    """Per decision: whether it was clicked and converted, its sales, its number of events.

    made: conditions on the decisions, None for all.
    """
    kind, value = outcomes.c.type, outcomes.c.value
    sales = case((kind == OutcomeType.CONVERSION, value), (kind == OutcomeType.REFUND, -value), else_=0)
    query = select(
        outcomes.c.decision_id,
        func.max(case((kind == OutcomeType.CLICK, 1), else_=0)).label("click"),
        func.max(case((kind == OutcomeType.CONVERSION, 1), else_=0)).label("conversion"),
        cast(func.sum(sales), BigInteger).label("sales"),  # PostgreSQL sums to numeric
        func.count().label("n_events"),
    ).where(outcomes.c.tenant_id == tenant)
    if made is not None:
        query = query.where(outcomes.c.decision_id.in_(select(decisions.c.decision_id).where(*made)))
    return query.group_by(outcomes.c.decision_id)


def _not_there(index: int, decision_id: str, erased: bool) -> RejectedOutcome:
    if erased:
        detail = f"decision_id: {decision_id!r} is erased with its user; nothing more is kept of it"
        return RejectedOutcome(index, "erased_decision", detail)
    return RejectedOutcome(
        index, "unknown_decision", f"decision_id: {decision_id!r} is not a logged decision"
    )


def _problem(outcome: Outcome) -> str | None:
    """Why an event cannot be stored, naming the field; None if it can."""
    if (problem := text_problem(outcome.event_id)) is not None:
        return f"event_id: {problem}"
    if (problem := text_problem(outcome.decision_id)) is not None:
        return f"decision_id: {problem}"
    if outcome.occurred_at.tzinfo is None:
        return "occurred_at: has no time zone; send one in UTC"
    value = outcome.value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_MINOR_UNITS:
        return f"value: {value!r} is not an integer number of minor units in [0, 2**53]"
    if value and outcome.type not in _VALUED:
        return f"value: {value} on a {outcome.type.value}; only a conversion or a refund has a value"
    return None
