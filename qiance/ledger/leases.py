"""Leases: a replica takes a slice of a budget ahead of need, and hands it out without asking again."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from qiance.ledger.budgets import RESERVE, Budgets, check_amount
from qiance.ledger.database import checked
from qiance.ledger.records import Lease
from qiance.ledger.schema import leases

MOST_TERM_S = 86_400.0
_LISTED = (
    leases.c.tenant_id == bindparam("tenant"),
    leases.c.lease_id.in_(bindparam("wanted", expanding=True)),
)
# One order of locks for everybody who takes several.
_LOCKED = select(leases).where(*_LISTED).order_by(leases.c.lease_id).with_for_update()
_DUE = (
    leases.c.tenant_id == bindparam("tenant"),
    leases.c.expires_at <= bindparam("now", type_=leases.c.expires_at.type),
)
_ANY_DUE = select(leases.c.lease_id).where(*_DUE).limit(1)
_ALL_DUE = select(leases).where(*_DUE).order_by(leases.c.lease_id).with_for_update(skip_locked=True)
_OF_HOLDER = (
    select(leases)
    .where(leases.c.tenant_id == bindparam("tenant"), leases.c.holder == bindparam("holder"))
    .order_by(leases.c.lease_id)
    .with_for_update()
)
_RENEW = update(leases).where(*_LISTED).values(expires_at=bindparam("later", type_=leases.c.expires_at.type))
_DROP = delete(leases).where(*_LISTED)


class Leases(Budgets):
    """Leasing, renewing and giving back.

    Always: a budget's `reserved` is its open reservations and the unused parts of its leases. Terms are in
    the machines' time, whatever time is simulated. Clocks that differ end a lease early or late, no more.
    """

    def lease(self, budget_id: str, amount: int, holder: str, term_s: float) -> Lease | None:
        """A slice of `amount` minor units for `term_s` seconds, or None if the budget does not admit it.

        holder: who hands it out. ValueError if the budget was never opened.
        """
        checked("budget_id", budget_id)
        checked("holder", holder)
        check_amount("amount", amount)
        expires_at = self._system_now() + term_of(term_s)
        lease = Lease(secrets.token_hex(16), budget_id, holder, amount, expires_at)
        with self.write() as connection:
            wanted = {"tenant": self.tenant, "budget": budget_id, "amount": amount}
            if connection.execute(RESERVE, wanted).rowcount != 1:
                self._status(connection, budget_id)  # full, or never opened?
                return None
            connection.execute(leases.insert(), self._lease_row(lease))
        return lease

    def renew(self, lease_ids: Iterable[str], term_s: float) -> set[str]:
        """Those of the leases that are still alive; they now end `term_s` seconds from now."""
        wanted, now = sorted(set(lease_ids)), self._system_now()
        later = now + term_of(term_s)
        if not wanted:
            return set()
        with self.write() as connection:
            rows = self._lock_leases(connection, wanted).values()
            alive = [row.lease_id for row in rows if row.expires_at > now]
            if alive:
                connection.execute(_RENEW, {"tenant": self.tenant, "wanted": alive, "later": later})
        return set(alive)

    def end_lease(self, lease_id: str) -> int:
        """Gives back what is not used of a lease; how much, 0 if it is gone already."""
        with self.write() as connection:
            return self._end_leases(connection, list(self._lock_leases(connection, [lease_id]).values()))

    def end_leases_of(self, holder: str) -> int:
        """Gives back what is not used of every lease that `holder` has; how much."""
        checked("holder", holder)
        with self.write() as connection:
            rows = connection.execute(_OF_HOLDER, {"tenant": self.tenant, "holder": holder}).all()
            return self._end_leases(connection, rows)

    def reclaim_leases(self) -> int:
        """Gives back what is not used of leases whose term is over; how many they were."""
        asking = {"tenant": self.tenant, "now": self._system_now()}
        with self.read() as connection:  # a poll that finds nothing takes no write lock
            if connection.execute(_ANY_DUE, asking).first() is None:
                return 0
        with self.write() as connection:
            due = connection.execute(_ALL_DUE, asking).all()
            self._end_leases(connection, due)
        return len(due)

    def _lock_leases(self, connection: Connection, lease_ids: Sequence[str]) -> dict[str, Row[Any]]:
        """lease id → row of those that are there, locked until the transaction ends."""
        asking = {"tenant": self.tenant, "wanted": lease_ids}
        return {row.lease_id: row for row in connection.execute(_LOCKED, asking)}

    def _end_leases(self, connection: Connection, rows: Sequence[Row[Any]]) -> int:
        if not rows:
            return 0
        freed: dict[str, int] = defaultdict(int)
        for row in rows:
            freed[row.budget_id] += row.amount - row.used
        connection.execute(_DROP, {"tenant": self.tenant, "wanted": [row.lease_id for row in rows]})
        for budget_id in sorted(freed):  # one order of locks for everybody
            self._move(connection, budget_id, booked=0, freed=freed[budget_id])
        return sum(freed.values())

    def _lease_row(self, lease: Lease) -> dict[str, Any]:
        return {
            "tenant_id": self.tenant,
            "lease_id": lease.lease_id,
            "budget_id": lease.budget_id,
            "holder": lease.holder,
            "amount": lease.amount,
            "used": 0,
            "expires_at": lease.expires_at,
        }


def term_of(term_s: float) -> timedelta:
    """The term of a lease; ValueError unless it is positive and at most a day."""
    if not 0 < term_s <= MOST_TERM_S:
        raise ValueError(f"term_s: {term_s!r} is outside (0, {MOST_TERM_S:g}] seconds")
    return timedelta(seconds=term_s)
