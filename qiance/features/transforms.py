"""Feature values as pure functions of the event log: the same code for batch jobs and for serving.

Every function takes events that happened strictly before `as_of` into account and nothing after it,
so a row stamped `as_of` is point-in-time correct by construction. What is counted per item and for the
market is a sum over users first (`item_sums`, `market_sums`): the sums of disjoint sets of users add up,
and the ratios are taken of the total.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qiance.domain import Catalogue
from qiance.features.events import DAY_US, Codes, EventIndex, Floats, ItemTable, Pairs, Repeats

__all__ = [
    "DAY_US",
    "ITEM_FEATURES",
    "ITEM_POPULARITY_FEATURES",
    "ITEM_SUMS",
    "MARKET_FEATURES",
    "MARKET_SUMS",
    "USER_BRAND_FEATURES",
    "USER_CATEGORY_FEATURES",
    "USER_FEATURES",
    "WINDOW_DAYS",
    "EventIndex",
    "ItemTable",
    "PairRows",
    "item_features",
    "item_features_of",
    "item_popularity_features",
    "item_popularity_of",
    "item_sums",
    "market_features",
    "market_features_of",
    "market_sums",
    "user_brand_rows",
    "user_category_features",
    "user_category_rows",
    "user_features",
]

WINDOW_DAYS = 90
ITEM_WINDOW_DAYS = 28
SHORT_DAYS = 7

USER_FEATURES = (
    "recency_days",
    "baskets_90d",
    "spend_90d",
    "avg_basket",
    "discount_share",
    "tenure_days",
    "categories_90d",
    "discounted_line_share",
    "avg_discount_depth",
    "coupon_baskets_90d",
    "coupon_share",
)
ITEM_FEATURES = (
    "price",
    "margin_rate",
    "units_28d",
    "buyers_28d",
    "item_discount_share",
    "promoted_share_7d",
    "stock",
)
ITEM_POPULARITY_FEATURES = ("units_1d", "units_7d", "units_90d", "buyers_7d", "popularity_trend")
USER_CATEGORY_FEATURES = ("category_share", "category_baskets_90d", "category_recency_days")
USER_BRAND_FEATURES = ("brand_share", "brand_baskets_90d", "brand_recency_days")
MARKET_FEATURES = ("market_units_7d", "market_buyers_7d", "market_trend")
ITEM_SUMS = (
    "units_1d",
    "units_7d",
    "units_28d",
    "units_90d",
    "buyers_7d",
    "buyers_28d",
    "lines_7d",
    "promoted_lines_7d",
    "value_28d",
    "discount_28d",
)
MARKET_SUMS = ("units_7d", "units_28d", "buyers_7d")
Sums = Mapping[str, Floats]


def user_features(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """Recency, frequency, monetary value, price sensitivity and coupons of each user, `[U]` each.

    recency_days and tenure_days are NaN for a user without an earlier purchase; spend_90d and avg_basket
    are minor units; discount_share is discount ÷ (paid + discount) in the window.
    discounted_line_share is the share of lines bought below the shelf price, and avg_discount_depth the
    mean of discount ÷ (paid + discount) over those lines; coupon_share is what coupons saved
    ÷ (paid + discount). Shares are 0 where there is nothing to take a share of.
    """
    size = len(events.user_ids)
    window = events.between(as_of - WINDOW_DAYS, as_of)
    user = events.user[window]
    spend = _count(user, size, events.value[window])
    discount = _count(user, size, events.discount[window])
    baskets = _distinct(events.baskets, window, events.user, size)
    last, begin = _last_and_first(events, as_of)
    return {
        "recency_days": as_of - last,
        "baskets_90d": baskets,
        "spend_90d": spend,
        "avg_basket": _ratio(spend, baskets),
        "discount_share": _ratio(discount, spend + discount),
        "tenure_days": as_of - begin,
        "categories_90d": _distinct(events.categories_of_user, window, events.user, size),
        **_price_sensitivity(events, window),
        "coupon_baskets_90d": _distinct(events.coupon_baskets, window, events.user, size),
        "coupon_share": _ratio(_count(user, size, events.coupon[window]), spend + discount),
    }


def _price_sensitivity(events: EventIndex, window: slice) -> dict[str, Floats]:
    size, user = len(events.user_ids), events.user[window]
    paid, discount = events.value[window], events.discount[window]
    lowered = discount > 0
    lines = _count(user[lowered], size)
    depth = discount[lowered] / (paid[lowered] + discount[lowered])
    return {
        "discounted_line_share": _ratio(lines, _count(user, size)),
        "avg_discount_depth": _ratio(_count(user[lowered], size, depth), lines),
    }


def _last_and_first(events: EventIndex, as_of: float) -> tuple[Floats, Floats]:
    """`[U]` day of the last and of the first purchase before `as_of`, NaN without one."""
    past = events.between(-np.inf, as_of)
    last, begin = np.full(len(events.user_ids), np.nan), np.full(len(events.user_ids), np.nan)
    last[events.user[past]] = events.day[past]  # of several, the assignment that stays is the last
    begin[events.user[past][::-1]] = events.day[past][::-1]
    return last, begin


@dataclass(frozen=True)
class PairRows:
    """The (user, other) pairs with a purchase in the window, `[p]` each, ordered by user, then other."""

    user: Codes
    other: Codes
    columns: dict[str, Floats]


def user_category_rows(events: EventIndex, as_of: float, before: float | None = None) -> PairRows:
    """Behaviour of each user in each category bought from; the share is of the user's window spend.

    before: the instant of the rows before these. A pair that had a row then and has bought nothing in the
    window since gets one that says so, or its old row would go on being the newest until its TTL.
    """
    pairs, baskets = events.of_category, events.category_baskets
    return _pair_rows(events, as_of, before, pairs, baskets, USER_CATEGORY_FEATURES)


def user_brand_rows(events: EventIndex, as_of: float, before: float | None = None) -> PairRows:
    """Behaviour of each user with each brand bought; as `user_category_rows`."""
    return _pair_rows(events, as_of, before, events.of_brand, events.brand_baskets, USER_BRAND_FEATURES)


def _pair_rows(
    events: EventIndex,
    as_of: float,
    before: float | None,
    pairs: Pairs,
    baskets: Repeats,
    names: tuple[str, ...],
) -> PairRows:
    """share, baskets and recency of each pair, under `names`; 0, 0 and NaN of one that ended."""
    window = events.between(as_of - WINDOW_DAYS, as_of)
    code = pairs.code[window]
    known = code >= 0
    code = code[known]
    total = _count(events.user[window], len(events.user_ids), events.value[window])
    spend = _count(code, len(pairs), events.value[window][known])
    last = np.full(len(pairs), np.nan)
    last[code] = events.day[window][known]
    reach = pairs.code[events.between((as_of if before is None else before) - WINDOW_DAYS, as_of)]
    rows = np.flatnonzero(_count(reach[reach >= 0], len(pairs)))
    columns = (
        _ratio(spend[rows], total[pairs.user[rows]]),
        _distinct(baskets, window, pairs.code, len(pairs))[rows],
        as_of - last[rows],
    )
    return PairRows(pairs.user[rows], pairs.other[rows], dict(zip(names, columns, strict=True)))


def user_category_features(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """`user_category_rows` as `[U, C]` each; recency is NaN where there was no purchase in the window."""
    shape = (len(events.user_ids), len(events.categories))
    rows = user_category_rows(events, as_of)
    full = {}
    for name, values in rows.columns.items():
        full[name] = np.full(shape, np.nan if name == "category_recency_days" else 0.0)
        full[name][rows.user, rows.other] = values
    return full


def item_sums(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """`ITEM_SUMS` over the users of the index, `[I]` each: add them up over disjoint sets of users."""
    sums = {f"units_{days}d": _of_items(events, as_of, days, events.quantity) for days in (1, 7, 28, 90)}
    sums |= {f"buyers_{days}d": _item_buyers(events, as_of, days) for days in (SHORT_DAYS, ITEM_WINDOW_DAYS)}
    one = np.ones(len(events))
    sums["lines_7d"] = _of_items(events, as_of, SHORT_DAYS, one)
    sums["promoted_lines_7d"] = _of_items(events, as_of, SHORT_DAYS, (events.discount > 0).astype(np.float64))
    sums["value_28d"] = _of_items(events, as_of, ITEM_WINDOW_DAYS, events.value)
    sums["discount_28d"] = _of_items(events, as_of, ITEM_WINDOW_DAYS, events.discount)
    return {name: sums[name] for name in ITEM_SUMS}


def _of_items(events: EventIndex, as_of: float, days: int, weights: Floats) -> Floats:
    window = events.between(as_of - days, as_of)
    item = events.item[window]
    known = item >= 0
    return _count(item[known], events.num_items, weights[window][known])


def _item_buyers(events: EventIndex, as_of: float, days: int) -> Floats:
    window = events.between(as_of - days, as_of)
    return _distinct(events.item_buyers, window, events.item, events.num_items)


def item_features_of(sums: Sums, items: ItemTable) -> dict[str, Floats]:
    """`ITEM_FEATURES` of each item from the sums over all users; money in minor units."""
    return {
        "price": items.price,
        "margin_rate": items.margin_rate,
        "units_28d": sums["units_28d"],
        "buyers_28d": sums["buyers_28d"],
        "item_discount_share": _ratio(sums["discount_28d"], sums["value_28d"] + sums["discount_28d"]),
        "promoted_share_7d": _ratio(sums["promoted_lines_7d"], sums["lines_7d"]),
        "stock": items.stock,
    }


def item_popularity_of(sums: Sums) -> dict[str, Floats]:
    """`ITEM_POPULARITY_FEATURES`; the trend is the week's daily units ÷ those of 28 days, 0 without sales."""
    return {
        "units_1d": sums["units_1d"],
        "units_7d": sums["units_7d"],
        "units_90d": sums["units_90d"],
        "buyers_7d": sums["buyers_7d"],
        "popularity_trend": _ratio(sums["units_7d"] / SHORT_DAYS, sums["units_28d"] / ITEM_WINDOW_DAYS),
    }


