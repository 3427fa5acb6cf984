"""Budgets that are never overspent: what a decision may cost is reserved before it is made, then settled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, bindparam, cast, func, select, update

from qiance.ledger.audit import Audit
from qiance.ledger.database import checked, chunks, insert_into
from qiance.ledger.records import BudgetStatus
from qiance.ledger.schema import budgets, leases, reservations

MOST_MINOR_UNITS = 2**53  # beyond this a float64 report could not tell neighbours apart
OPEN, _SETTLED, _RELEASED = "open", "settled", "released"

_MINE = (budgets.c.tenant_id == bindparam("tenant"), budgets.c.budget_id == bindparam("budget"))
_LEASED = (
    select(func.coalesce(func.sum(leases.c.amount - leases.c.used), 0))
    .where(leases.c.tenant_id == budgets.c.tenant_id, leases.c.budget_id == budgets.c.budget_id)
    .scalar_subquery()
)
_STATUS = select(budgets, cast(_LEASED, BigInteger).label("leased")).where(*_MINE)
# Each is one statement, so no other writer can come between the test and the change.
_ADMITS = budgets.c.spent + budgets.c.reserved + bindparam("amount") <= budgets.c.cap
RESERVE = update(budgets).where(*_MINE, _ADMITS).values(reserved=budgets.c.reserved + bindparam("amount"))
_SPEND_LATE = update(budgets).where(*_MINE, _ADMITS).values(spent=budgets.c.spent + bindparam("amount"))
_SETTLE = (
    update(budgets)
    .where(*_MINE)
    .values(spent=budgets.c.spent + bindparam("booked"), reserved=budgets.c.reserved - bindparam("freed"))
)
_HELD = (
    select(reservations)
    .where(
        reservations.c.tenant_id == bindparam("tenant"),
        reservations.c.decision_id.in_(bindparam("decisions", expanding=True)),
    )
    .order_by(reservations.c.decision_id)
    .with_for_update()
)
_IS_DUE = (
    reservations.c.tenant_id == bindparam("tenant"),
    reservations.c.state == OPEN,
    reservations.c.expires_at <= bindparam("now", type_=reservations.c.expires_at.type),
)
_ANY_DUE = select(reservations.c.decision_id).where(*_IS_DUE).limit(1)
_DUE = select(reservations).where(*_IS_DUE).with_for_update(skip_locked=True)
_CLOSE = (
    update(reservations)
    .where(
        reservations.c.tenant_id == bindparam("tenant"),
        reservations.c.decision_id == bindparam("decision"),
    )
    .values(state=bindparam("to_state"), settled=bindparam("to_settled"))
)


class Budgets(Audit):
    """Opening, settling and releasing. Amounts are minor units."""

    def open_budget(self, budget_id: str, cap: int) -> BudgetStatus:
        """Opens a budget, or moves the cap of an open one; never below what is spent and reserved."""
        checked("budget_id", budget_id)
        check_amount("cap", cap)
        row = {"tenant_id": self.tenant, "budget_id": budget_id, "cap": cap, "spent": 0, "reserved": 0}
        insert = insert_into(self.dialect, budgets)
        statement = insert.on_conflict_do_update(
            index_elements=[budgets.c.tenant_id, budgets.c.budget_id],
            set_={"cap": insert.excluded.cap},
            where=budgets.c.spent + budgets.c.reserved <= insert.excluded.cap,
        ).returning(budgets.c.cap)
        with self.write() as connection:
            if connection.execute(statement, row).first() is None:
                raise ValueError(f"cap: {cap} is below what budget {budget_id!r} has spent and reserved")
            self._write_line(connection, "budget.opened", budget_id, "system", {"cap": cap})
        return self.budget(budget_id)

    def budget(self, budget_id: str) -> BudgetStatus:
        """Where a budget stands, leases included; ValueError if it was never opened."""
        with self.read() as connection:
            return self._status(connection, budget_id)

    def settle(self, decision_id: str, amount: int) -> int:
        """Books what a decision really cost and gives the rest of its reservation back.

        Returns the minor units booked: at most what was reserved, as a cap is never passed. A repeat
        changes nothing and returns what was booked the first time. After the reservation expired the
        amount is booked only if the budget still admits it; else no more is booked and an audit line says so.
        """
        return self.settle_many({decision_id: amount})[decision_id]

    def settle_many(self, amounts: Mapping[str, int]) -> dict[str, int]:
        """`settle` for decision id → amount, in one transaction."""
        for decision_id, amount in amounts.items():
            checked("decision_id", decision_id)
            check_amount(f"amount of {decision_id!r}", amount)
        with self.write() as connection:
            held = self._held(connection, list(amounts))
            missing = amounts.keys() - held.keys()
            if missing:
                raise ValueError(f"decision_id: {sorted(missing)[0]!r} holds no reservation to settle")
            booked = {key: row.settled for key, row in held.items() if row.state == _SETTLED}
            by_budget: dict[str, list[Row[Any]]] = defaultdict(list)
            for row in held.values():
                if row.state != _SETTLED:
                    by_budget[row.budget_id].append(row)
            for budget_id in sorted(by_budget):  # one order of locks for everybody
                booked |= self._settle_budget(connection, budget_id, by_budget[budget_id], amounts)
            fresh = {row.decision_id: booked[row.decision_id] for rows in by_budget.values() for row in rows}
            self._close_reservations(connection, _SETTLED, fresh)
        return {decision_id: booked[decision_id] for decision_id in amounts}

    def holding(self, decision_ids: Iterable[str]) -> set[str]:
        """Those of the decisions that hold, or held, a reservation."""
        with self.read() as connection:
            return set(self._held(connection, list(decision_ids)))

    def release_expired(self, now: datetime) -> int:
        """Ends reservations that expired at or before `now`; how many.

        What is certain of each is booked, the rest goes back to its budget.
        """
        with self.read() as connection:  # a poll that finds nothing takes no write lock
            if connection.execute(_ANY_DUE, {"tenant": self.tenant, "now": now}).first() is None:
                return 0
        with self.write() as connection:
            due = connection.execute(_DUE, {"tenant": self.tenant, "now": now}).all()
            self._close_reservations(connection, _RELEASED, {row.decision_id: row.certain for row in due})
            freed: dict[str, int] = defaultdict(int)
            booked: dict[str, int] = defaultdict(int)
            for row in due:
                freed[row.budget_id] += row.amount
                booked[row.budget_id] += row.certain
            for budget_id in sorted(freed):
                self._move(connection, budget_id, booked=booked[budget_id], freed=freed[budget_id])
        return len(due)

    def _held(self, connection: Connection, decision_ids: list[str]) -> dict[str, Row[Any]]:
        return {
            row.decision_id: row
            for part in chunks(sorted(decision_ids))
            for row in connection.execute(_HELD, {"tenant": self.tenant, "decisions": part})
        }

    def _settle_budget(
        self, connection: Connection, budget_id: str, rows: list[Row[Any]], amounts: Mapping[str, int]
    ) -> dict[str, int]:
        booked = {row.decision_id: min(amounts[row.decision_id], row.amount) for row in rows}
        held = [row for row in rows if row.state == OPEN]
        spent = sum(booked[row.decision_id] for row in held)
        self._move(connection, budget_id, booked=spent, freed=sum(row.amount for row in held))
        for row in rows:
            if row.state == _RELEASED:
                booked[row.decision_id] = self._settle_late(connection, row, booked[row.decision_id])
        return booked

    def _settle_late(self, connection: Connection, row: Row[Any], amount: int) -> int:
        more = max(amount - int(row.settled), 0)  # what was certain was booked at the expiry
        wanted = {"tenant": self.tenant, "budget": row.budget_id, "amount": more}
        if more == 0 or connection.execute(_SPEND_LATE, wanted).rowcount == 1:
            return int(row.settled) + more
        detail = {"budget_id": row.budget_id, "amount": more, "expired_at": row.expires_at.isoformat()}
        self._write_line(connection, "budget.late_cost_not_booked", row.decision_id, "system", detail)
        return int(row.settled)

    def _move(self, connection: Connection, budget_id: str, *, booked: int, freed: int) -> None:
        change = {"tenant": self.tenant, "budget": budget_id, "booked": booked, "freed": freed}
        connection.execute(_SETTLE, change)

    def _close_reservations(self, connection: Connection, state: str, settled: Mapping[str, int]) -> None:
        changes = [
            {"tenant": self.tenant, "decision": decision_id, "to_state": state, "to_settled": amount}
            for decision_id, amount in settled.items()
        ]
        if changes:
            connection.execute(_CLOSE, changes)

    def _status(self, connection: Connection, budget_id: str) -> BudgetStatus:
        checked("budget_id", budget_id)
        row = connection.execute(_STATUS, {"tenant": self.tenant, "budget": budget_id}).one_or_none()
        if row is None:
            raise ValueError(f"budget_id: {budget_id!r} is not open; call open_budget first")
        return BudgetStatus(row.budget_id, row.cap, row.spent, row.reserved, row.leased)


def check_amount(field: str, amount: int) -> None:
    if isinstance(amount, bool) or not isinstance(amount, int) or not 0 <= amount <= MOST_MINOR_UNITS:
        raise ValueError(f"{field}: {amount!r} is not an integer number of minor units in [0, 2**53]")
