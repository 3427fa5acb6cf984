"""User rows as bytes: what is scored again is what was read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.features.columns import ABSENT_PAIR, USER_COLUMNS
from qiance.features.transforms import USER_CATEGORY_FEATURES
from qiance.features.user_row import UserRows, pack_all, unpack


def rows(users: int, categories: int, seed: int, bought: float = 0.3) -> UserRows:
    """Random users: gaps in their columns, and categories that most have not bought."""
    random = np.random.default_rng(seed)
    columns = {name: random.normal(size=users) * 1e3 for name in USER_COLUMNS}
    columns["recency_days"][random.random(users) < 0.5] = np.nan
    known = random.random((users, categories)) < bought
    pairs = {
        name: np.where(known, random.gamma(1.0, 9.0, known.shape), np.nan) for name in USER_CATEGORY_FEATURES
    }
    return UserRows(columns, pairs, random.integers(0, 9, users).astype(np.float64))


@given(st.integers(0, 5), st.integers(1, 12), st.integers(0, 999), st.sampled_from([0.0, 0.3, 1.0]))
@settings(deadline=None, max_examples=60)
def test_rows_come_back_exactly(users: int, categories: int, seed: int, bought: float) -> None:
    given = rows(users, categories, seed, bought)
    packed = pack_all(given)
    found = unpack(packed)
    assert len(packed) == len(found) == users
    np.testing.assert_array_equal(found.contacts_7d, given.contacts_7d)
    for name in USER_COLUMNS:
        np.testing.assert_array_equal(found.columns[name], given.columns[name])
    if users:
        for name in USER_CATEGORY_FEATURES:
            np.testing.assert_array_equal(found.user_category[name], given.user_category[name])


def test_a_pair_without_a_purchase_takes_no_bytes() -> None:
    given = rows(2, 10, seed=1, bought=0.0)
    assert len({len(row) for row in pack_all(given)}) == 1
    size = len(pack_all(given)[0])
    for name in USER_CATEGORY_FEATURES:  # as snapshots say it, and as `assemble` fills it
        given.user_category[name][0, 3] = 0.0 if name != "category_recency_days" else np.nan
        given.user_category[name][0, 4] = ABSENT_PAIR[name]
    given.user_category["category_baskets_90d"][1, 9] = 2.0
    first, second = pack_all(given)
    assert len(first) == size < len(second)
    assert unpack([second]).user_category["category_baskets_90d"][0, 9] == 2.0
    assert np.isnan(unpack([first]).user_category["category_share"]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: b"\0\0\0\0" + row[4:], "row 0 has other features"),
        (lambda row: row[:-1], "which no row has"),
        (lambda row: row[:20], "which no row has"),
        (lambda row: row[:4] + b"\1\0\0\0" + row[8:], "names a category beyond its own number"),
    ],
)
def test_damaged_rows_are_refused(change, message: str) -> None:
    row = pack_all(rows(1, 8, seed=2, bought=1.0))[0]
    with pytest.raises(ValueError, match=message):
        unpack([change(row)])


def test_rows_of_different_shops_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"rows of \[3, 4\] categories"):
        unpack([*pack_all(rows(1, 3, seed=0)), *pack_all(rows(1, 4, seed=0))])
