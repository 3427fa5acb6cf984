"""What was decided for a user, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from qiance.domain.action import Channel

MOST_CAP_DAYS = 3_650


class OutcomeType(StrEnum):
    """Kinds of outcome event; `value` is minor units for conversion and refund, else 0."""

    IMPRESSION = "impression"
    CLICK = "click"
    CONVERSION = "conversion"
    REFUND = "refund"


@dataclass(frozen=True, slots=True)
class Decision:
    """One logged decision: one position of an answer.

    pseudonym: random stand-in for the user id.
    candidates: ids of the candidate set in its order, column 0 is `control`; one tuple for all decisions of a
        set. candidate_set: content hash of the set.
    admissible: one bit per candidate, the least significant first. scores: value − λ·cost of the admissible
        candidates in order, minor units, as little-endian float32.
    chosen: index into `candidates`; propensity: the probability it had; uniform: the number in [0, 1) that
        the choice was drawn with; epsilon: the share of exploration; shadow_price: λ.
    channel: of the chosen action. holdout: assigned to do-nothing outside the propensity.
    degraded: parts that were missing. serial: of the version row that the candidates came from.
    items: content hash of the item values scored with, empty where none. user_row: what the model read of the
        user, packed.
    """

    decision_id: str
    tenant_id: str
    request_id: str | None
    pseudonym: str
    surface: str
    decided_at: datetime
    candidates: tuple[str, ...]
    candidate_set: str
    admissible: bytes
    scores: bytes
    chosen: int
    propensity: float
    uniform: float
    epsilon: float
    shadow_price: float
    channel: str
    holdout: bool
    model_version: str
    policy_version: str
    degraded: tuple[str, ...] = ()
    serial: int = 0
    items: str = ""
    user_row: bytes = b""

    @property
    def action_id(self) -> str:
        return self.candidates[self.chosen]

    def mask(self) -> NDArray[np.bool_]:
        """`[A]` which candidates were admissible."""
        packed = np.frombuffer(self.admissible, dtype=np.uint8)
        return np.unpackbits(packed, count=len(self.candidates), bitorder="little").astype(np.bool_)

    def admissible_scores(self) -> NDArray[np.float32]:
        """`[N]` the logged scores: those of the admissible candidates, in order."""
        return np.frombuffer(self.scores, dtype="<f4").astype(np.float32)

    def score_row(self) -> NDArray[np.float32]:
        """`[A]` value − λ·cost; NaN where inadmissible, as no score is logged there."""
        row = np.full(len(self.candidates), np.nan, dtype=np.float32)
        row[self.mask()] = self.admissible_scores()
        return row


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `contacts` in any `days`, by `channel` or, where that is None, by any.

    A contact is every position that is not `control`.
    """

    contacts: int
    days: float
    channel: Channel | None = None

    def __post_init__(self) -> None:
        if isinstance(self.contacts, bool) or not isinstance(self.contacts, int) or self.contacts < 0:
            raise ValueError(f"cap.contacts: {self.contacts!r} is not an integer ≥ 0")
        if not 0 < self.days <= MOST_CAP_DAYS:
            raise ValueError(f"cap.days: {self.days!r} is outside (0, {MOST_CAP_DAYS}]")
        if self.channel is Channel.NONE:
            raise ValueError(
                "cap.channel: 'none' is control, which contacts nobody; leave it out for any channel"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome event of a decision; `event_id` makes a repeat harmless."""

    event_id: str
    decision_id: str
    type: OutcomeType
    occurred_at: datetime
    value: int = 0
