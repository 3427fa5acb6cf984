"""Floors in integers, and the choice of depth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.domain import Brief, Item, Money, Objective, OfferKind
from qiance.strategy.promotion import (
    admissible_depths,
    admits,
    admitted_offer,
    choose_depth,
)

BRIEF = Brief(
    brief_id="b1",
    objective=Objective.MARGIN,
    budget=Money(100_000),
    starts=datetime(2026, 3, 2, 9, tzinfo=UTC),  # a Monday
    ends=datetime(2026, 3, 30, tzinfo=UTC),
)


def item(price: int = 1000, unit_cost: int = 600) -> Item:
    return Item("i1", "Coffee", "COFFEE", "GROCERY", "Own", price, unit_cost)


def test_worked_example() -> None:
    # 30 % off 999 leaves 699.3, sold at 699; 5 % of that is 34.95, so 35 must remain.
    assert admits(item(999, 664), 0.3, max_depth=0.3, min_margin=0.05)
    assert not admits(item(999, 665), 0.3, max_depth=0.3, min_margin=0.05)


def test_a_depth_past_the_limit_by_any_amount_is_past_it() -> None:
    assert admits(item(), 0.3, max_depth=0.3, min_margin=0.0)
    assert not admits(item(), 0.1 + 0.2, max_depth=0.3, min_margin=0.0)


@given(
    price=st.integers(1, 10**7),
    cost=st.integers(0, 10**7),
    depth=st.floats(0, 0.999),
    max_depth=st.floats(0, 1, exclude_max=True),
    min_margin=st.floats(0, 1, exclude_max=True),
)
def test_what_is_admitted_keeps_both_limits(
    price: int, cost: int, depth: float, max_depth: float, min_margin: float
) -> None:
    if not admits(item(price, cost), depth, max_depth=max_depth, min_margin=min_margin):
        return
    assert depth <= max_depth
    exact = Decimal(price) * (1 - Decimal(str(depth)))
    assert exact - cost >= exact * Decimal(str(min_margin))


@given(price=st.integers(1, 10**6), cost=st.integers(0, 10**6), depths=st.lists(st.floats(0, 0.99)))
def test_a_shallower_depth_is_admitted_wherever_a_deeper_one_is(
    price: int, cost: int, depths: list[float]
) -> None:
    kept = admissible_depths(item(price, cost), depths, BRIEF)
    deepest = max(kept, default=-1.0)
    assert kept == tuple(sorted({depth for depth in depths if depth <= deepest}))


def test_an_offer_past_a_floor_cannot_be_made() -> None:
    assert admitted_offer(item(), 0.0, BRIEF).kind is OfferKind.NONE
    assert admitted_offer(item(), 0.35, BRIEF).depth == 0.35
    with pytest.raises(ValueError, match=r"0\.37 off 'i1' passes .* use a smaller depth"):
        admitted_offer(item(), 0.37, BRIEF)
    with pytest.raises(ValueError, match=r"brief\.max_depth 0\.2"):
        admitted_offer(item(), 0.3, replace(BRIEF, max_depth=0.2))


def test_depth_of_highest_uplift_the_shallowest_of_equals() -> None:
    choice = choose_depth({0.0: 9.0, 0.1: 4.0, 0.2: 7.0, 0.3: 7.0})
    assert choice is not None
    assert (choice.depth, choice.uplift, choice.full_price) == (0.2, 7.0, 9.0)
    assert choice.others == ((0.1, 4.0), (0.3, 7.0))
    assert choose_depth({0.0: 9.0}) is None
