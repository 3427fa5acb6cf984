"""The checks, one per kind of rule; each gives the findings of one rule in one scene."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from qiance.decide.floors import discounted_price, margin_floor_mask
from qiance.guard.normalise import fold, hidden, is_emoji
from qiance.guard.people import check_email, check_id_number, check_names, check_phone
from qiance.guard.results import Finding
from qiance.guard.rules import Kind, Rule
from qiance.guard.scene import Scene, allowed, hits
from qiance.strategy.slots import FIGURES, KNOWN_SLOTS, SLOT, fact_of, slots_of

Check = Callable[[Rule, Scene], Iterator[Finding]]
# What people may not write out either: money, and parts of a price.
_MONEY: Final = re.compile(
    r"[$€£¥￥₩₽₹]\s?\d|\d[\d.,]*\s?"
    r"(?:%|％|‰|¢|per ?cent|percent|usd|eur|gbp|cny|rmb|jpy|元|块|折|美元|欧元|日元)"
    r"(?! ?(?:milk|fat|cocoa|cotton|juice|arabica|wool|cacao|rye|可可|纯棉|果汁|全麦|阿拉比卡|脂肪))"
)
_LOUD: Final = re.compile(r"[!！]{2,}|[?？]{2,}|[!?！？]{3,}")
_CAPITALS: Final = re.compile(r"\b[A-Z]{3,}\b")
# Sentences, markup and templates have no place in a name; `St. Dalfour` and `2% Milk` do.
_NO_NAME: Final = re.compile(r"[。！？{}|`\n]|</?[a-z|]|://|[.!?;]\s+(?:\w+\s+){3,}\w+|\[/?[A-Z]+\]")
LONGEST_NAME: Final = 120
_SLOT_OF_OFFER: Final = ("discount", "sale_price")


def check_terms(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Words that a rule bars, unless the words state what backs them."""
    if rule.locale != "any" and rule.locale not in scene.locales:
        return
    for part in scene.parts:
        for start, end, text, view in hits(rule, part):
            by_name = all(part.named[start:end])
            if (by_name and not rule.in_names) or (not by_name and _is_backed(rule, scene, text)):
                continue
            field = "product" if by_name else part.field
            found = part.shown[start:end]
            finding = scene.finding(rule, field, *(part.raw_span(start, end)), found=found)
            yield allowed(scene, rule, finding, view, start, end)


def _is_backed(rule: Rule, scene: Scene, text: str) -> bool:
    for backing, terms in rule.needs.items():
        if any(re.fullmatch(term, text) for term in terms):
            return scene.backed(backing)
    return any(scene.backed(backing) for backing in rule.backed_by)


