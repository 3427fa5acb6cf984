"""The ledger: decisions, outcomes, budgets, strategies, versions, pseudonyms and API keys, never lost."""

from qiance.ledger.ledger import Ledger
from qiance.ledger.pseudonyms import load_or_create_key
from qiance.ledger.records import (
    ApiKey,
    AuditLine,
    BriefRecord,
    BudgetStatus,
    DuplicateDecisionError,
    LedgerError,
    LedgerUnavailableError,
    OutcomeReceipt,
    Principal,
    Recorded,
    RejectedOutcome,
    Reservation,
    Scope,
    Versions,
)
from qiance.ledger.versions import NO_VERSION

__all__ = [
    "NO_VERSION",
    "ApiKey",
    "AuditLine",
    "BriefRecord",
    "BudgetStatus",
    "DuplicateDecisionError",
    "Ledger",
    "LedgerError",
    "LedgerUnavailableError",
    "OutcomeReceipt",
    "Principal",
    "Recorded",
    "RejectedOutcome",
    "Reservation",
    "Scope",
    "Versions",
    "load_or_create_key",
]
