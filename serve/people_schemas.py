"""What the routes about users take and give: consent, shop events, erasure."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field, StrictBool

from qiance.domain import EventType, Purpose
from qiance.ledger.events import MOST_WORDS
from serve.schemas import MAX_MINOR, Identifier, Moment, Strict

MAX_SHOP_EVENTS = 1_000


class ConsentRequest(Strict):
    """What a user says about purposes; those that are left out stay as they are."""

    purposes: dict[Purpose, StrictBool] = Field(min_length=1)


class ConsentResponse(BaseModel):
    """What holds for a user now: recorded, or what the server assumes of who was never asked."""

    purposes: dict[Purpose, bool]


class ShopEventIn(Strict):
    """Something that a user did in the shop."""

    event_id: Identifier
    user_id: Identifier
    type: EventType
    item_id: Identifier | None = None
    query: Annotated[str, Field(min_length=1, max_length=MOST_WORDS)] | None = Field(
        None, description="The words of a search"
    )
    value: int = Field(0, ge=0, le=MAX_MINOR, strict=True, description="Minor units of a cart or purchase")
    occurred_at: Moment


class ShopEventsRequest(Strict):
    """A batch of shop events."""

    events: list[ShopEventIn] = Field(min_length=1, max_length=MAX_SHOP_EVENTS)


class RejectedEventOut(BaseModel):
    """An event that was not stored, and why."""

    index: int
    code: str
    detail: str


class ShopEventsResponse(BaseModel):
    """What became of the events."""

    accepted: int
    duplicates: int
    without_consent: int
    rejected: list[RejectedEventOut]
    visible: bool = Field(description="Whether the next decision sees them")


class ErasureResponse(BaseModel):
    """How far an erasure is; it does not say whose it is."""

    erasure_id: str
    state: str
    erased_at: datetime
    removed: dict[str, int]
    problems: list[str]
