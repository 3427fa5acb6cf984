"""The roles that a mapped column can play, and what each admits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qiance.data.convert import Kind

EVENT_TYPES = ("purchase", "refund", "view", "cart", "click")


class MappingKind(StrEnum):
    """What a file becomes."""

    EVENTS = "events"
    RESPONSES = "responses"
    PURCHASES = "purchases"


@dataclass(frozen=True, slots=True)
class Role:
    """What a target column must be; types[0] is the default.

    if_missing: what `required: false` puts in place of a missing value of a required role; None where
    such a role cannot be optional.
    """

    types: tuple[Kind, ...]
    required: bool = True
    if_missing: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    allowed: tuple[str, ...] = ()


_TEXT, _WHEN, _MONEY = (Kind.STRING,), (Kind.TIMESTAMP,), (Kind.MONEY,)
ROLES: dict[MappingKind, dict[str, Role]] = {
    MappingKind.EVENTS: {
        "event_id": Role(types=_TEXT),
        "user_id": Role(types=_TEXT),
        "item_id": Role(types=_TEXT),
        "type": Role(types=_TEXT, allowed=EVENT_TYPES),
        "quantity": Role(types=(Kind.INTEGER,), if_missing=1, minimum=1),
        "value": Role(types=_MONEY, if_missing=0, minimum=0),
        "discount": Role(types=_MONEY, required=False, if_missing=0, minimum=0),
        "coupon": Role(types=_MONEY, required=False, if_missing=0, minimum=0),
        "occurred_at": Role(types=_WHEN),
        "basket_id": Role(types=_TEXT, required=False),
    },
    MappingKind.RESPONSES: {
        "row_id": Role(types=_TEXT),
        "unit_id": Role(types=_TEXT),
        "arm": Role(types=_TEXT),
        "propensity": Role(types=(Kind.NUMBER,), above=0, maximum=1),
        "occurred_at": Role(types=_WHEN),
        "converted_at": Role(types=_WHEN, required=False),
    },
    MappingKind.PURCHASES: {
        "event_id": Role(types=_TEXT),
        "user_id": Role(types=_TEXT),
        "value": Role(types=_MONEY, if_missing=0, minimum=0),
        "occurred_at": Role(types=_WHEN),
    },
}
LABEL_ROLES = {
    "click": Role(types=(Kind.FLAG,)),
    "conversion": Role(types=(Kind.FLAG,)),
    "sales": Role(types=_MONEY, if_missing=0, minimum=0),
}
NUMERIC_ROLE = Role(types=(Kind.NUMBER, Kind.INTEGER, Kind.MONEY, Kind.FLAG), required=False)
CATEGORICAL_ROLE = Role(types=_TEXT, required=False)
NEEDED_ROLES = {
    MappingKind.EVENTS: ("user_id", "item_id", "value", "occurred_at"),
    MappingKind.RESPONSES: (),
    MappingKind.PURCHASES: ("user_id", "value", "occurred_at"),
}
CONSTANT_ROLES = {
    MappingKind.EVENTS: ("type", "quantity", "value", "discount", "coupon"),
    MappingKind.RESPONSES: ("propensity",),
    MappingKind.PURCHASES: ("value",),
}
