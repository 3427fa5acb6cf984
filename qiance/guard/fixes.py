"""Proposes words that pass: what can be mended mechanically is, and the result is linted again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from qiance.domain import Creative
from qiance.guard.guard import Guard
from qiance.guard.normalise import SLOT, fold, is_emoji, visible
from qiance.guard.results import Finding, Linted, Severity
from qiance.guard.rules import Rule, RuleSet
from qiance.guard.subject import Subject
from qiance.strategy.slots import FIELDS, slots_of
from qiance.strategy.templates import offer_sentence, template, threshold_sentence

ROUNDS: Final = 4
# Kinds whose words can be left out; those that talk about the offer as a whole are mended by a sentence.
_DROPPED: Final = (
    "terms",
    "no-offer",
    "brand-never",
    "email",
    "phone",
    "id-number",
    "names",
    "figures",
    "slots",
)
_SENTENCE: Final = re.compile(r"[^.!?。！？]*(?:[.!?。！？]+|$)\s*")


@dataclass(frozen=True, slots=True)
class Proposal:
    """Words that pass the lint, and what was changed, one line each."""

    linted: Linted
    changes: tuple[str, ...]

    @property
    def creative(self) -> Creative:
        return self.linted.subject.creative


def propose_fix(guard: Guard, linted: Linted) -> Proposal | None:
    """Mended words, or None if these cannot be mended by machine (a margin floor, a closed guard).

    Each round mends what blocks: a term becomes what its rule puts in its place, else its sentence is left
    out; a missing condition is added as the approved sentence; a field with nothing left takes a template's.
    """
    changes: list[str] = []
    for _ in range(ROUNDS):
        blocking = [f for f in linted.result.findings if f.severity is Severity.BLOCK]
        if not blocking:
            return Proposal(linted, tuple(dict.fromkeys(changes))) if changes else None
        if guard.rules is None or any(finding.field not in FIELDS for finding in blocking):
            return None
        mended = _mended(linted.subject, blocking, guard.rules, changes)
        if mended == linted.subject:
            return None
        linted = guard.lint(mended)
    return None


def _mended(subject: Subject, findings: Sequence[Finding], rules: RuleSet, changes: list[str]) -> Subject:
    by_id = {rule.id: rule for rule in rules.rules}
    creative = subject.creative
    for field in FIELDS:
        mine = sorted((f for f in findings if f.field == field), key=lambda f: f.start, reverse=True)
        text = _without_terms(getattr(creative, field), mine, by_id, changes)
        if not text.strip():
            text = _from_template(subject, field)
            changes.append(f"{field}: the words of a template")
        creative = _with(creative, field, text)
    kinds: set[str] = {by_id[f.rule].kind for f in findings}
    creative = _conditioned(subject, creative, kinds, changes)
    if "length" in kinds:
        creative = _shortened(subject, creative, findings, changes)
    return replace(subject, creative=creative)


def _without_terms(text: str, findings: Sequence[Finding], by_id: dict[str, Rule], changes: list[str]) -> str:
    """`text` with each finding replaced or left out; findings from the last to the first."""
    for finding in findings:
        rule = by_id[finding.rule]
        if rule.kind == "hidden":
            text = visible(text)
            changes.append(f"{finding.field}: hidden characters stripped")
        elif rule.kind == "emoji":
            text = "".join(c for c in text if not is_emoji(c) and c != "\ufe0f").strip()
            changes.append(f"{finding.field}: emoji left out")
        elif rule.kind in _DROPPED:
            text = _replaced(text, finding, rule, changes)
    return text


def _replaced(text: str, finding: Finding, rule: Rule, changes: list[str]) -> str:
    """The term replaced as its rule says, else its sentence left out; its place may have moved meanwhile."""
    if text[finding.start : finding.end] == finding.found and finding.found:
        folded = fold(finding.found).text
        for pattern, instead in rule.replace.items():
            if re.fullmatch(pattern, folded):
                changes.append(f"{finding.field}: {finding.found!r} becomes {instead!r}")
                return _tidy(text[: finding.start] + instead + text[finding.end :])
    for match in _SENTENCE.finditer(text):
        if match.group() and match.start() <= finding.start < max(match.end(), match.start() + 1):
            changes.append(f"{finding.field}: {match.group().strip()!r} left out")
            return _tidy(text[: match.start()] + text[match.end() :])
    return ""


def _tidy(text: str) -> str:
    """Single spaces, no sign left alone, and a capital where one stood."""
    plain = re.sub(r"\s+([,.!?])", r"\1", re.sub(r"\s{2,}", " ", text)).strip(" ,，、")
    return plain[:1].upper() + plain[1:] if text[:1].isupper() else plain


def _conditioned(subject: Subject, creative: Creative, kinds: set[str], changes: list[str]) -> Creative:
    """The body with the sentences that state the offer, its end and its least basket, as they are needed."""
    has_threshold = subject.offer.threshold > 0
    gap = "" if creative.language == "zh" else " "
    if kinds & {"offer", "end"}:
        sentence = offer_sentence(creative.channel, creative.language, has_threshold)
    elif "threshold" in kinds:
        sentence = threshold_sentence(creative.language, has_threshold).strip()
    else:
        return creative
    kept = [s for s in _SENTENCE.findall(creative.body) if not set(slots_of(s)) & {"discount", "sale_price"}]
    body = "".join(kept).strip() if kinds & {"offer", "end"} else creative.body
    changes.append(f"body: {sentence!r} added")
    return replace(creative, body=f"{body}{gap if body else ''}{sentence}")


def _shortened(
    subject: Subject, creative: Creative, findings: Sequence[Finding], changes: list[str]
) -> Creative:
    """Fields that are too long take a template's words: a text cut by a machine says something else."""
    for field in {f.field for f in findings if f.rule == "form-length"}:
        creative = _with(creative, field, _from_template(subject, field))
        changes.append(f"{field}: the words of a template")
    return creative


def _with(creative: Creative, field: str, text: str) -> Creative:
    changed: dict[str, Any] = {field: text}
    return replace(creative, **changed)


def _from_template(subject: Subject, field: str) -> str:
    creative, offered = subject.creative, subject.offer.depth > 0
    has_threshold = subject.offer.threshold > 0
    words = template(
        creative.channel, creative.language, offered, has_threshold, len(SLOT.sub("", creative.body))
    )
    return str(getattr(words, field))
