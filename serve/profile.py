"""What the service knows of one user, view by view: for support, for a user who asks, for debugging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from qiance.features.online import Block, Fetched, OnlineReader, Status
from qiance.features.session import Recent, session_features
from qiance.ledger.schema import from_micros

WITHHELD = "withheld"
SESSION_VIEW = "user_session"


@dataclass(frozen=True)
class KnownRow:
    """One row of one view.

    others: its further keys, such as the category; status: present, stale, missing or withheld; at: when it
    was true; values: of a present row only.
    """

    view: str
    others: tuple[str, ...]
    status: str
    at: datetime | None
    values: Mapping[str, Any]


def describe(reader: OnlineReader, allowed: bool, user_id: str, now_us: int) -> list[KnownRow]:
    """Every row of the user; without consent (`allowed`) that it is withheld, and nothing is read.

    Raises RowsUnavailableError when the store does not answer.
    """
    views = sorted(name for name, view in reader.views.items() if view.keys[0] == "user_id")
    if not allowed:
        return [KnownRow(view, (), WITHHELD, None, {}) for view in views]
    fetched = reader.fetch("user_id", [user_id], now_us)
    return [row for view in views for row in _rows(fetched, view)]


def _rows(fetched: Fetched, view: str) -> Sequence[KnownRow]:
    if len(fetched.views[view].keys) == 1:
        return [_row(view, (), fetched.block(view), fetched)]
    return [_row(view, others, block, fetched) for others, block in fetched.pairs(view)]


def _row(view: str, others: tuple[str, ...], block: Block, fetched: Fetched) -> KnownRow:
    status, event_us = Status(int(block.status[0])), int(block.event_us[0])
    values: dict[str, Any] = {}
    if status is Status.PRESENT:
        values = {name: _plain(column[0]) for name, column in block.values.items()}
        values |= {name: _plain(found[0]) for name, found in block.lists.items()}
    if view == SESSION_VIEW and status is Status.PRESENT:
        recent = Recent(*(tuple(values[name]) for name in ("event_times", "event_types", "event_items")))
        values |= {n: float(v[0]) for n, v in session_features([recent], fetched.now_us).items()}
    return KnownRow(view, others, status.name.lower(), from_micros(event_us) if event_us else None, values)


def _plain(value: Any) -> Any:
    """A value as JSON takes it; NaN is null."""
    if isinstance(value, np.ndarray | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value


class KnownRowOut(BaseModel):
    """One row of a feature view."""

    view: str
    keys: list[str] = Field(description="Further keys of the row, such as the category")
    status: str = Field(description="present, stale (older than its TTL), missing, or withheld (no consent)")
    at: datetime | None = Field(description="When the values were true")
    values: dict[str, Any]


class ProfileResponse(BaseModel):
    """What a decision would read of a user now."""

    user_id: str
    rows: list[KnownRowOut]


def profile_out(user_id: str, rows: Sequence[KnownRow]) -> ProfileResponse:
    """The answer for `rows`."""
    found = [
        KnownRowOut(
            view=row.view, keys=list(row.others), status=row.status, at=row.at, values=dict(row.values)
        )
        for row in rows
    ]
    return ProfileResponse(user_id=user_id, rows=found)
