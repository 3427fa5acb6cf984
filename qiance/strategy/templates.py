"""Approved words with slots, read from `templates.yaml`: what is sent when no model's words pass."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, Field

from qiance.domain import Channel, Creative

Words = tuple[str, str, str]
Choices = dict[Channel, tuple[Words, ...]]


class _Bank(BaseModel):
    """Schema of the file: by language, the `plain` and `offer` words, and the sentences of an offer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    templates: dict[str, dict[str, Choices]]
    offer: dict[str, dict[Channel, str]]
    threshold: dict[str, str] = Field(description="said where there is a least basket")


@cache
def _bank() -> _Bank:
    text = resources.files("qiance.strategy").joinpath("templates.yaml").read_text(encoding="utf-8")
    return _Bank.model_validate(yaml.safe_load(text))


def _choices(channel: Channel, has_offer: bool, language: str) -> tuple[Words, ...]:
    return _bank().templates[language]["offer" if has_offer else "plain"][channel]


def template_count(channel: Channel, has_offer: bool, language: str) -> int:
    """How many templates there are for that channel, offer and language."""
    return len(_choices(channel, has_offer, language))


def template(channel: Channel, language: str, has_offer: bool, has_threshold: bool, number: int) -> Creative:
    """Template `number`, counted round and round, with the condition of its offer stated."""
    choices = _choices(channel, has_offer, language)
    headline, body, call_to_action = choices[number % len(choices)]
    body += threshold_sentence(language, has_threshold)
    return Creative(channel, language, headline, body, call_to_action)


def offer_sentence(channel: Channel, language: str, has_threshold: bool) -> str:
    """The sentence that states an offer and when it ends, appended to words written by a model."""
    return _bank().offer[language][channel] + threshold_sentence(language, has_threshold)


def threshold_sentence(language: str, has_threshold: bool) -> str:
    """The least basket as a sentence of its own, empty where there is none."""
    return _bank().threshold[language] if has_threshold else ""
