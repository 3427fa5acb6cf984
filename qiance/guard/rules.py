"""Rules as data: those that ship, and a shop's own file that may add and tighten but not loosen unsaid."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qiance.domain import Channel
from qiance.guard.results import Severity

# Part of every version: raise it when the code that applies the rules changes what it finds.
ENGINE: Final = 1
FILES: Final = ("common.yaml", "english.yaml", "chinese.yaml")
LOCALES: Final = ("en", "zh")
Kind = Literal[
    "terms", "figures", "slots", "offer", "end", "threshold", "no-offer", "length", "emoji", "shout",
    "hidden", "email", "phone", "id-number", "names", "brand-never", "brand-must", "margin", "price",
    "product-name",
]  # fmt: skip
Locale = Literal["en", "zh", "any"]
Backing = Literal["ends", "stock", "day"]


_CHINESE: Final = re.compile(r"[\u4e00-\u9fff]|\\u4e00")
_MARKS: Final = str.maketrans({"，": ",", "！": "!", "：": ":", "；": ";", "％": "%", "￥": "¥", "？": r"\?"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """Most characters of each part that a channel shows after the facts are bound, and most emoji in all."""

    headline: int = Field(ge=1)
    body: int = Field(ge=1)
    call_to_action: int = Field(ge=1)
    emoji: int = Field(ge=0)


class Rule(_Strict):
    """One rule.

    terms: regular expressions over folded text; Latin ones stand as whole words.
    except_: longer phrases in which a term is something else; replace: pattern → what may stand instead.
    backed_by: what makes the claim true: a slot, or for `day` a schedule of a day; needs: terms for which
    only that does. in_names: whether product names are held to the rule too.
    titles, generic: for names: forms of address, and words that follow a greeting without being a name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    kind: Kind
    locale: Locale
    severity: Literal[Severity.BLOCK, Severity.WARN]
    source: str = Field(min_length=8)
    message: str = Field(min_length=4)
    fix: str = Field(min_length=2)
    terms: tuple[str, ...] = ()
    except_: tuple[str, ...] = Field((), alias="except")
    replace: dict[str, str] = Field(default_factory=dict)
    backed_by: tuple[Backing, ...] = ()
    needs: dict[Backing, tuple[str, ...]] = Field(default_factory=dict)
    in_names: bool = False
    titles: tuple[str, ...] = ()
    generic: str = ""

    @field_validator("terms", "except_")
    @classmethod
    def _compile(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        for term in terms:
            _compiled(term)
        return terms


class Must(_Strict):
    """Words that the shop wants said, in a language and on channels (empty: on all)."""

    text: str = Field(min_length=1)
    locale: Locale = "any"
    channels: tuple[Channel, ...] = ()


class Allow(_Strict):
    """A match that is admitted, because somebody has evidence for it."""

    rule: str
    text: str = Field(min_length=1)
    evidence: str = Field(min_length=8)
    by: str = Field(min_length=1)


class Brand(_Strict):
    """never: by language, words that the shop does not use; must: words that it wants said."""

    never: dict[Locale, tuple[str, ...]] = Field(default_factory=dict)
    must: tuple[Must, ...] = ()


class Tighten(_Strict):
    """Changes to a rule that ships: a higher severity, more terms."""

    severity: Literal[Severity.BLOCK] | None = None
    terms: tuple[str, ...] = ()


class OwnLimits(_Strict):
    """Lower limits for a channel."""

    headline: int | None = Field(None, ge=1)
    body: int | None = Field(None, ge=1)
    call_to_action: int | None = Field(None, ge=1)
    emoji: int | None = Field(None, ge=0)


class OwnRules(_Strict):
    """A shop's own file."""

    brand: Brand = Brand()
    rules: tuple[Rule, ...] = ()
    tighten: dict[str, Tighten] = Field(default_factory=dict)
    channels: dict[Channel, OwnLimits] = Field(default_factory=dict)
    allow: tuple[Allow, ...] = ()


class _File(_Strict):
    channels: dict[Channel, Limits] = Field(default_factory=dict)
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Everything that a lint needs; version: a digest of all of it, kept with each creative."""

    rules: tuple[Rule, ...]
    channels: Mapping[Channel, Limits]
    brand: Brand
    allow: tuple[Allow, ...]
    version: str

    def of(self, kind: Kind) -> tuple[Rule, ...]:
        """The rules of one kind, in order."""
        return tuple(rule for rule in self.rules if rule.kind == kind)


def load_rules(own: Path | None = None) -> RuleSet:
    """The rules that ship, with the shop's own file laid over them.

    ValueError names file, field and remedy: an unknown field, a rule id that is taken, a limit above the
    packaged one, or an exception to a rule that does not exist.
    """
    return packaged() if own is None else combine(packaged(), read_own(own))


@cache
def packaged() -> RuleSet:
    """The rules that ship; read once a process."""
    folder = resources.files("qiance.guard").joinpath("rules")
    files = [_File.model_validate(yaml.safe_load(folder.joinpath(n).read_text("utf-8"))) for n in FILES]
    rules = tuple(rule for file in files for rule in file.rules)
    channels = {name: limits for file in files for name, limits in file.channels.items()}
    return _versioned(rules, channels, Brand(), ())


def read_own(path: Path) -> OwnRules:
    """A shop's file as it is; ValueError names the file and the field."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"guard.rules: {path} cannot be read ({error}); name a YAML file") from None
    try:
        return OwnRules.model_validate(data or {})
    except (ValidationError, re.error) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"guard.rules: {path}: {where}: {first['msg']}") from None
        raise ValueError(f"guard.rules: {path}: {error}") from None


