"""Random histories for property tests: few users and items, coarse times, so that ties and repeats occur."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from qiance.data import EVENT_SCHEMA
from qiance.features.events import EventIndex, ItemTable

START = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 130
USERS = tuple(f"u{n}" for n in range(5))
SOLD = tuple(f"i{n}" for n in range(6))  # the last two are not among the shop's items
ITEMS = ItemTable(
    item_ids=SOLD[:4],
    category=("coffee", "soup", "coffee", ""),
    brand=("A", "B", "", "A"),
    price=np.array([500.0, 300.0, np.nan, 200.0]),
    margin_rate=np.array([0.4, 0.2, np.nan, 0.1]),
    stock=np.array([7.0, np.nan, 0.0, np.nan]),
)
CATEGORY = dict(zip(ITEMS.item_ids, ITEMS.category, strict=True))
BRAND = dict(zip(ITEMS.item_ids, ITEMS.brand, strict=True))


@dataclass(frozen=True)
class Line:
    """One event; at: half days since START."""

    user: str
    item: str
    kind: str
    quantity: int
    value: int
    discount: int
    coupon: int
    at: int
    basket: str

    @property
    def when(self) -> datetime:
        return START + timedelta(hours=12 * self.at)


lines = st.builds(
    Line,
    user=st.sampled_from(USERS),
    item=st.sampled_from(SOLD),
    kind=st.sampled_from(("purchase", "purchase", "purchase", "view", "refund")),
    quantity=st.integers(1, 3),
    value=st.integers(0, 500),
    discount=st.sampled_from((0, 0, 10, 37)),
    coupon=st.sampled_from((0, 0, 5)),
    at=st.integers(0, 2 * DAYS),
    basket=st.sampled_from(("b0", "b1", "b2")),
)
histories = st.lists(lines, min_size=1, max_size=40).filter(
    lambda found: any(line.kind == "purchase" for line in found)
)


def table_of(found: list[Line], ids: list[str] | None = None) -> pa.Table:
    """The lines as an `EVENT_SCHEMA` table, in their order."""
    return (
        pa.table(
            {
                "event_id": ids or [f"e{n}" for n in range(len(found))],
                "user_id": [line.user for line in found],
                "item_id": [line.item for line in found],
                "type": [line.kind for line in found],
                "quantity": [line.quantity for line in found],
                "value": [line.value for line in found],
                "discount": [line.discount for line in found],
                "coupon": [line.coupon for line in found],
                "occurred_at": [line.when for line in found],
                "basket_id": [line.basket for line in found],
            }
        )
        .select(EVENT_SCHEMA.names)
        .cast(EVENT_SCHEMA)
    )


def index_of(found: list[Line], users: tuple[str, ...] = USERS) -> EventIndex:
    """The purchases of the lines, for `users`."""
    return EventIndex.build(table_of(found), users, CATEGORY, ITEMS, ("coffee", "soup"))


def day_of(when: datetime) -> float:
    return when.timestamp() / 86_400
