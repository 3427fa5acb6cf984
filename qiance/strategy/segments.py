"""Who the users of an audience are, in words, by language; read from `segments.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, RootModel

from qiance.domain import Audience

EVERYBODY = Audience("everybody")
Side = Literal["high", "low"]


class _Words(BaseModel):
    """Users on one side of a bound: for a marketer, and for who writes to them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    readers: str = ""


class _File(RootModel[dict[str, dict[str, dict[Side, _Words]]]]):
    """Language, feature, side."""


@cache
def _load() -> Mapping[str, Mapping[str, Mapping[Side, _Words]]]:
    text = resources.files("qiance.strategy").joinpath("segments.yaml").read_text(encoding="utf-8")
    return _File.model_validate(yaml.safe_load(text)).root


def segment_words(audience: Audience, language: str = "en") -> tuple[str, ...]:
    """What the users of `audience` are like, e.g. ("lapsed shoppers", "deal seekers"), or ("everybody",)."""
    words, known = [], _load().get(language, _load()["en"])
    for feature, symbol, value in audience.conditions:
        plain, side = feature.replace("_", " "), _side(symbol)
        if symbol == "==":
            words.append(f"{feature} {value:g}")
        elif feature in known:
            words.append(known[feature][side].what)
        else:
            words.append(f"shoppers with {side} {plain}")
    return tuple(dict.fromkeys(words)) or (EVERYBODY.name,)


def reader_words(audience: Audience, language: str = "en") -> str:
    """Whom words for `audience` should have in mind, e.g. "families who fill the pantry"; may be empty.

    Only what the first condition says: for more readers at a time small models write lists. Features that
    have no words say nothing to a reader.
    """
    known = _load().get(language, {})
    found = (
        known[feature][_side(symbol)].readers
        for feature, symbol, _ in audience.conditions
        if feature in known and symbol != "==" and known[feature][_side(symbol)].readers
    )
    return next(found, "")


def _side(symbol: str) -> Side:
    return "high" if symbol.startswith(">") else "low"
