"""The one row that every replica polls (what serves now), and the simulated clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, select, update

from qiance.ledger.audit import Audit
from qiance.ledger.database import checked, insert_ignoring, insert_into
from qiance.ledger.records import GateClosedError, Override, Versions
from qiance.ledger.schema import clocks, versions

if TYPE_CHECKING:
    from qiance.evaluate.gate import Verdict

NO_VERSION = "none"
_READ = select(versions).where(versions.c.tenant_id == bindparam("tenant"))
_LOCKED = _READ.with_for_update()
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
        shadow_price: float | None = None,
        killed: bool | None = None,
        by: str = "system",
    ) -> Versions:
        """Changes what is given, leaves the rest; the serial grows and an audit line is written.

        A policy comes by `launch_policy` alone.
        """
        changes = _changes(model=model, shadow_price=shadow_price, killed=killed)
        with self.write() as connection:
            changed = self._bump(connection, **changes)
            self._write_line(connection, "versions.changed", "versions", by, changes)
        return changed

    def launch_policy(
        self,
        policy: str,
        *,
        shadow_price: float,
        model: str | None = None,
        by: str = "system",
        verdict: Verdict | None = None,
        override: Override | None = None,
    ) -> Versions:
        """Makes `policy` live, with the price that it starts from and, if given, the model it decides by.

        It needs a verdict of the gate that passed and is about this policy in the place of the one that is
        live now, or an override by a named person with a reason. The audit line, of the same transaction, has
        the verdict in either case. GateClosedError else, and nothing changes.
        """
        changes = _changes(policy=policy, shadow_price=shadow_price, model=model)
        with self.write() as connection:
            before = _versions(connection.execute(_LOCKED, {"tenant": self.tenant}).one())
            if override is None:
                _admit(policy, before.policy, verdict)
            changed = self._bump(connection, **changes)
            event = "policy.launched" if override is None else "policy.overridden"
            detail = {**changes, "instead_of": before.policy}
            detail |= {} if override is None else {"reason": override.reason}
            detail |= {"gate": None if verdict is None else verdict.told()}
            self._write_line(connection, event, policy, by if override is None else override.by, detail)
        return changed

    def stop_policy(self, by: str, reason: str) -> Versions:
        """Takes the live policy off: `control` for everybody until another is launched. Needs no gate."""
        with self.write() as connection:
            before = _versions(connection.execute(_LOCKED, {"tenant": self.tenant}).one())
            changed = self._bump(connection, policy=NO_VERSION)
            self._write_line(connection, "policy.stopped", before.policy, by, {"reason": reason})
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


def _changes(**given: Any) -> Mapping[str, Any]:
    """What is given, checked."""
    changes = {name: value for name, value in given.items() if value is not None}
    for name in ("model", "policy"):
        if name in changes:
            checked(f"versions.{name}", changes[name])
    price = changes.get("shadow_price", 0.0)
    if not (math.isfinite(price) and price >= 0.0):
        raise ValueError(f"versions.shadow_price: {price!r} is not a finite number ≥ 0")
    return changes


def _admit(policy: str, live: str, verdict: Verdict | None) -> None:
    """GateClosedError unless the gate was passed by this policy, against the one that is live."""
    if policy == NO_VERSION:
        raise GateClosedError("policy: 'none' is no policy; take the live one off with stop_policy")
    if verdict is None:
        raise GateClosedError(f"policy {policy!r}: was not judged; evaluate it first, or override the gate")
    if (verdict.policy, verdict.live) != (policy, live):
        raise GateClosedError(
            f"policy {policy!r}: the verdict is of {verdict.policy!r} against {verdict.live!r}, and "
            f"{live!r} is live; evaluate it again"
        )
    if not verdict.passed:
        raise GateClosedError(f"policy {policy!r}: the gate is closed: {verdict.reason}")


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
