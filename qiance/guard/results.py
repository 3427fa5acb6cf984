"""What the lint says: findings that cite their rule, a verdict, and the seal that only the guard sets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC
from enum import StrEnum
from typing import Any, Final

from qiance.guard.subject import Subject

_SEAL: Final = object()


class Severity(StrEnum):
    """What a finding does: `ALLOWED` is a match that the shop's own file admits, with its evidence."""

    BLOCK = "block"
    WARN = "warn"
    ALLOWED = "allowed"


class Verdict(StrEnum):
    """The sum of the findings."""

    PASS = "pass"  # noqa: S105
    WARN = "warn"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule.

    field: `headline`, `body`, `call_to_action`, or `offer` where the words are not at fault.
    start, end: half-open span in that field as it is written (0, 0: the field as a whole).
    found: what stands there; source: the law or guidance that the rule follows; fix: what to do.
    """

    rule: str
    severity: Severity
    source: str
    message: str
    fix: str
    field: str
    start: int
    end: int
    found: str

    def __str__(self) -> str:
        return f"{self.rule} {self.field}: {self.found!r}: {self.message} ({self.source})"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        names = ("rule", "severity", "source", "message", "fix", "field", "start", "end", "found")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Result:
    """Every finding about one subject; rules: the version of the rule set that made them."""

    findings: tuple[Finding, ...]
    rules: str

    @property
    def verdict(self) -> Verdict:
        """`BLOCK` if any finding blocks, else `WARN` if any warns."""
        found = {finding.severity for finding in self.findings}
        if Severity.BLOCK in found:
            return Verdict.BLOCK
        return Verdict.WARN if Severity.WARN in found else Verdict.PASS

    @property
    def blocked(self) -> bool:
        return self.verdict is Verdict.BLOCK

    def why(self) -> str:
        """The blocking findings in one line."""
        return "; ".join(str(f) for f in self.findings if f.severity is Severity.BLOCK)


@dataclass(frozen=True, slots=True)
class Linted:
    """A subject with its result. Only the guard makes one: the bank takes nothing else.

    checked: digest of everything that the result hangs on, rules and facts included. Equal digests have
    equal results.
    """

    subject: Subject
    result: Result
    checked: str
    seal: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seal is not _SEAL:
            raise TypeError("Linted: only qiance.guard makes one; call Guard.lint")

    @property
    def creative_id(self) -> str:
        """Where the bank keeps these words: it follows from words, segment, item, offer and schedule."""
        return creative_id_of(self.subject)


def sealed(subject: Subject, result: Result, checked: str) -> Linted:
    """For `Guard` alone."""
    return Linted(subject, result, checked, _SEAL)


def is_sealed(value: object) -> bool:
    """Whether `value` came from the guard of this process: a copy that was unpickled did not."""
    return isinstance(value, Linted) and value.seal is _SEAL


def creative_id_of(subject: Subject) -> str:
    """`channel-language-` and sixteen digits of SHA-256 over the subject without the catalogue's row."""
    creative = subject.creative
    return f"{creative.channel}-{creative.language}-{digest(content_of(subject)[:-1])}"


def content_of(subject: Subject) -> list[Any]:
    """The subject as plain values, times in UTC; the catalogue's row comes last."""
    creative, offer, item = subject.creative, subject.offer, subject.item
    words = [
        str(creative.channel),
        creative.language,
        creative.headline,
        creative.body,
        creative.call_to_action,
    ]
    times = [None if at is None else at.astimezone(UTC).isoformat() for at in (subject.starts, subject.ends)]
    terms = [
        subject.segment,
        subject.item_id,
        str(offer.kind),
        offer.depth,
        offer.threshold,
        subject.stock,
        *times,
    ]
    return [
        *words,
        creative.source,
        *terms,
        None if item is None else [item.title_in(creative.language), item.price, item.unit_cost],
    ]


def digest(content: list[Any]) -> str:
    """Sixteen hexadecimal digits of SHA-256 over `content` as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
