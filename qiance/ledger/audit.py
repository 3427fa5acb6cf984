"""Who did what, and when: lines that are only ever added."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from qiance.ledger.database import Database, checked
from qiance.ledger.records import AuditLine
from qiance.ledger.schema import audit_lines


class Audit(Database):
    """The audit trail of a tenant."""

    def audit(self, event: str, subject: str, by: str, detail: str | Mapping[str, Any] = "") -> None:
        """Adds a line; `event` is what happened (`strategy.approved`), `subject` to what, `by` by whom."""
        with self.write() as connection:
            self._write_line(connection, event, subject, by, detail)

    def audit_lines(self, limit: int = 100) -> list[AuditLine]:
        """The newest `limit` lines, newest first."""
        statement = (
            select(audit_lines)
            .where(audit_lines.c.tenant_id == self.tenant)
            .order_by(audit_lines.c.line.desc())
            .limit(limit)
        )
        with self.read() as connection:
            rows = connection.execute(statement).all()
        return [
            AuditLine(row.line, row.at, row.event, row.subject, row.by, json.loads(row.detail))
            for row in rows
        ]

    def _write_line(
        self, connection: Connection, event: str, subject: str, by: str, detail: str | Mapping[str, Any]
    ) -> None:
        """Adds the line to the transaction of what it tells about: both happen, or neither."""
        row = {
            "tenant_id": self.tenant,
            "at": self._now(),
            "event": checked("audit.event", event),
            "subject": checked("audit.subject", subject),
            "by": checked("audit.by", by),
            "detail": json.dumps(detail, allow_nan=False),
        }
        connection.execute(audit_lines.insert(), row)
