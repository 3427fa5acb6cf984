"""What the ledger takes and gives besides the domain's own types, and the errors it raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from qiance.domain import Brief, BriefState, CreativeState, Decision, Purpose, ShopEvent
from qiance.guard import Subject, Verdict


class LedgerError(ValueError):
    """The ledger cannot be used as asked; the message says what to change."""


class LedgerUnavailableError(RuntimeError):
    """The database cannot be reached, is locked, or is full: stop spending and degrade."""


class ErasedDecisionError(ValueError):
    """The decision was of a user who is erased: nothing of it is left but what it adds to the totals."""

    def __init__(self, decision_id: str) -> None:
        super().__init__(f"decision_id: {decision_id!r} is erased with its user; nothing can be told of it")


class GateClosedError(ValueError):
    """A policy was not shown to be better than the live one, so it does not go live."""


@dataclass(frozen=True, slots=True)
class Override:
    """Who lets a policy go live whatever the gate says, and why; ValueError where either is missing."""

    by: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("by", "reason"):
            if not getattr(self, name).strip():
                raise ValueError(
                    f"override.{name}: is empty; the gate is overridden by a named person, with a reason"
                )


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """A decision with what came of it: conversions − refunds, minor units."""

    decision: Decision
    sales: int


class Recorded(StrEnum):
    """What became of a slate; whatever is not `STORED` left nothing behind.

    duplicate: its request id or decision id is logged already: answer with that slate. over_budget: a lease
    does not admit its claim (expired, reclaimed or used up). over_cap: the user would be contacted too often.
    """

    STORED = "stored"
    DUPLICATE = "duplicate"
    OVER_BUDGET = "over_budget"
    OVER_CAP = "over_cap"


class Scope(StrEnum):
    """What an API key may do; `ADMIN` may do everything."""

    DECIDE = "decide"
    OUTCOMES = "outcomes"
    READ = "read"
    WRITE = "write"
    EVENTS = "events"
    PRIVACY = "privacy"
    APPROVE = "approve"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Claim:
    """Money that a decision takes out of a lease, set aside until its outcome is known.

    amount: most that the decision may cost, minor units, ≥ 0.
    certain: of the amount, what is spent whatever follows (the contact); booked when it expires.
    expires_at: when what is unsettled of it goes back to the budget (UTC).
    """

    lease_id: str
    budget_id: str
    amount: int
    certain: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """One position of an answer, and what it takes out of a lease."""

    decision: Decision
    claim: Claim | None = None


# The positions of one answer in order: `decision_id`, `decision_id.1`, …; stored whole or not at all.
Slate = tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a slate was drawn on: the positions asked for, and the user's contacts per cap."""

    positions: int
    contacts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Asker:
    """A user to decide for at `at`; request_id: the name of the request, if it has one."""

    user_id: str
    request_id: str | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Identified:
    """What the ledger knows of an asker.

    purposes: what the user said about each purpose; those they were never asked about are not in it.
    contacts: per window asked for, how often the user was contacted in it.
    stored: the positions that answered this request before, in order.
    """

    pseudonym: str
    purposes: Mapping[Purpose, bool]
    contacts: tuple[int, ...]
    stored: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """A slice of a budget that `holder` may hand out until `expires_at` (system time)."""

    lease_id: str
    budget_id: str
    holder: str
    amount: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A budget in minor units; spent + reserved ≤ cap always holds.

    reserved: open reservations, and what is not used of leases. leased: the latter alone.
    """

    budget_id: str
    cap: int
    spent: int
    reserved: int
    leased: int = 0

    @property
    def left(self) -> int:
        """Minor units that can still be leased."""
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
    """A brief and how far the work on it is.

    progress: a fraction; attempts: how often a worker began, more than once where one had ended before.
    """

    brief: Brief
    state: BriefState
    progress: float
    message: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class BankEntry:
    """Words in the bank.

    version: counts within segment, channel, language and item. subject: the words with what they are about,
    but for the catalogue's row. verdict, findings: of the last lint, as plain values; rules: the version of
    its rule set. checked: digest of all that this result hangs on. by: who changed the state last.
    """

    creative_id: str
    version: int
    subject: Subject
    state: CreativeState
    verdict: Verdict
    findings: tuple[Mapping[str, Any], ...]
    rules: str
    checked: str
    by: str
    created_at: datetime
    changed_at: datetime


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
