"""Audiences: rules, named segments, rounded thresholds, and rules found from uplift."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.domain import Audience, UserTable
from qiance.features.transforms import USER_FEATURES
from qiance.strategy.audience import (
    audience_mask,
    intersect,
    merge_conditions,
    named_segments,
    resolve_audience,
    round_threshold,
    take_users,
    uplift_audiences,
)
from qiance.strategy.prompts import is_plain
from qiance.strategy.segments import reader_words, segment_words


def table(**columns: list[float] | np.ndarray) -> UserTable:
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    size = len(next(iter(arrays.values())))
    return UserTable(tuple(f"u{n}" for n in range(size)), arrays)


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("<", [True, False, False, False]),
        ("<=", [True, True, False, False]),
        (">", [False, False, True, False]),
        (">=", [False, True, True, False]),
        ("==", [False, True, False, False]),
    ],
)
def test_unknown_values_match_no_operator(symbol: str, expected: list[bool]) -> None:
    users = table(recency_days=[1.0, 2.0, 3.0, np.nan])
    assert audience_mask(Audience("a", (("recency_days", symbol, 2.0),)), users).tolist() == expected


def test_every_condition_must_hold_and_none_means_everybody() -> None:
    users = table(a=[1, 2, 3], b=[3, 2, 1])
    both = Audience("x", (("a", ">=", 2.0), ("b", ">=", 2.0)))
    assert audience_mask(both, users).tolist() == [False, True, False]
    assert audience_mask(Audience("everybody"), users).all()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (("loyalty", ">", 1.0), "feature 'loyalty' is not in the users table; has a"),
        (("a", "!=", 1.0), "operator '!=' is not one of"),
    ],
)
def test_bad_conditions_are_named(condition: tuple[str, str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audience_mask(Audience("x", (condition,)), table(a=[1, 2]))


def test_named_segments_use_the_columns_there_are() -> None:
    rng = np.random.default_rng(0)
    users = table(recency_days=rng.integers(1, 60, 400), shoe_size=rng.normal(40, 2, 400))
    names = {segment.name for segment in named_segments(users)}
    assert names == {"recent-shoppers", "lapsed-shoppers"}
    lapsed = resolve_audience("lapsed-shoppers", users)
    assert 0.15 < audience_mask(lapsed, users).mean() < 0.35
    assert not named_segments(table(recency_days=[np.nan, np.nan]))
    assert not named_segments(table(recency_days=[5.0, 5.0]))


def test_a_rule_is_read_back_from_its_description() -> None:
    users = table(recency_days=[1, 20, 40], baskets_90d=[9, 3, 1])
    rule = resolve_audience("recency_days > 14 and baskets_90d <= 2.5", users)
    assert rule.conditions == (("recency_days", ">", 14.0), ("baskets_90d", "<=", 2.5))
    assert resolve_audience(rule.describe(), users).conditions == rule.conditions
    assert resolve_audience(None, users).conditions == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vip", "'vip' is no segment of this users table; use one of everybody"),
        ("recency_days > 1000", r"matches none of the 3 users"),
        ("recency_days > 1.2.3", "is no segment"),
        ("shoe_size > 1", "feature 'shoe_size'"),
        ("", "'' is no segment"),
    ],
)
def test_unknown_or_empty_audience_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_audience(name, table(recency_days=[1, 20, 40]))


def test_merging_keeps_the_tightest_bound_and_the_same_users() -> None:
    users = table(a=np.arange(20.0))
    loose = [("a", ">", 3.0), ("a", ">", 7.0), ("a", "<=", 15.0), ("a", "<=", 12.0)]
    merged = merge_conditions(loose)
    assert merged == (("a", ">", 7.0), ("a", "<=", 12.0))
    assert np.array_equal(
        audience_mask(Audience("", merged), users), audience_mask(Audience("", tuple(loose)), users)
    )
    base, extra = Audience("base", (("a", ">", 3.0),)), Audience("extra", (("a", "<=", 9.0),))
    assert audience_mask(intersect(base, extra), users).sum() == 6
    assert intersect(base, Audience("everybody")) is base


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=200),
    st.floats(-1e6, 1e6),
)
@settings(max_examples=200, deadline=None)
def test_rounding_moves_at_most_one_per_cent(values: list[float], threshold: float) -> None:
    column = np.array(values)
    short = round_threshold(threshold, column)
    assert abs(np.mean(column <= short) - np.mean(column <= threshold)) <= 0.01


def test_rounded_thresholds_read_well() -> None:
    counts = np.repeat(np.arange(20.0), 10)
    assert round_threshold(6.5, counts) == 6.0
    cents = np.random.default_rng(0).uniform(0, 50_000, 5_000)
    assert round_threshold(12_345.678, cents) == pytest.approx(12_000, abs=500)
    assert len(f"{round_threshold(12_345.678, cents):g}") <= 5


def planted(size: int = 600, missing: float = 0.0) -> tuple[UserTable, np.ndarray]:
    rng = np.random.default_rng(1)
    recency = rng.integers(1, 90, size).astype(float)
    share = rng.uniform(0, 1, size)
    users = table(recency_days=recency, discount_share=share, noise=rng.normal(size=size))
    inside = (recency > 45) & (share > 0.5)
    uplift = np.where(inside, 80.0, -5.0) + rng.normal(0, 3, size)
    if missing:
        users.columns["recency_days"][rng.random(size) < missing] = np.nan
    return users, uplift


def test_the_tree_finds_the_planted_segment() -> None:
    users, uplift = planted()
    best = uplift_audiences(users, uplift)[0]
    truth = (users.columns["recency_days"] > 45) & (users.columns["discount_share"] > 0.5)
    found = audience_mask(best.audience, users)
    assert (found & truth).sum() / (found | truth).sum() > 0.93
    assert {feature for feature, _, _ in best.audience.conditions} == {"recency_days", "discount_share"}
    assert best.audience.name == "lapsed shoppers, deal seekers" or set(segment_words(best.audience)) == {
        "deal seekers",
        "lapsed shoppers",
    }
    assert best.uplift == pytest.approx(float(uplift[found].mean()))
    assert best.share == pytest.approx(float(found.mean()))


def test_the_tree_copes_with_unknown_values_and_useless_columns() -> None:
    users, uplift = planted(missing=0.2)
    columns = dict(users.columns) | {
        "all_nan": np.full(600, np.nan),
        "constant": np.ones(600),
        "endless": np.where(np.arange(600) % 2, np.inf, 1e300),
    }
    leaves = uplift_audiences(UserTable(users.user_ids, columns), uplift)
    assert leaves[0].uplift > 60
    used = {feature for leaf in leaves for feature, _, _ in leaf.audience.conditions}
    assert not used & {"all_nan", "constant", "endless"}


def test_no_rule_where_nothing_differs() -> None:
    users, uplift = planted()
    assert uplift_audiences(users, np.ones(600)) == ()
    assert uplift_audiences(UserTable(users.user_ids, {}), uplift) == ()
    assert uplift_audiences(take_users(users, np.arange(2)), uplift[:2]) == ()


@pytest.mark.parametrize("symbol", [">", "<"])
@pytest.mark.parametrize("feature", USER_FEATURES)
def test_readers_are_named_in_their_language(feature: str, symbol: str) -> None:
    audience = Audience("some", ((feature, symbol, 1.0),))
    (english,), (chinese,) = segment_words(audience), segment_words(audience, "zh")
    assert re.fullmatch("[a-z -]+", english)
    assert re.fullmatch("[\u4e00-\u9fff]+", chinese)
    for language, letters in (("en", "[a-z -]+"), ("zh", "[\u4e00-\u9fff]+")):
        readers = reader_words(audience, language)
        assert not readers or (re.fullmatch(letters, readers) and is_plain(readers)), (
            "or no prompt names them"
        )


def test_readers_are_those_of_the_first_rule_that_says_something() -> None:
    audience = Audience(
        "some", (("unheard_of", ">", 1.0), ("avg_basket", ">", 9.0), ("recency_days", ">", 9.0))
    )
    assert reader_words(audience) == "families who fill the pantry"
    assert (
        reader_words(Audience("x", (("avg_basket", "==", 9.0),))) == reader_words(Audience("everybody")) == ""
    )
