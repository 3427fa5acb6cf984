"""Word lists of the wording checks, read from `terms.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict


class _File(BaseModel):
    """Schema of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    barred: dict[str, dict[str, list[str]]]
    stop: str
    dangling: str
    units: str


@dataclass(frozen=True, slots=True)
class Terms:
    """Compiled lists: barred patterns by language and rule, and the closed word classes."""

    barred: Mapping[str, Mapping[str, re.Pattern[str]]]
    stop: frozenset[str]
    dangling: frozenset[str]
    units: frozenset[str]


@cache
def load_terms() -> Terms:
    """The lists that ship with the package; read once a process."""
    text = resources.files("qiance.strategy").joinpath("terms.yaml").read_text(encoding="utf-8")
    file = _File.model_validate(yaml.safe_load(text))
    barred = {
        language: {rule: _pattern(terms, language) for rule, terms in rules.items()}
        for language, rules in file.barred.items()
    }
    return Terms(barred, *(frozenset(words.split()) for words in (file.stop, file.dangling, file.units)))


def _pattern(terms: list[str], language: str) -> re.Pattern[str]:
    """One alternation: English terms stand as whole words, Chinese ones anywhere."""
    if language == "zh":
        return re.compile("|".join(re.escape(term) for term in terms))
    return re.compile(rf"(?<![a-z])(?:{'|'.join(terms)})(?![a-z])")
