"""Checks of style for words by a model, beside the lint; each fault has its rule:

    W06 repeated words                        W09 the headline repeats another part
    W07 nothing about the product             W10 characters of another language
    W08 clipped: the text stops mid-sentence  W11 what the catalogue does not say
                                              W12 not an advertiser's voice

`qiance.strategy.samples` adds W00 (no valid answer), W13 (the model finds its own words unlikely), W14
(copied from an example of the prompt) and W15 (fits other products better). Law, facts, offers and lengths
are the lint's: `qiance.guard`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from qiance.domain import Creative, Item
from qiance.strategy.prompts import is_plain
from qiance.strategy.slots import FIELDS, SLOT, slots_of
from qiance.strategy.terms import load_terms

__all__ = ["Fault", "check_relation", "check_style", "is_named", "plain_name", "related_words"]
_WORD = re.compile(r"[a-z]+(?:['’-][a-z]+)*")
_HAN = re.compile(r"[㐀-鿿]")


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule: its id, and what was found in the reader's words."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule} {self.detail}"


def plain_name(item: Item, language: str = "en") -> str:
    """The item's title in `language` as words for a sentence: lower case, without sizes, codes and slashes.

    Example: `FRZN PIZZA/PREMIUM 12 OZ` → `frzn pizza`; an empty result falls back to the category, and so
    does a text that is no name but speaks to whoever reads the prompt.
    """
    for source in (item.title_in(language), item.title, item.category, item.department):
        if not is_plain(source):
            continue
        words = re.split(r"[/:(,;，（]", source)[0].replace("&", " and ").replace("-", " ").lower()
        kept = [w for w in words.split() if not any(c.isdigit() for c in w) and w not in load_terms().units]
        if any(c.isalpha() for c in "".join(kept)):
            return " ".join(kept)
    return "this product"


def is_named(item: Item, language: str) -> bool:
    """Whether words in `language` can name the item."""
    return language != "zh" or bool(_HAN.search(plain_name(item, language)))


def related_words(item: Item) -> frozenset[str]:
    """Stems of the words that show that a text is about `item`, from title and category."""
    words = _WORD.findall(f"{item.title} {item.category}".lower())
    return frozenset(
        _stem(w) for w in words if len(w) > 2 and w not in load_terms().stop | load_terms().units
    )


def check_style(creative: Creative, item: Item) -> list[Fault]:
    """Faults in words with their slots still open (W06 to W12), empty when all is well."""
    text = " ".join(getattr(creative, name) for name in FIELDS)
    return [
        *_claims(text, creative.language),
        *_repetition(creative),
        *check_relation(creative.headline, creative.body, item),
        *_clipped(creative),
        *_script(text, creative.language),
    ]


def _claims(text: str, language: str) -> list[Fault]:
    plain = SLOT.sub(" ", text).lower()
    found = []
    for rule, pattern in load_terms().barred[language].items():
        match = pattern.search(plain)
        if match:
            found.append(Fault(rule, repr(match.group())))
    return found


def _repetition(creative: Creative) -> list[Fault]:
    """W06 within each part, W09 between headline and body."""
    found = []
    for name, most in (("headline", 1), ("body", 2), ("call_to_action", 1)):
        text = getattr(creative, name)
        again = _repeated_han(text) if creative.language == "zh" else _repeated_words(text, most)
        if again:
            found.append(Fault("W06", f"{name}: {again!r}"))
    head, body = (_WORD.findall(t.lower()) for t in (creative.headline, creative.body))
    if len(head) > 3 and set(head) - load_terms().stop <= set(body):
        found.append(Fault("W09", "every word of the headline is in the body"))
    if creative.call_to_action and creative.call_to_action.lower() in creative.headline.lower():
        found.append(Fault("W09", "the headline repeats the call to action"))
    return found


def _repeated_words(text: str, most: int) -> str:
    """A word twice in a row, a content word more than `most` times, or three words said twice; else empty."""
    words = _tokens(text)
    counts = Counter(w for w in words if w not in load_terms().stop)
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    twins = [a for a, b in pairwise(words) if a == b]
    often = [w for w, n in counts.items() if n > most]
    return next(iter([*twins, *often, *(" ".join(t) for t, n in triples.items() if n > 1)]), "")


def _repeated_han(text: str) -> str:
    """Three like characters in a row (two are good Chinese), or four said twice; else empty."""
    match = re.search(r"([㐀-鿿])\1\1|([㐀-鿿]{4}).*\2", SLOT.sub(" ", text))
    return match.group() if match else ""


def check_relation(headline: str, body: str, item: Item) -> list[Fault]:
    """W07 unless `{product}` or a word of its title or category is said.

    In Chinese, where a name ends with what the thing is, two neighbours of its last three characters count as
    a word.
    """
    text = f"{headline} {body}"
    if "product" in slots_of(text):
        return []
    written = {_stem(w) for w in _WORD.findall(SLOT.sub(" ", text).lower())}
    han = [c for c in plain_name(item, "zh") if _HAN.match(c)][-3:]
    said = any("".join(pair) in text for pair in pairwise(han))
    if written & related_words(item) or said:
        return []
    return [Fault("W07", f"neither {{product}} nor a word of {item.category!r}")]


def _clipped(creative: Creative) -> list[Fault]:
    found = []
    for name in FIELDS:
        text = getattr(creative, name).strip()
        words = _tokens(text)
        dangling = bool(words) and text[-1:] not in "}" and words[-1] in load_terms().dangling
        broken = re.search(r"[,;'’-]\s*[.!?]|[,;-]$|\s[,.!?]|\s{2}|[,.!?-]{2}", text)
        if not text or dangling or broken:
            found.append(Fault("W08", f"{name} ends or breaks off: {text[-24:]!r}"))
    if creative.body.strip()[-1:] not in tuple(".!?。！？"):
        found.append(Fault("W08", "body is not a whole sentence"))
    return found


def _script(text: str, language: str) -> list[Fault]:
    plain = SLOT.sub("", text)
    han = bool(_HAN.search(plain))
    if (language == "zh") == han and (language == "zh" or plain.isascii() or _latin(plain)):
        return []
    return [Fault("W10", f"is not written in {language}")]


def _latin(text: str) -> bool:
    return all(ord(c) < 0x250 or c in "‘’“”–—…" for c in text)


def _tokens(text: str) -> Sequence[str]:
    return _WORD.findall(SLOT.sub(lambda m: f" slot{m.group(1).replace('_', '')} ", text).lower())


def _stem(word: str) -> str:
    """Plural and singular alike: enough to tell `yogurts` from another product."""
    for ending, short in (("ies", "y"), ("sses", "ss"), ("es", "e"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 2 and not word.endswith("ss"):
            return word[: -len(ending)] + short
    return word