def check_figures(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Figures outside slots: any by a model or template, prices and percentages by a person."""
    for part in scene.parts:
        open_text = SLOT.sub(lambda match: " " * len(match.group()), part.raw)
        view = fold(open_text)
        if scene.subject.creative.source == "person":
            spans = [view.span(*match.span()) for match in _MONEY.finditer(view.text)]
        else:
            spans = [match.span() for match in FIGURES.finditer(open_text)]
            spans += [view.span(*match.span()) for match in re.finditer(r"\d+", view.text)]
        for span in dict.fromkeys(spans):
            yield scene.finding(rule, part.field, *span)


def check_slots(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Unknown slots, stray braces, and slots that no fact fills."""
    alone = scene.subject.item_id is None
    for part in scene.parts:
        for match in SLOT.finditer(part.raw):
            name = match.group(1)
            without = (
                name in KNOWN_SLOTS and fact_of(name, scene.facts, scene.subject.creative.language) is None
            )
            if name not in KNOWN_SLOTS or (without and not (alone and name == "sale_price")):
                yield scene.finding(rule, part.field, *match.span())
        stray = re.search(r"[{}]", SLOT.sub(lambda match: " " * len(match.group()), part.raw))
        if stray:
            yield scene.finding(rule, part.field, *stray.span())


def check_offer(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """An offer that is not stated."""
    if scene.has_offer and not scene.slots & {*_SLOT_OF_OFFER}:
        yield scene.finding(rule, "body", found="no {discount}")


def check_end(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """An offer without its last day."""
    if scene.has_offer and "ends" not in scene.slots:
        yield scene.finding(rule, "body", found="no {ends}")


def check_threshold(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """An offer without its least basket."""
    if scene.subject.offer.threshold and scene.has_offer and "threshold" not in scene.slots:
        yield scene.finding(rule, "body", found="no {threshold}")


def check_no_offer(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Words of a reduction where there is none."""
    if scene.has_offer:
        return
    for part in scene.parts:
        used = [slot for slot in slots_of(part.raw) if slot in _SLOT_OF_OFFER]
        if used:
            yield scene.finding(rule, part.field, found=f"{{{used[0]}}}")
    yield from check_terms(rule, scene)


def check_length(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Bound texts that are empty or longer than the channel shows."""
    limits = scene.rules.channels[scene.subject.creative.channel]
    language = scene.subject.creative.language
    for part in scene.parts:
        bound = SLOT.sub(lambda m: fact_of(m.group(1), scene.facts, language) or "", part.raw)
        length, most = len(bound.strip()), getattr(limits, part.field)
        if not 0 < length <= most:
            yield scene.finding(rule, part.field, found=f"{length} characters, at most {most}")


def check_emoji(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """More emoji than the channel takes, over all fields."""
    most = scene.rules.channels[scene.subject.creative.channel].emoji
    places = [(p.field, at) for p in scene.parts for at, char in enumerate(p.raw) if is_emoji(char)]
    for field, at in places[most:]:
        yield scene.finding(rule, field, at, at + 1)


def check_shout(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Rows of exclamation marks, and three words or more in capitals."""
    for part in scene.parts:
        open_text = SLOT.sub(lambda match: " " * len(match.group()), part.raw)
        capitals = list(_CAPITALS.finditer(open_text))
        loud = _LOUD.search(open_text)
        if loud:
            yield scene.finding(rule, part.field, *loud.span())
        elif len(capitals) >= 3 and sum(c.isupper() for c in open_text) > sum(c.islower() for c in open_text):
            yield scene.finding(rule, part.field, capitals[0].start(), capitals[-1].end())


def check_hidden(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Characters that show nothing, in the words or in the product's name."""
    for part in scene.parts:
        for place in hidden(part.raw):
            yield scene.finding(rule, part.field, place, place + 1, found=f"U+{ord(part.raw[place]):04X}")
        if any(part.named[place] for place in hidden(part.shown)):
            yield scene.finding(rule, "product", found="a hidden character")


def check_brand_never(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Words that the shop does not use."""
    wanted = [
        w for loc, words in scene.rules.brand.never.items() if loc in ("any", *scene.locales) for w in words
    ]
    if not wanted:
        return
    own = rule.model_copy(update={"terms": tuple(_flexible(word) for word in wanted)})
    yield from check_terms(own, scene)


def _flexible(word: str) -> str:
    """A literal word, with any joint between its parts."""
    return r"[\s\-]*".join(re.escape(piece) for piece in re.split(r"[\s\-]+", fold(word).text.strip()))


def check_brand_must(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """Words that the shop wants said and that no field says."""
    creative = scene.subject.creative
    text = " ".join(part.views[0].text for part in scene.parts)
    for must in scene.rules.brand.must:
        wanted = must.locale in ("any", creative.language) and creative.channel in (
            must.channels or (creative.channel,)
        )
        if wanted and fold(must.text).text not in text:
            yield scene.finding(rule, "body", found=f"no {must.text!r}")


def check_margin(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """A discount below the margin floor."""
    item, depth = scene.subject.item, scene.subject.offer.depth
    if item is None or not depth:
        return
    if not margin_floor_mask([item.price], [item.unit_cost], [depth], scene.min_margin)[0]:
        yield scene.finding(rule, "offer", found=f"{depth:.0%} off {item.title}")


def check_price(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """A discount below the unit cost."""
    item, depth = scene.subject.item, scene.subject.offer.depth
    if item is not None and depth and int(discounted_price(item.price, depth)) < item.unit_cost:
        yield scene.finding(rule, "offer", found=f"{depth:.0%} off {item.title}")


def check_product_name(rule: Rule, scene: Scene) -> Iterator[Finding]:
    """A title that holds sentences or markup; only where the words show it."""
    if scene.subject.item is None or "product" not in scene.slots:
        return
    title = scene.subject.item.title_in(scene.subject.creative.language)
    match = _NO_NAME.search(title)
    if match or len(title) > LONGEST_NAME:
        yield scene.finding(rule, "product", found=match.group() if match else f"{len(title)} characters")


CHECKS: Final[Mapping[Kind, Check]] = {
    "terms": check_terms,
    "figures": check_figures,
    "slots": check_slots,
    "offer": check_offer,
    "end": check_end,
    "threshold": check_threshold,
    "no-offer": check_no_offer,
    "length": check_length,
    "emoji": check_emoji,
    "shout": check_shout,
    "hidden": check_hidden,
    "email": check_email,
    "phone": check_phone,
    "id-number": check_id_number,
    "names": check_names,
    "brand-never": check_brand_never,
    "brand-must": check_brand_must,
    "margin": check_margin,
    "price": check_price,
    "product-name": check_product_name,
}
