"""Feature values as pure functions of the event log: the same code for batch jobs and for serving.

Every function takes events that happened strictly before `as_of` into account and nothing after it,
so a row stamped `as_of` is point-in-time correct by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.domain import Catalogue

Floats = NDArray[np.float64]
DAY_US = 86_400_000_000
WINDOW_DAYS = 90
ITEM_WINDOW_DAYS = 28

USER_FEATURES = (
    "recency_days",
    "baskets_90d",
    "spend_90d",
    "avg_basket",
    "discount_share",
    "tenure_days",
    "categories_90d",
)
ITEM_FEATURES = ("price", "margin_rate", "units_28d", "buyers_28d", "item_discount_share")
USER_CATEGORY_FEATURES = ("category_share", "category_baskets_90d", "category_recency_days")


@dataclass(frozen=True)
class EventIndex:
    """Purchase lines as arrays, sorted by time.

    user, item, category, basket: `[n]` int64 codes (item and category −1 outside the catalogue);
    day: `[n]` float days since the epoch; value, discount: `[n]` minor units; quantity: `[n]`.
    """

    user_ids: tuple[str, ...]
    categories: tuple[str, ...]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    category: NDArray[np.int64]
    basket: NDArray[np.int64]
    day: Floats
    value: Floats
    discount: Floats
    quantity: Floats

    @classmethod
    def build(
        cls,
        events: pa.Table,
        user_ids: Sequence[str],
        item_categories: Mapping[str, str],
        catalogue: Catalogue,
        categories: Sequence[str],
    ) -> EventIndex:
        """Index the `events` table; `item_categories` maps every known item id to its category."""
        purchases = events.filter(pc.equal(events["type"], "purchase")).sort_by("occurred_at")
        ids = purchases["item_id"].combine_chunks().dictionary_encode()
        names = ids.dictionary.to_pylist()
        category_code = {name: code for code, name in enumerate(categories)}
        to_item = np.array([catalogue.index.get(name, -1) for name in names], dtype=np.int64)
        to_category = np.array(
            [category_code.get(item_categories.get(name, ""), -1) for name in names], dtype=np.int64
        )
        code = ids.indices.to_numpy(zero_copy_only=False)
        return cls(
            user_ids=tuple(user_ids),
            categories=tuple(categories),
            user=_codes(purchases["user_id"], user_ids),
            item=to_item[code],
            category=to_category[code],
            basket=purchases["basket_id"]
            .combine_chunks()
            .dictionary_encode()
            .indices.to_numpy(zero_copy_only=False)
            .astype(np.int64),
            day=_days(purchases["occurred_at"]),
            value=purchases["value"].to_numpy().astype(np.float64),
            discount=purchases["discount"].to_numpy().astype(np.float64),
            quantity=purchases["quantity"].to_numpy().astype(np.float64),
        )

    def between(self, start: float, end: float) -> slice:
        """Rows with start ≤ day < end."""
        low, high = np.searchsorted(self.day, [start, end])
        return slice(int(low), int(high))


def _codes(column: Any, values: Sequence[str]) -> NDArray[np.int64]:
    codes = pc.index_in(column, value_set=pa.array(list(values), pa.string()))
    return np.asarray(codes.fill_null(-1).to_numpy(), dtype=np.int64)


def _days(column: Any) -> Floats:
    micros = pc.cast(column, pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return np.asarray(micros / DAY_US, dtype=np.float64)


def user_features(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """Recency, frequency, monetary value and kin of each user, `[U]` each, at day `as_of`.

    recency_days and tenure_days are NaN for a user without an earlier purchase; spend_90d and
    avg_basket are minor units; discount_share is discount ÷ (paid + discount) in the window.
    """
    size = len(events.user_ids)
    past = events.between(-np.inf, as_of)
    window = events.between(as_of - WINDOW_DAYS, as_of)
    user = events.user[window]
    spend = _count(user, size, events.value[window])
    discount = _count(user, size, events.discount[window])
    _, first = np.unique(events.basket[window], return_index=True)
    baskets = _count(user[first], size)
    pairs = np.unique(user * (len(events.categories) + 1) + events.category[window] + 1)
    last = np.full(size, np.nan)
    last[events.user[past]] = events.day[past]
    begin = np.full(size, np.nan)
    begin[events.user[past][::-1]] = events.day[past][::-1]
    return {
        "recency_days": as_of - last,
        "baskets_90d": baskets,
        "spend_90d": spend,
        "avg_basket": _ratio(spend, baskets),
        "discount_share": _ratio(discount, spend + discount),
        "tenure_days": as_of - begin,
        "categories_90d": _count(pairs // (len(events.categories) + 1), size),
    }


def item_features(events: EventIndex, catalogue: Catalogue, as_of: float) -> dict[str, Floats]:
    """Price (minor units), margin rate and recent demand of each catalogue item, `[I]` each."""
    size = len(catalogue)
    window = events.between(as_of - ITEM_WINDOW_DAYS, as_of)
    known = events.item[window] >= 0
    item = events.item[window][known]
    value, discount = events.value[window][known], events.discount[window][known]
    sold = _count(item, size, value)
    lowered = _count(item, size, discount)
    buyers = np.unique(item * len(events.user_ids) + events.user[window][known]) // len(events.user_ids)
    return {
        "price": np.array([i.price for i in catalogue], dtype=np.float64),
        "margin_rate": np.array([i.margin_rate for i in catalogue], dtype=np.float64),
        "units_28d": _count(item, size, events.quantity[window][known]),
        "buyers_28d": _count(buyers, size),
        "item_discount_share": _ratio(lowered, sold + lowered),
    }


def user_category_features(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """Behaviour of each user in each category, `[U, C]` each; share is of the user's window spend."""
    shape = (len(events.user_ids), len(events.categories))
    window = events.between(as_of - WINDOW_DAYS, as_of)
    known = events.category[window] >= 0
    pair = (events.user[window] * shape[1] + events.category[window])[known]
    size = shape[0] * shape[1]
    spend = _count(pair, size, events.value[window][known]).reshape(shape)
    total = _count(events.user[window], shape[0], events.value[window])
    num_baskets = int(events.basket.max(initial=0)) + 1
    visits = np.unique(pair * num_baskets + events.basket[window][known]) // num_baskets
    last = np.full(size, np.nan)
    last[pair] = events.day[window][known]
    return {
        "category_share": _ratio(spend, np.broadcast_to(total[:, None], shape)),
        "category_baskets_90d": _count(visits, size).reshape(shape),
        "category_recency_days": as_of - last.reshape(shape),
    }


def _count(codes: NDArray[np.int64], size: int, weights: Floats | None = None) -> Floats:
    return np.bincount(codes, weights, size).astype(np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part ÷ whole, 0 where whole is not positive."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)