def item_features(events: EventIndex, items: Catalogue | ItemTable, as_of: float) -> dict[str, Floats]:
    """Price (minor units), margin rate, recent demand, promotion and stock of each item, `[I]` each."""
    table = items if isinstance(items, ItemTable) else ItemTable.of(items)
    return item_features_of(item_sums(events, as_of), table)


def item_popularity_features(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """Units and buyers of each item by window, `[I]` each."""
    return item_popularity_of(item_sums(events, as_of))


def market_sums(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """`MARKET_SUMS` over the users of the index, `[1]` each: all lines, also those outside the catalogue."""
    week = events.between(as_of - SHORT_DAYS, as_of)
    month = events.between(as_of - ITEM_WINDOW_DAYS, as_of)
    return {
        "units_7d": np.array([events.quantity[week].sum()]),
        "units_28d": np.array([events.quantity[month].sum()]),
        "buyers_7d": np.array([float(len(events.buyers.first_in(week)))]),
    }


def market_features_of(sums: Sums) -> dict[str, Floats]:
    """`MARKET_FEATURES` from the sums over all users, `[1]` each."""
    return {
        "market_units_7d": sums["units_7d"],
        "market_buyers_7d": sums["buyers_7d"],
        "market_trend": _ratio(sums["units_7d"] / SHORT_DAYS, sums["units_28d"] / ITEM_WINDOW_DAYS),
    }


def market_features(events: EventIndex, as_of: float) -> dict[str, Floats]:
    """Units, buyers and trend of the whole shop, `[1]` each."""
    return market_features_of(market_sums(events, as_of))


def _distinct(repeats: Repeats, window: slice, owner: Codes, size: int) -> Floats:
    """`[size]` distinct keys of each owner in the window."""
    return _count(owner[repeats.first_in(window)], size)


def _count(codes: Codes, size: int, weights: Floats | None = None) -> Floats:
    return np.bincount(codes, weights, size).astype(np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part ÷ whole, 0 where whole is not positive."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)
