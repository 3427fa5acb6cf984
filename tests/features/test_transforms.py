"""Every feature against its words, by brute force over random histories; no row knows its future."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from history_cases import BRAND, CATEGORY, DAYS, ITEMS, START, USERS, Line, day_of, histories, index_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.features.transforms import (
    ITEM_FEATURES,
    ITEM_POPULARITY_FEATURES,
    ITEM_SUMS,
    MARKET_FEATURES,
    USER_BRAND_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
    item_features,
    item_popularity_features,
    item_sums,
    market_features,
    market_sums,
    user_brand_rows,
    user_category_features,
    user_category_rows,
    user_features,
)

instants = st.integers(0, DAYS + 10)


def past(found: list[Line], day: int, window: int | None = None) -> list[Line]:
    """Purchases before midnight of `day`, in the last `window` days."""
    end = START + timedelta(days=day)
    begin = end - timedelta(days=window) if window else START - timedelta(days=1)
    return [line for line in found if line.kind == "purchase" and begin <= line.when < end]


def share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def user_by_hand(found: list[Line], user: str, day: int) -> dict[str, float]:
    ever = [line.when for line in past(found, day) if line.user == user]
    own = [line for line in past(found, day, 90) if line.user == user]
    now = START + timedelta(days=day)
    spend, discount = sum(line.value for line in own), sum(line.discount for line in own)
    lowered = [line for line in own if line.discount > 0]
    depths = [line.discount / (line.value + line.discount) for line in lowered]
    baskets = len({line.basket for line in own})
    return {
        "recency_days": (now - max(ever)) / timedelta(days=1) if ever else np.nan,
        "baskets_90d": baskets,
        "spend_90d": spend,
        "avg_basket": share(spend, baskets),
        "discount_share": share(discount, spend + discount),
        "tenure_days": (now - min(ever)) / timedelta(days=1) if ever else np.nan,
        "categories_90d": len({CATEGORY.get(line.item, "") for line in own}),
        "discounted_line_share": share(len(lowered), len(own)),
        "avg_discount_depth": float(np.mean(depths)) if depths else 0.0,
        "coupon_baskets_90d": len({line.basket for line in own if line.coupon > 0}),
        "coupon_share": share(sum(line.coupon for line in own), spend + discount),
    }


@settings(max_examples=60, deadline=None)
@given(found=histories, day=instants)
def test_user_features_are_what_the_words_say(found: list[Line], day: int) -> None:
    columns = user_features(index_of(found), day_of(START + timedelta(days=day)))
    assert tuple(columns) == USER_FEATURES
    for row, user in enumerate(USERS):
        for name, value in user_by_hand(found, user, day).items():
            assert columns[name][row] == pytest.approx(value, abs=1e-9, nan_ok=True), (user, name)


@settings(max_examples=60, deadline=None)
@given(found=histories, day=instants)
def test_item_features_are_what_the_words_say(found: list[Line], day: int) -> None:
    index, as_of = index_of(found), day_of(START + timedelta(days=day))
    state, popularity = item_features(index, ITEMS, as_of), item_popularity_features(index, as_of)
    assert (tuple(state), tuple(popularity)) == (ITEM_FEATURES, ITEM_POPULARITY_FEATURES)
    for row, item in enumerate(ITEMS.item_ids):
        own = {d: [line for line in past(found, day, d) if line.item == item] for d in (1, 7, 28, 90)}
        units = {days: sum(line.quantity for line in sold) for days, sold in own.items()}
        paid, lowered = (sum(getattr(line, n) for line in own[28]) for n in ("value", "discount"))
        expected = {
            "units_28d": units[28],
            "buyers_28d": len({line.user for line in own[28]}),
            "item_discount_share": share(lowered, paid + lowered),
            "promoted_share_7d": share(sum(line.discount > 0 for line in own[7]), len(own[7])),
            "units_1d": units[1],
            "units_7d": units[7],
            "units_90d": units[90],
            "buyers_7d": len({line.user for line in own[7]}),
            "popularity_trend": share(units[7] / 7, units[28] / 28),
        }
        for name, value in expected.items():
            assert (state | popularity)[name][row] == pytest.approx(value), (item, name)
    np.testing.assert_array_equal(state["stock"], ITEMS.stock)
    np.testing.assert_array_equal(state["price"], ITEMS.price)


@settings(max_examples=60, deadline=None)
@given(found=histories, day=instants)
def test_pairs_and_market_are_what_the_words_say(found: list[Line], day: int) -> None:
    index, as_of = index_of(found), day_of(START + timedelta(days=day))
    now, window = START + timedelta(days=day), past(found, day, 90)
    for rows, names, others, of in (
        (user_category_rows(index, as_of), USER_CATEGORY_FEATURES, index.categories, CATEGORY),
        (user_brand_rows(index, as_of), USER_BRAND_FEATURES, index.brands, BRAND),
    ):
        found_pairs = [(USERS[u], others[o]) for u, o in zip(rows.user, rows.other, strict=True)]
        assert found_pairs == sorted({(x.user, of[x.item]) for x in window if of.get(x.item)})
        for row, (user, other) in enumerate(found_pairs):
            own = [x for x in window if x.user == user and of.get(x.item) == other]
            total = sum(x.value for x in window if x.user == user)
            values = [rows.columns[name][row] for name in names]
            assert values == pytest.approx(
                [
                    share(sum(x.value for x in own), total),
                    len({x.basket for x in own}),
                    (now - max(x.when for x in own)) / timedelta(days=1),
                ]
            )
    week, month = past(found, day, 7), past(found, day, 28)
    units, of_month = (sum(x.quantity for x in sold) for sold in (week, month))
    market = market_features(index, as_of)
    assert [market[name][0] for name in MARKET_FEATURES] == pytest.approx(
        [units, len({x.user for x in week}), share(units / 7, of_month / 28)]
    )


@settings(max_examples=40, deadline=None)
@given(found=histories, day=instants, parts=st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_sums_of_disjoint_users_add_up(found: list[Line], day: int, parts: list[int]) -> None:
    as_of = day_of(START + timedelta(days=day))
    total, market = item_sums(index_of(found), as_of), market_sums(index_of(found), as_of)
    pieces = []
    for part in range(3):
        users = tuple(user for user, own in zip(USERS, parts, strict=True) if own == part)
        pieces.append(index_of([line for line in found if line.user in users], users))
    for name in ITEM_SUMS:
        np.testing.assert_array_equal(total[name], sum(item_sums(p, as_of)[name] for p in pieces))
    for name, values in market.items():
        np.testing.assert_array_equal(values, sum(market_sums(p, as_of)[name] for p in pieces))


@settings(max_examples=60, deadline=None)
@given(found=histories, other=histories, day=instants)
def test_the_future_changes_nothing(found: list[Line], other: list[Line], day: int) -> None:
    now = START + timedelta(days=day)
    before = [line for line in found if line.when < now]
    one = index_of(before + [line for line in found if line.when >= now])
    two = index_of([line for line in other if line.when >= now] + before)
    as_of = day_of(now)
    makers = (user_features, user_category_features, item_popularity_features, market_features)
    for make in (*makers, lambda events, at: item_features(events, ITEMS, at)):
        first, second = make(one, as_of), make(two, as_of)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_a_stranger_is_refused_by_name() -> None:
    line = Line("u4", "i0", "purchase", 1, 100, 0, 0, 3, "b")
    with pytest.raises(ValueError, match="user_id: 'u4' is not among the 2 users"):
        index_of([line], ("u0", "u1"))
