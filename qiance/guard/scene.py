"""What the checks look at: the subject's texts with the product's name put in, on all their views."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, lru_cache

from qiance.domain import Money
from qiance.guard.normalise import BLANK, HAN, SLOT, View, fold, views, visible
from qiance.guard.results import Finding, Severity
from qiance.guard.rules import Rule, RuleSet, alternation
from qiance.guard.subject import Subject
from qiance.strategy.slots import FIELDS, Facts, slots_of

_DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Part:
    """One field. shown: the text with the product's name in its slot; other slots are blank.

    place: for each character of `shown` and its end, the place in `raw`; named: whether the name brought it.
    """

    field: str
    raw: str
    shown: str
    place: tuple[int, ...]
    named: tuple[bool, ...]

    @cached_property
    def views(self) -> tuple[View, ...]:
        return views(self.shown)

    @cached_property
    def plain(self) -> str:
        """The field as it is seen, compatibility forms folded and slots blanked; letters keep their case."""
        return unicodedata.normalize("NFKC", visible(SLOT.sub(BLANK, self.raw)))

    @cached_property
    def spoken(self) -> str:
        """`plain` with the product's name in it."""
        return unicodedata.normalize("NFKC", visible(self.shown))

    def raw_span(self, start: int, end: int) -> tuple[int, int]:
        """A span of `shown` as one of `raw`: a name counts as its whole slot."""
        last = end - 1 if end > start else start
        first = self.place[start]
        stop = self.place[last] + 1
        slot = next((m for m in SLOT.finditer(self.raw) if m.start() <= self.place[last] < m.end()), None)
        return first, slot.end() if slot is not None and self.named[last : last + 1] == (True,) else stop


def part_of(field: str, raw: str, name: str | None) -> Part:
    """`raw` with `name` in place of `{product}`, if there is one."""
    shown: list[str] = []
    place: list[int] = []
    named: list[bool] = []
    at = 0
    for match in SLOT.finditer(raw):
        _extend(shown, place, named, raw[at : match.start()], range(at, match.start()), False)
        from_name = match.group(1) == "product" and name is not None
        filling = name if from_name and name is not None else BLANK
        _extend(shown, place, named, filling, [match.start()] * len(filling), from_name)
        at = match.end()
    _extend(shown, place, named, raw[at:], range(at, len(raw)), False)
    return Part(field, raw, "".join(shown), (*place, len(raw)), (*named, False))


def _extend(
    shown: list[str], place: list[int], named: list[bool], text: str, places: range | list[int], flag: bool
) -> None:
    shown.append(text)
    place.extend(places)
    named.extend([flag] * len(text))


@dataclass(frozen=True)
class Scene:
    """A subject as the checks see it; min_margin: fraction of the price, currency: ISO 4217."""

    subject: Subject
    rules: RuleSet
    currency: str
    min_margin: float

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        item, language = self.subject.item, self.subject.creative.language
        name = None if item is None else " ".join(item.title_in(language).split())
        return tuple(part_of(field, getattr(self.subject.creative, field), name) for field in FIELDS)

    @cached_property
    def slots(self) -> frozenset[str]:
        return frozenset(slot for part in self.parts for slot in slots_of(part.raw))

    @cached_property
    def locales(self) -> frozenset[str]:
        """The creative's language, and every other that its words are written in."""
        text = "".join(part.views[0].text for part in self.parts)
        found = {self.subject.creative.language}
        found |= {"zh"} if HAN.search(text) else set()
        return frozenset(found | ({"en"} if re.search(r"[a-z]{2}", text) else set()))

    @property
    def has_offer(self) -> bool:
        return self.subject.offer.depth > 0

    @cached_property
    def facts(self) -> Facts:
        """The facts of the item and the offer; stand-ins of a usual width where words are looked at alone."""
        subject, item = self.subject, self.subject.item
        title = (
            item.title_in(subject.creative.language)
            if item is not None
            else {"zh": "商品名称"}.get(subject.creative.language, "Product name")
        )
        threshold = Money(subject.offer.threshold, self.currency) if subject.offer.threshold else None
        price = Money(item.price if item is not None else 1_999, self.currency)
        return Facts(title, price, subject.offer.depth, subject.ends, subject.stock, threshold)

    def backed(self, backing: str) -> bool:
        """Whether the words state what makes a claim of urgency true, or the schedule does."""
        subject = self.subject
        if backing == "day":
            known = subject.starts is not None and subject.ends is not None
            return known and "ends" in self.slots and subject.ends - subject.starts <= _DAY  # type: ignore[operator]
        known = subject.ends is not None if backing == "ends" else subject.stock is not None
        return known and backing in self.slots

    def finding(self, rule: Rule, field: str, start: int = 0, end: int = 0, found: str = "") -> Finding:
        """A finding by `rule`; `found` defaults to what stands in the span."""
        raw = getattr(self.subject.creative, field, "")
        return Finding(
            rule.id,
            rule.severity,
            rule.source,
            rule.message,
            rule.fix,
            field,
            start,
            end,
            found or raw[start:end],
        )


def hits(rule: Rule, part: Part) -> Iterator[tuple[int, int, str, View]]:
    """Where a term of `rule` stands and no exception covers it: span in `shown`, folded text, view."""
    seen: set[tuple[int, int]] = set()
    for view in part.views:
        for start, end in _spans(rule.terms, rule.except_, view.text):
            span = view.span(start, end)
            if not any(a < span[1] and span[0] < b for a, b in seen):
                seen.add(span)
                yield *span, view.text[start:end], view


@lru_cache(maxsize=65_536)
def _spans(terms: tuple[str, ...], excepted: tuple[str, ...], text: str) -> tuple[tuple[int, int], ...]:
    """Spans of the terms in folded text that no exception covers."""
    pattern, spared = alternation(terms), alternation(excepted)
    found = [match.span() for match in pattern.finditer(text) if match.group()] if pattern else []
    if not found or spared is None:
        return tuple(found)
    free = [match.span() for match in spared.finditer(text)]
    return tuple((a, b) for a, b in found if not any(x <= a and b <= y for x, y in free))


def forget() -> None:
    """Empties what is remembered of texts seen before, for those who time the lint."""
    _spans.cache_clear()


def allowed(scene: Scene, rule: Rule, finding: Finding, view: View, start: int, end: int) -> Finding:
    """`finding`, made harmless if the shop's file admits it with evidence."""
    for allow in scene.rules.allow:
        if allow.rule != rule.id:
            continue
        for match in re.finditer(re.escape(fold(allow.text).text), view.text):
            if view.origin[match.start()] <= start and end <= view.origin[match.end() - 1] + 1:
                message = f"admitted by {allow.by}: {allow.evidence}"
                return replace(finding, severity=Severity.ALLOWED, message=message, fix="")
    return finding
