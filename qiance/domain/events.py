"""What a user does in the shop, and what may be done with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Purpose(StrEnum):
    """What a user can agree to.

    personalisation: personal features may be read for a decision. learning: rows may be trained on.
    """

    PERSONALISATION = "personalisation"
    LEARNING = "learning"


class EventType(StrEnum):
    """Kinds of shop event; all but `search` are about an item."""

    VIEW = "view"
    CART = "cart"
    PURCHASE = "purchase"
    SEARCH = "search"


@dataclass(frozen=True, slots=True)
class ShopEvent:
    """One thing that a user did; `event_id` makes a repeat harmless.

    occurred_at: in UTC. query: the words of a search. value: minor units, of a purchase or what is carted.
    """

    event_id: str
    user_id: str
    type: EventType
    occurred_at: datetime
    item_id: str | None = None
    query: str | None = None
    value: int = 0
