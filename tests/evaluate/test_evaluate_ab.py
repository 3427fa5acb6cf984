"""A/B comparison: Welch against scipy, CUPED, clusters, sample ratio, coverage, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qiance.evaluate.ab import compare, mean_interval, sample_ratio


def draw(seed, n=400, effect=1.0):
    rng = np.random.default_rng(seed)
    before = rng.gamma(2, 10, 2 * n)
    after = 0.8 * before + rng.normal(20, 5, 2 * n)
    after[:n] += effect
    return after[:n], after[n:], before[:n], before[n:]


def test_welch_agrees_with_scipy():
    rng = np.random.default_rng(0)
    treated, control = rng.normal(5, 3, 80), rng.normal(4, 1, 200)
    found = compare(treated, control, 0.9)
    expected = stats.ttest_ind(treated, control, equal_var=False)
    interval = expected.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.effect == pytest.approx(treated.mean() - control.mean())
    assert (found.n_treated, found.n_control, found.units_treated) == (80, 200, 80)
    assert found.relative.value == pytest.approx(treated.mean() / control.mean() - 1)
    assert found.relative.low < found.relative.value < found.relative.high
    assert found.variance_reduction is None


def test_cuped_narrows_the_interval_and_reports_by_how_much():
    treated, control, before_t, before_c = draw(1)
    plain = compare(treated, control)
    adjusted = compare(treated, control, covariate_treated=before_t, covariate_control=before_c)
    narrower = (adjusted.high - adjusted.low) / (plain.high - plain.low)
    assert adjusted.variance_reduction == pytest.approx(1 - narrower**2, abs=0.01)
    assert 0.75 < adjusted.variance_reduction < 0.92  # corr² = 0.8²·200 / (0.8²·200 + 25) = 0.84
    noise = np.random.default_rng(2).normal(size=(2, 400))
    useless = compare(treated, control, covariate_treated=noise[0], covariate_control=noise[1])
    assert abs(useless.variance_reduction) < 0.05
    constant = compare(treated, control, covariate_treated=np.ones(400), covariate_control=np.ones(400))
    assert constant.variance_reduction == 0
    assert constant.effect == pytest.approx(plain.effect)


@pytest.mark.parametrize("cuped", [False, True])
def test_intervals_cover_the_effect(cuped):
    covered = relative = 0
    for seed in range(300):
        treated, control, before_t, before_c = draw(seed, n=60, effect=2.0)
        covariates = {"covariate_treated": before_t, "covariate_control": before_c} if cuped else {}
        found = compare(treated, control, **covariates)
        covered += found.low <= 2.0 <= found.high
        relative += found.relative.low <= 2.0 / 36.0 <= found.relative.high
    assert 272 <= covered <= 297
    assert 272 <= relative <= 297


def test_repeated_users_do_not_count_twice():
    treated, control, *_ = draw(3, n=100)
    once = compare(treated, control)
    ids = np.repeat([f"p{i}" for i in range(200)], 4)
    many = compare(
        np.repeat(treated, 4), np.repeat(control, 4), cluster_treated=ids[:400], cluster_control=ids[400:]
    )
    assert (many.low, many.high) == pytest.approx((once.low, once.high))
    assert (many.units_treated, many.n_treated) == (100, 400)


def test_users_in_both_groups_are_paired():
    rng = np.random.default_rng(4)
    user = rng.normal(50, 20, 150)
    treated, control = user + 1 + rng.normal(0, 2, 150), user + rng.normal(0, 2, 150)
    ids = np.arange(150)
    found = compare(treated, control, cluster_treated=ids, cluster_control=ids)
    paired = stats.ttest_rel(treated, control).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high))
    assert found.high - found.low < 0.2 * (compare(treated, control).high - compare(treated, control).low)
    assert found.relative.high - found.relative.low == pytest.approx(
        (found.high - found.low) / control.mean(), rel=0.05
    )


def test_no_relative_effect_over_a_control_that_may_be_zero():
    assert compare([1.0, 2.0, 3.0], [-1.0, 0.1, 1.0]).relative is None


def test_groups_without_spread():
    assert compare([2.0, 2.0], [2.0, 2.0]).p_value == 1.0
    found = compare([3.0, 3.0], [2.0, 2.0])
    assert (found.effect, found.low, found.high, found.p_value) == (1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("treated", "control", "share", "ok"),
    [
        (5000, 5050, 0.5, True),
        (5300, 4700, 0.5, False),
        (90_000, 10_000, 0.9, True),
        (90_500, 9_500, 0.9, False),
        (9, 1, 0.5, True),
        (0, 12, 0.5, False),
        (0, 5, 0.1, True),
    ],
)
def test_sample_ratio(treated, control, share, ok):
    found = sample_ratio(treated, control, share)
    assert found.ok is ok
    assert found.ok == (found.p_value >= 0.001)
    assert found.observed_share == pytest.approx(treated / (treated + control))


def test_mean_interval_is_the_t_interval_and_clusters_widen_it():
    values = np.random.default_rng(5).gamma(1, 10, 50)
    found = mean_interval(values, 0.9)
    low, high = stats.t.interval(0.9, 49, values.mean(), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    thrice = mean_interval(np.repeat(values, 3), 0.9, cluster=np.repeat(np.arange(50), 3))
    assert (thrice.low, thrice.high) == pytest.approx((low, high))


A, B = [1.0, 2.0, 3.0], [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare([1.0, np.nan], B), "treated: row 1 is nan; must be finite"),
        (lambda: compare([], B), "treated: is empty"),
        (lambda: compare(A, [1.0]), "control: has 1 independent unit; at least 2"),
        (lambda: compare(A, B, 95), r"confidence: 95 is outside \(0, 1\)"),
        (lambda: compare(A, B, covariate_treated=A), "give covariate_treated and covariate_control"),
        (
            lambda: compare(A, B, covariate_treated=A, covariate_control=[1.0]),
            "covariate_control: has 1 rows; must have 3",
        ),
        (lambda: compare(A, B, cluster_treated=[1, 2, 3]), "give cluster_treated and cluster_control"),
        (
            lambda: compare(A, B, cluster_treated=[1, 2], cluster_control=[1, 2, 3]),
            "cluster of treated: has shape",
        ),
        (
            lambda: compare(A, B, cluster_treated=[1, 1, 1], cluster_control=[1, 2, 3]),
            "treated: has 1 independent unit",
        ),
        (lambda: sample_ratio(0, 0), "n_treated: no units"),
        (lambda: sample_ratio(-1, 5), "n_treated: -1 is not a count"),
        (lambda: sample_ratio(1, 5, 1.0), "expected_share: 1.0 is outside"),
        (lambda: mean_interval([np.inf, 1.0]), "values: row 0 is inf"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
