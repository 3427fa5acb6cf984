"""The text lint: rules as data, findings that cite them, and the one gate before service."""

from qiance.guard.guard import CLOSED, Guard
from qiance.guard.results import Finding, Linted, Result, Severity, Verdict, creative_id_of, is_sealed
from qiance.guard.rules import RuleSet, load_rules
from qiance.guard.subject import Subject, subject_of, subjects_of

__all__ = [
    "CLOSED",
    "Finding",
    "Guard",
    "Linted",
    "Result",
    "RuleSet",
    "Severity",
    "Subject",
    "Verdict",
    "creative_id_of",
    "is_sealed",
    "load_rules",
    "subject_of",
    "subjects_of",
]