def combine(base: RuleSet, own: OwnRules) -> RuleSet:
    """`base` with a shop's rules; nothing of `base` becomes weaker but by a named `allow`."""
    known = {rule.id: rule for rule in base.rules}
    for rule in own.rules:
        if rule.id in known:
            raise ValueError(
                f"rules.{rule.id}: is taken by a packaged rule; tighten it, or choose another id"
            )
    for name in [*own.tighten, *(allow.rule for allow in own.allow)]:
        if name not in known and name not in {rule.id for rule in own.rules}:
            raise ValueError(f"rule {name!r} does not exist; `qiance lint --rules-table` lists them")
    rules = (*(_tightened(rule, own.tighten.get(rule.id)) for rule in base.rules), *own.rules)
    channels = {
        name: _lowered(name, limits, own.channels.get(name)) for name, limits in base.channels.items()
    }
    return _versioned(rules, channels, own.brand, own.allow)


def _tightened(rule: Rule, change: Tighten | None) -> Rule:
    if change is None:
        return rule
    return rule.model_copy(
        update={"severity": change.severity or rule.severity, "terms": (*rule.terms, *change.terms)}
    )


def _lowered(name: Channel, limits: Limits, own: OwnLimits | None) -> Limits:
    given = {} if own is None else own.model_dump(exclude_none=True)
    for field, value in given.items():
        most = getattr(limits, field)
        if value > most:
            raise ValueError(
                f"channels.{name.value}.{field}: {value} is above the packaged {most}; it can only be lower"
            )
    return limits.model_copy(update=given)


def _versioned(
    rules: Sequence[Rule], channels: Mapping[Channel, Limits], brand: Brand, allow: Sequence[Allow]
) -> RuleSet:
    content: dict[str, Any] = {
        "engine": ENGINE,
        "rules": [rule.model_dump(mode="json") for rule in rules],
        "channels": {name.value: limits.model_dump() for name, limits in channels.items()},
        "brand": brand.model_dump(mode="json"),
        "allow": [each.model_dump() for each in allow],
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    version = hashlib.sha256(text.encode()).hexdigest()[:16]
    return RuleSet(tuple(rules), dict(channels), brand, tuple(allow), version)


@cache
def alternation(terms: tuple[str, ...]) -> re.Pattern[str] | None:
    """All `terms` as one expression, None if there are none.

    Latin terms stand as whole words; terms with Chinese in them stand anywhere. Full-width marks become what
    folding makes of them in the text.
    """
    folded = [term.translate(_MARKS) for term in terms]
    latin = [f"(?:{term})" for term in folded if not _CHINESE.search(term)]
    parts = [f"(?:{term})" for term in folded if _CHINESE.search(term)]
    if latin:  # one look at the border for all of them: it is what takes the time
        parts.insert(0, f"(?<![a-z0-9])(?:{'|'.join(latin)})(?![a-z0-9])")
    return _compiled("|".join(parts)) if parts else None


@cache
def _compiled(term: str) -> re.Pattern[str]:
    try:
        return re.compile(term)
    except re.error as error:
        raise ValueError(f"term {term!r} is no regular expression: {error}") from None
