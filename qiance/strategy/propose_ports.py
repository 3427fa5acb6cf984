"""What a proposer needs of whoever writes the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qiance.domain import Channel, Creative, Item, Objective, Offer


@dataclass(frozen=True, slots=True)
class Draft:
    """An action that still lacks its words.

    key: the action id that the text is for; unique within one call of `write`.
    language: BCP 47 tag; segment: what the audience is like, in words, e.g. ("deal seekers",); readers: whom
    the writer should have in mind, may be empty. objective: what the brief wants more of.
    """

    key: str
    item: Item
    offer: Offer
    channel: Channel
    language: str
    segment: tuple[str, ...]
    readers: str
    objective: Objective


@dataclass(frozen=True, slots=True)
class WrittenText:
    """The words for one draft.

    creative: of the draft's channel and language; facts may still be slots.
    reasons: why these words, one sentence each; engine: what wrote them, e.g. `llm smollm2-135m`.
    """

    creative: Creative
    reasons: tuple[str, ...]
    engine: str


class ContentWriter(Protocol):
    """Writes creatives: a language model with templates behind it, or templates alone."""

    def write(self, drafts: Sequence[Draft]) -> list[WrittenText]:
        """One text per draft, in the same order, with the draft's channel and language."""
        ...
