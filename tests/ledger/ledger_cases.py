"""What the ledger's tests share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from qiance.domain import Decision

KEY = b"a key that only tests use, 32 b."
NOW = datetime(2017, 3, 1, 12, tzinfo=UTC)
MakeDecision = Callable[..., Decision]
