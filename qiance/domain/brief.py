"""What a marketer asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from qiance.domain.action import Channel
from qiance.domain.money import Money


class Objective(StrEnum):
    """What a brief wants more of."""

    CLICKS = "clicks"
    CONVERSIONS = "conversions"
    SALES = "sales"
    MARGIN = "margin"


class BriefState(StrEnum):
    """Where the work on a brief stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more comes of it."""
        return self not in (BriefState.QUEUED, BriefState.RUNNING)


@dataclass(frozen=True, slots=True)
class Brief:
    """A request for strategies.

    audience: named segment, or None for everybody.
    items: item ids to promote; empty lets Qiance choose.
    channels, languages: allowed ones, in order of preference.
    max_depth, min_margin: deepest discount and least margin, fractions of the price.
    n: number of strategies wanted.
    """

    brief_id: str
    objective: Objective
    budget: Money
    starts: datetime
    ends: datetime
    audience: str | None = None
    items: tuple[str, ...] = ()
    channels: tuple[Channel, ...] = (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER)
    languages: tuple[str, ...] = ("en",)
    max_depth: float = 0.4
    min_margin: float = 0.05
    n: int = 8
    notes: dict[str, str] = field(default_factory=dict)
