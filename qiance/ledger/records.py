"""What the ledger takes and gives besides the domain's own types, and the errors it raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from qiance.domain import Brief, BriefState, Decision, Purpose, ShopEvent


class LedgerError(ValueError):
    """The ledger cannot be used as asked; the message says what to change."""


class LedgerUnavailableError(RuntimeError):
    """The database cannot be reached, is locked, or is full: stop spending and degrade."""


class DuplicateDecisionError(ValueError):
    """The decision id or request id is already logged; `stored` is the decision that was."""

    def __init__(self, stored: Decision) -> None:
        super().__init__(
            f"decision_id: a decision with this id or request_id {stored.request_id!r} is already logged "
            f"as {stored.decision_id!r}; answer with that one"
        )
        self.stored = stored


class ErasedDecisionError(ValueError):
    """The decision was of a user who is erased: nothing of it is left but what it adds to the totals."""

    def __init__(self, decision_id: str) -> None:
        super().__init__(f"decision_id: {decision_id!r} is erased with its user; nothing can be told of it")


class Recorded(StrEnum):
    """What became of one decision of a batch."""

    STORED = "stored"
    REFUSED = "refused"
    DUPLICATE = "duplicate"


class Scope(StrEnum):
    """What an API key may do; `ADMIN` may do everything."""

    DECIDE = "decide"
    OUTCOMES = "outcomes"
    READ = "read"
    WRITE = "write"
    EVENTS = "events"
    PRIVACY = "privacy"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Money set aside for a decision until its outcome is known.

    amount: most that the decision may cost, minor units, ≥ 0.
    expires_at: when what is unsettled of the reservation goes back to the budget (UTC).
    certain: of the amount, what is spent whatever follows (the contact); booked when it expires.
    """

    budget_id: str
    amount: int
    expires_at: datetime
    certain: int = 0


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A budget in minor units; spent + reserved ≤ cap always holds."""

    budget_id: str
    cap: int
    spent: int
    reserved: int

    @property
    def left(self) -> int:
        """Minor units that can still be reserved."""
        return self.cap - self.spent - self.reserved


@dataclass(frozen=True, slots=True)
class RejectedOutcome:
    """An outcome that was not stored: its position in the request, a code, and why.

    code: `unknown_decision`, `erased_decision` or `invalid`.
    """

    index: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class OutcomeReceipt:
    """What became of a batch of outcomes; accepted + duplicates + len(rejected) is its size."""

    accepted: int
    duplicates: int
    rejected: list[RejectedOutcome]


@dataclass(frozen=True, slots=True)
class BriefRecord:
    """A brief and how far the work on it is; progress is a fraction."""

    brief: Brief
    state: BriefState
    progress: float
    message: str


@dataclass(frozen=True, slots=True)
class Versions:
    """What serves now; `serial` grows with every change, so a poll compares one number.

    shadow_price: λ, minor units of value given up per minor unit of budget.
    strategies_serial: grows whenever a strategy is put or changes state.
    killed: the kill switch: `control` only.
    """

    serial: int
    model: str
    policy: str
    shadow_price: float
    strategies_serial: int
    killed: bool
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a valid API key stands for."""

    name: str
    scopes: frozenset[Scope]
    tenant: str

    def may(self, scope: Scope) -> bool:
        """Whether the key allows `scope`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it can be listed: never the token, nor its hash."""

    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Who did what to what, and when; `detail` is text or a JSON object."""

    line: int
    at: datetime
    event: str
    subject: str
    by: str
    detail: Any


@dataclass(frozen=True, slots=True)
class Known:
    """A user as the ledger knows them: their pseudonym, and what they agreed to."""

    pseudonym: str
    purposes: frozenset[Purpose]


@dataclass(frozen=True, slots=True)
class ConsentChange:
    """Who recorded what a user said about a purpose, and when it was said."""

    purpose: Purpose
    granted: bool
    at: datetime
    by: str


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """A shop event that was not stored: its position in the request, a code, and why."""

    index: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class EventReceipt:
    """What became of a batch of shop events.

    accepted + duplicates + without_consent + len(rejected) is its size.
    users: those with an accepted or repeated event, in the order of the batch.
    """

    accepted: int
    duplicates: int
    without_consent: int
    rejected: list[RejectedEvent]
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A shop event, and when the ledger got it."""

    event: ShopEvent
    received_at: datetime


class ErasureState(StrEnum):
    """How far an erasure is.

    pending: files or the online store may still hold the user. scrubbing: nothing does, but bytes of deleted
    rows may be left in the database's log. done: those are gone too.
    """

    PENDING = "pending"
    SCRUBBING = "scrubbing"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure of a user who is not named.

    removed: rows removed by store. problems: what could not be done yet.
    """

    erasure_id: str
    erased_at: datetime
    by: str
    reason: str
    state: ErasureState
    removed: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
