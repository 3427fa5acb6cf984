"""A challenger is promoted if it is not worse, and only if the rows can show it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.evaluate.prediction import ece, log_loss
from qiance.evaluate.promotion import PromotionRule, Rivals, promotion_test

RULE = PromotionRule(draws=300)


def rows(n: int = 6_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True chances, outcomes drawn from them, and users of four rows each."""
    random = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-random.normal(-1.5, 1.0, n)))
    return p, (random.random(n) < p).astype(float), np.arange(n) // 4


def shifted(p: np.ndarray, by: float) -> np.ndarray:
    """The same order, other odds."""
    odds = p / (1 - p) * np.exp(by)
    return odds / (1 + odds)


def test_the_truth_replaces_a_model_that_is_off_and_not_the_other_way_round() -> None:
    p, y, users = rows()
    better = promotion_test({"click": Rivals(y, shifted(p, 0.8), p)}, users, RULE)
    assert better.passed
    assert better.reason.startswith("not worse: click: log loss")
    assert all(one.high < 0 for one in better.differences)
    worse = promotion_test({"click": Rivals(y, p, shifted(p, 0.8))}, users, RULE)
    assert not worse.passed
    assert [one.not_worse for one in worse.differences] == [False, False]
    assert "may be worse: click: log loss" in worse.reason
    assert "may be worse: click: calibration error" in worse.reason


def test_the_points_are_the_scores_of_the_rows() -> None:
    p, y, users = rows()
    other = shifted(p, 0.3)
    loss, calibration = promotion_test({"click": Rivals(y, p, other)}, users, RULE).differences
    assert loss.champion == pytest.approx(log_loss(y, p))
    assert loss.challenger == pytest.approx(log_loss(y, other))
    assert loss.margin == pytest.approx(0.01 * log_loss(y, p))
    assert calibration.champion == pytest.approx(ece(y, p))
    assert calibration.challenger == pytest.approx(ece(y, other))
    for one in (loss, calibration):
        assert one.low <= one.value <= one.high


def test_a_model_is_not_worse_than_itself() -> None:
    p, y, users = rows(400)
    found = promotion_test({"click": Rivals(y, p, p)}, users, RULE)
    assert found.passed
    assert {(one.low, one.value, one.high) for one in found.differences} == {(0.0, 0.0, 0.0)}


def test_good_ranking_does_not_make_up_for_bad_calibration() -> None:
    """A model that ranks and is off is refused, though its log loss is below that of the base rate."""
    p, y, users = rows()
    found = promotion_test({"click": Rivals(y, np.full_like(p, y.mean()), shifted(p, 0.35))}, users, RULE)
    assert [one.not_worse for one in found.differences] == [True, False]
    assert not found.passed


def test_few_rows_cannot_show_that_it_is_not_worse() -> None:
    """The same two equally good models: told apart from `worse` with many rows, not with few."""

    def test(n: int) -> bool:
        p, y, users = rows(n, seed=3)
        noise = np.random.default_rng(4).normal(0, 0.12, n)
        return promotion_test({"click": Rivals(y, shifted(p, noise), shifted(p, -noise))}, users, RULE).passed

    assert test(40_000)
    assert not test(160)


def test_users_count_once() -> None:
    """Rows repeated within their users show no more than the rows themselves."""
    p, y, users = rows(2_000)
    other = shifted(p, np.random.default_rng(5).normal(0, 0.3, p.size))
    once = promotion_test({"click": Rivals(y, p, other)}, users, RULE).differences[0]
    copies = [np.tile(values, 9) for values in (y, p, other, users)]
    many = promotion_test({"click": Rivals(*copies[:3])}, copies[3], RULE).differences[0]
    assert many.high - many.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_too_few_events_are_said() -> None:
    p, _, users = rows(400)
    y = np.zeros(400)
    y[:7] = 1
    found = promotion_test({"conversion": Rivals(y, p, p)}, users, RULE)
    assert not found.passed
    assert found.reason == (
        "too few to tell: conversion: 7 held-out rows of the rarer outcome, and 20 are needed"
    )


def test_an_unfair_group_blocks_it() -> None:
    p, y, users = rows()
    found = promotion_test({"click": Rivals(y, shifted(p, 1.0), p)}, users, RULE, ["age '65+': too high"])
    assert not found.passed
    assert found.reason == "unfair: age '65+': too high"


@given(st.integers(0, 10_000), st.floats(0.0, 0.2), st.floats(0.0, 0.1))
@settings(deadline=None, max_examples=15)
def test_a_wider_margin_never_refuses_what_a_narrower_one_let_through(
    seed: int, wider: float, narrower: float
) -> None:
    p, y, users = rows(800, seed % 7)
    other = shifted(p, np.random.default_rng(seed).normal(0, 0.1, p.size))
    narrower = min(wider, narrower)
    strict, mild = (
        promotion_test({"click": Rivals(y, p, other)}, users, PromotionRule(margin, margin, draws=100))
        for margin in (narrower, wider)
    )
    assert mild.passed or not strict.passed


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"log_loss_margin": -0.1}, "rule.log_loss_margin: -0.1 is outside"),
        ({"ece_margin": 1.0}, "rule.ece_margin: 1.0 is outside"),
        ({"confidence": 0.3}, "rule.confidence: 0.3 is outside"),
        ({"draws": 5}, "rule: 5 draws"),
    ],
)
def test_rules_that_mean_nothing_are_refused(rule: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromotionRule(**rule)  # type: ignore[arg-type]


def test_bad_arrays_are_named() -> None:
    p, y, users = rows(100)
    with pytest.raises(ValueError, match=r"outcomes.click: p: 1.5 at row 3 is outside"):
        promotion_test({"click": Rivals(y, p, np.where(np.arange(100) == 3, 1.5, p))}, users)
    with pytest.raises(ValueError, match=r"outcomes.click: has 100 rows where units has 50"):
        promotion_test({"click": Rivals(y, p, p)}, users[:50])
    with pytest.raises(ValueError, match="outcomes: nothing to compare"):
        promotion_test({}, users)
