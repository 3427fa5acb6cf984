"""What is asked for words, what a language model answers, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qiance.domain import Channel, Creative, Item, Offer, OfferKind
from qiance.strategy.prompts import Prompt
from qiance.strategy.slots import LANGUAGES

Counted = Callable[[int, int], None]


class EngineUnavailable(RuntimeError):  # noqa: N818
    """The language model cannot answer now; templates write instead."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer of an engine.

    text: as written; data: the JSON object, None when `error` says why not; tokens: how many were written.
    likelihood: mean natural log probability per token, 0 is certain.
    """

    text: str
    data: dict[str, Any] | None
    error: str | None
    tokens: int
    likelihood: float = 0.0


class TextEngine(Protocol):
    """A model that answers in JSON.

    languages: those it writes well enough to be asked; takes_segment: large enough that naming the readers
    helps it (a very small model starts to write about them: `deal seekers` brought `get paid for it`).
    tuned: languages in which it was taught the form, so that the prompt needs no examples.
    """

    name: str
    languages: frozenset[str]
    takes_segment: bool
    tuned: frozenset[str]

    def generate_json(
        self,
        prompts: Sequence[Prompt],
        schema: Mapping[str, Any],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        avoid: Sequence[str],
        on_progress: Counted | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Generated]:
        """One answer per prompt, in order; raises EngineUnavailable when there is no model."""
        ...

    def log_likelihoods(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, cancelled: Callable[[], bool] | None
    ) -> list[float]:
        """Natural log probability of each answer, or of its beginning, after its prompt.

        NaN for what was not weighed before `cancelled`; raises EngineUnavailable when there is no model.
        """
        ...


@dataclass(frozen=True, slots=True)
class ContentRequest:
    """Words wanted for one action.

    segment: the audience in words, by which the words are kept; readers: whom the model is told to write for,
    e.g. `families with children`; empty names nobody.
    objective: what the brief wants more of; kept for provenance.
    """

    key: str
    item: Item
    offer: Offer
    channel: Channel
    language: str
    segment: str = ""
    readers: str = ""
    objective: str = ""

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"request {self.key}: language {self.language!r} is not in {LANGUAGES}")
        if self.channel is Channel.NONE:
            raise ValueError(f"request {self.key}: channel {self.channel.value!r} carries no words")

    @property
    def has_offer(self) -> bool:
        return self.offer.kind is not OfferKind.NONE

    @property
    def has_threshold(self) -> bool:
        return self.has_offer and self.offer.threshold > 0


@dataclass(frozen=True, slots=True)
class Written:
    """Words for one request, slots open.

    reasons: how they came about, one sentence each; engine: the model's name, or `template`.
    """

    creative: Creative
    reasons: tuple[str, ...]
    engine: str
    key: str = ""
