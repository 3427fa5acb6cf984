"""The one row that every replica polls (what serves now), and the simulated clock."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from qiance.ledger.audit import Audit
from qiance.ledger.database import checked, insert_ignoring, insert_into
from qiance.ledger.records import Versions
from qiance.ledger.schema import clocks, versions

NO_VERSION = "none"
_READ = select(versions).where(versions.c.tenant_id == bindparam("tenant"))
_CLOCK = select(clocks.c.now).where(clocks.c.tenant_id == bindparam("tenant"))


class VersionRow(Audit):
    """Reading and changing the version row and the clock."""

    def versions(self) -> Versions:
        """What serves now; one indexed row, cheap enough to poll every 250 ms."""
        with self.read() as connection:
            return _versions(connection.execute(_READ, {"tenant": self.tenant}).one())

    def set_versions(
        self,
        *,
        model: str | None = None,
        policy: str | None = None,
        shadow_price: float | None = None,
        killed: bool | None = None,
        by: str = "system",
    ) -> Versions:
        """Changes what is given, leaves the rest; the serial grows and an audit line is written."""
        if model is not None:
            checked("versions.model", model)
        if policy is not None:
            checked("versions.policy", policy)
        if shadow_price is not None and not (math.isfinite(shadow_price) and shadow_price >= 0.0):
            raise ValueError(f"versions.shadow_price: {shadow_price!r} is not a finite number ≥ 0")
        given = {"model": model, "policy": policy, "shadow_price": shadow_price, "killed": killed}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        with self.write() as connection:
            changed = self._bump(connection, **changes)
            self._write_line(connection, "versions.changed", "versions", by, changes)
        return changed

    def clock(self) -> datetime | None:
        """The latest simulated instant, or None if time was never advanced."""
        with self.read() as connection:
            return connection.execute(_CLOCK, {"tenant": self.tenant}).scalar_one_or_none()

    def advance_clock(self, now: datetime) -> datetime:
        """Moves simulated time to `now` unless it is already later; the time it is afterwards."""
        insert = insert_into(self.dialect, clocks)
        statement = insert.on_conflict_do_update(
            index_elements=[clocks.c.tenant_id],
            set_={"now": insert.excluded.now},
            where=clocks.c.now < insert.excluded.now,
        )
        with self.write() as connection:
            connection.execute(statement, {"tenant_id": self.tenant, "now": now})
            reached: datetime = connection.execute(_CLOCK, {"tenant": self.tenant}).scalar_one()
        return reached

    def _bump(self, connection: Connection, *, strategies_changed: bool = False, **changes: Any) -> Versions:
        statement = (
            update(versions)
            .where(versions.c.tenant_id == self.tenant)
            .values(
                serial=versions.c.serial + 1,
                strategies_serial=versions.c.strategies_serial + int(strategies_changed),
                updated_at=self._now(),
                **changes,
            )
            .returning(versions)
        )
        return _versions(connection.execute(statement).one())

    def _ensure_versions(self, connection: Connection) -> None:
        first = {
            "tenant_id": self.tenant,
            "serial": 0,
            "model": NO_VERSION,
            "policy": NO_VERSION,
            "shadow_price": 0.0,
            "strategies_serial": 0,
            "killed": False,
            "updated_at": self._now(),
        }
        connection.execute(insert_ignoring(self.dialect, versions), first)


def _versions(row: Any) -> Versions:
    return Versions(
        serial=row.serial,
        model=row.model,
        policy=row.policy,
        shadow_price=row.shadow_price,
        strategies_serial=row.strategies_serial,
        killed=row.killed,
        updated_at=row.updated_at,
    )
