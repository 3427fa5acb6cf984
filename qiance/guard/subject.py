"""What is linted: the words of one action, with the offer and the facts that they speak of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from qiance.domain import Action, Catalogue, Creative, Item, Offer, Strategy

NO_OFFER: Final = Offer()


@dataclass(frozen=True, slots=True)
class Subject:
    """Words and what they are about.

    item_id: of the catalogue; item: its row, None where words are looked at on their own.
    segment: the audience's name; starts, ends: the schedule, aware; stock: units left, None if not known.
    """

    creative: Creative
    offer: Offer = NO_OFFER
    item_id: str | None = None
    item: Item | None = None
    segment: str = "everybody"
    starts: datetime | None = None
    ends: datetime | None = None
    stock: int | None = None


def subject_of(strategy: Strategy, action: Action, catalogue: Catalogue | None) -> Subject:
    """The words of `action`, with its item as the catalogue has it now.

    catalogue: None where there is none at hand; ValueError if the action has no words.
    An item that the catalogue lacks stays None, which the guard refuses.
    """
    if action.creative is None:
        raise ValueError(f"action {action.action_id!r} has no words")
    item = None
    if catalogue is not None and action.item_id is not None and action.item_id in catalogue.index:
        item = catalogue[action.item_id]
    return Subject(
        creative=action.creative,
        offer=action.offer,
        item_id=action.item_id,
        item=item,
        segment=strategy.audience.name,
        starts=strategy.starts,
        ends=strategy.ends,
    )


def subjects_of(strategy: Strategy, catalogue: Catalogue | None) -> dict[str, Subject]:
    """The subjects of every action that has words, by action id."""
    return {
        a.action_id: subject_of(strategy, a, catalogue) for a in strategy.actions if a.creative is not None
    }
