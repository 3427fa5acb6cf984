"""Margin floors: no admissible action sells below its floor, in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.decide import discounted_price, margin_floor_mask

PRICES = st.integers(1, 10**12)
RATES = st.one_of(
    st.floats(0, 1, exclude_max=True), st.integers(0, 99).map(lambda p: p / 100), st.just(0.9999999)
)


@settings(max_examples=500, deadline=None)
@given(price=PRICES, goods=st.one_of(PRICES, st.integers(0, 100)), depth=RATES, floor=RATES)
def test_no_admissible_action_goes_below_the_floor(price, goods, depth, floor):
    paid = int(discounted_price(price, depth))
    exact = price * (1 - Fraction(str(depth)))  # the depth as it was written
    assert paid <= exact
    if margin_floor_mask(price, goods, depth, floor):
        least = Fraction(str(floor))
        assert paid >= 1
        assert paid - goods >= least * paid
        assert exact - goods >= least * exact


@settings(max_examples=200, deadline=None)
@given(
    price=st.integers(100, 10**6),
    goods=st.integers(0, 10**6),
    percent=st.integers(0, 99),
    floor=st.integers(0, 99),
)
def test_nothing_that_keeps_the_floor_is_refused(price, goods, percent, floor):
    paid = price * (100 - percent) // 100
    keeps = paid >= 1 and (paid - goods) * 100 >= floor * paid
    assert bool(margin_floor_mask(price, goods, percent / 100, floor / 100)) == keeps


def test_exactly_at_the_floor_is_admissible_and_one_unit_below_is_not():
    # 1000 at 20 % off is 800; 5 % of it is 40, so the goods may cost 760.
    mask = margin_floor_mask(np.array([1000, 1000]), np.array([760, 761]), 0.2, 0.05)
    np.testing.assert_array_equal(mask, [True, False])


def test_arguments_broadcast_over_users_and_actions():
    mask = margin_floor_mask(np.full((3, 1), 500), np.array([[200], [300], [499]]), np.array([0.0, 0.3]), 0.1)
    np.testing.assert_array_equal(mask, [[True, True], [True, True], [False, False]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9.99, 5, 0.1, 0.05), "price: dtype is float64; must be integer minor units"),
        ((0, 5, 0.1, 0.05), "price: 0 is outside"),
        ((10**13, 5, 0.1, 0.05), "price: 10000000000000 is outside"),
        ((100, -5, 0.1, 0.05), "unit_cost: -5 is outside"),
        ((100, 5, 1.0, 0.05), r"depth: 1.0 is outside \[0, 1\)"),
        ((100, 5, np.nan, 0.05), "depth: nan is outside"),
        ((100, 5, 0.1, -0.05), "min_margin: -0.05 is outside"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        margin_floor_mask(*arguments)
