"""What the ledger's tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from qiance.domain import (
    CONTROL_ACTION,
    Action,
    Brief,
    Cap,
    Channel,
    Decision,
    Money,
    Objective,
    Offer,
    StrategyKind,
)
from qiance.ledger import Claim, Entry, Lease, Ledger, Recorded

KEY = b"a key that only tests use, 32 b."
NOW = datetime(2017, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
MakeDecision = Callable[..., Decision]
BRIEF = Brief(
    "b1",
    Objective.MARGIN,
    Money.of("1500.00"),
    NOW,
    NOW + timedelta(days=14),
    audience="lapsed",
    items=("item-9",),
    languages=("zh", "en"),
    notes={"tone": "plain"},
)


def actions(width: int) -> tuple[Action, ...]:
    """`control` and actions by e-mail."""
    return (
        CONTROL_ACTION,
        *(
            Action(f"action-{n}", "s", StrategyKind.AD, f"item-{n}", Offer(), None, Channel.EMAIL, 1)
            for n in range(1, width)
        ),
    )


def record(
    ledger: Ledger, decision: Decision, claim: Claim | None = None, caps: Sequence[Cap] = ()
) -> Recorded:
    """Logs an answer of one position."""
    (result,) = record_all(ledger, [decision], [claim], caps)
    return result


def record_all(
    ledger: Ledger,
    decisions: Sequence[Decision],
    claims: Sequence[Claim | None] | None = None,
    caps: Sequence[Cap] = (),
) -> list[Recorded]:
    """Logs answers of one position each, among sets that are put first."""
    for width in {len(decision.candidates) for decision in decisions}:
        ledger.put_candidates(actions(width))
    claims = claims or [None] * len(decisions)
    slates = [(Entry(decision, claim),) for decision, claim in zip(decisions, claims, strict=True)]
    return ledger.record_slates(slates, caps)


def lease_of(ledger: Ledger, budget: str, amount: int, holder: str = "test") -> Lease:
    """A lease of `amount`, which the budget must admit."""
    lease = ledger.lease(budget, amount, holder, 600.0)
    assert lease is not None, f"{budget} does not admit {amount}"
    return lease


def reserve(
    ledger: Ledger,
    decision: Decision,
    budget: str,
    amount: int,
    expires_at: datetime = LATER,
    certain: int = 0,
) -> bool:
    """Logs a decision that sets `amount` aside. False, and nothing logged, if no budget admits it."""
    lease = ledger.lease(budget, amount, "test", 600.0)
    if lease is None:
        return False
    result = record(ledger, decision, Claim(lease.lease_id, budget, amount, certain, expires_at))
    ledger.end_lease(lease.lease_id)
    return result is Recorded.STORED
