"""Intervals for every sample size: bounds against known means, coverage, and looking at every moment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qiance.evaluate.ope import BanditLog, clears_gate, difference, estimate
from qiance.evaluate.ope_estimators import ESTIMATORS
from qiance.evaluate.ope_intervals import bernstein_bound, betting_bound, drifting_bound
from qiance.evaluate.ope_sequence import difference_sequence


def heavy(n, rng, rate=0.3, weight=10.0):
    """(log, policy): a policy always at action 0, which is logged once in `weight`."""
    action = (rng.random(n) > 1 / weight).astype(int)
    reward = (rng.random(n) < rate).astype(float)
    propensity = np.where(action == 0, 1 / weight, 1 - 1 / weight)
    return BanditLog(action, reward, propensity), np.tile([1.0, 0.0], (n, 1))


@pytest.mark.parametrize("interval", ["bernstein", "anytime"])
def test_they_cover_more_than_they_promise_at_any_size(interval):
    for n in (20, 200):
        rng, held = np.random.default_rng(n), 0
        for _ in range(40):
            log, policy = heavy(n, rng)
            try:
                found = estimate(log, policy, estimator="ipw", interval=interval, confidence=0.9)
            except ValueError:
                held += 1  # nothing was logged that the policy does
                continue
            assert 0 <= found.low <= found.value <= max(found.high, found.value)
            held += found.low <= 0.3 <= found.high
        assert held >= 36


def test_one_may_look_after_every_row():
    """The anytime interval holds at all sizes at once; the normal one breaks for many who look often."""
    rng, missed = np.random.default_rng(5), {"anytime": 0, "normal": 0}
    for _ in range(25):
        log, policy = heavy(600, rng)
        for interval in missed:
            for n in range(60, 601, 60):
                part = BanditLog(log.action[:n], log.reward[:n], log.propensity[:n])
                found = estimate(part, policy[:n], estimator="ipw", interval=interval, confidence=0.9)
                if not found.low <= 0.3 <= found.high:
                    missed[interval] += 1
                    break
    assert missed["anytime"] <= 4 < missed["normal"] - 2


def test_anytime_is_narrower_than_bernstein_and_wider_than_normal():
    log, policy = heavy(5000, np.random.default_rng(1))
    width = {}
    for interval in ("normal", "anytime", "bernstein", "bootstrap", "default"):
        found = estimate(log, policy, estimator="ipw", interval=interval)
        assert found.interval == interval
        width[interval] = found.high - found.low
    assert width["normal"] < width["anytime"] < width["bernstein"]
    assert width["bootstrap"] == pytest.approx(width["normal"], rel=0.15)


def test_money_is_scaled_by_its_range():
    log, policy = heavy(1000, np.random.default_rng(2))
    money = BanditLog(log.action, log.reward * 500 - 100, log.propensity)
    for interval in ("bernstein", "anytime"):
        plain = estimate(log, policy, estimator="snipw", interval=interval)
        found = estimate(money, policy, estimator="snipw", interval=interval, reward_range=(-100, 400))
        assert (found.low, found.high) == pytest.approx((plain.low * 500 - 100, plain.high * 500 - 100))


@pytest.mark.parametrize("interval", ["bernstein", "anytime"])
@pytest.mark.parametrize("name", ["auto", *ESTIMATORS])
def test_they_are_those_of_ipw_whatever_the_estimator_and_say_so(name, interval):
    log, policy = heavy(400, np.random.default_rng(3))
    model = np.full((400, 2), 0.9)
    plain = estimate(log, policy, estimator="ipw", interval=interval)
    found = estimate(log, policy, model, name, interval=interval)
    assert plain.centre == ""
    assert found.centre == ("" if name == "ipw" else "ipw")
    assert found.std_error == plain.std_error
    assert (found.low, found.high) == (min(plain.low, found.value), max(plain.high, found.value))
    told = [text for text in found.diagnostics.warnings if "interval is that of ipw" in text]
    assert len(told) == (name == "dm")


@pytest.mark.parametrize("name", ["auto", "ipw", "snipw", "sndr", "dm"])
def test_a_difference_has_them_too(name):
    log, policy = heavy(2000, np.random.default_rng(4))
    base, model = policy[:, ::-1], np.full((2000, 2), 0.4)
    sequence = difference_sequence(log, policy, base, np.array([2000]))
    found = difference(log, policy, base, model, name, interval="anytime")
    assert found.low == pytest.approx(min(sequence.low[0], found.value))
    assert found.high == pytest.approx(max(sequence.high[0], found.value))
    assert found.centre == ("" if name == "ipw" else "ipw")
    money = BanditLog(log.action, 500 * log.reward - 100, log.propensity)
    for interval in ("anytime", "bernstein"):
        plain = difference(log, policy, base, model, name, interval=interval)
        span = {"reward_range": (-100, 400)}
        scaled = difference(money, policy, base, 500 * model - 100, name, interval=interval, **span)
        assert (scaled.low, scaled.high) == pytest.approx((500 * plain.low, 500 * plain.high))


@pytest.mark.parametrize("interval", ["bernstein", "anytime"])
def test_those_of_a_difference_cover_at_any_size(interval):
    """Action 0 brings 0.3, action 1 brings 0.6; the baseline takes the second."""
    for n in (20, 300):
        rng, held = np.random.default_rng(n), 0
        for _ in range(40):
            log, policy = heavy(n, rng, weight=3.0)
            reward = (rng.random(n) < np.where(log.action == 0, 0.3, 0.6)).astype(float)
            log = BanditLog(log.action, reward, log.propensity)
            found = difference(
                log, policy, policy[:, ::-1], estimator="ipw", interval=interval, confidence=0.9
            )
            assert -1 <= found.low <= found.high <= max(1, found.value)
            held += found.low <= -0.3 <= found.high
        assert held >= 36


def test_who_looks_until_the_gate_opens_does_not_open_it_by_looking():
    """Two policies of the same value: the usual interval opens sooner or later, anytime hardly ever."""
    rng, opened = np.random.default_rng(6), {"anytime": 0, "default": 0}
    for _ in range(25):
        log, policy = heavy(600, rng, weight=2.0)
        for interval in opened:
            for n in range(60, 601, 30):
                part = BanditLog(log.action[:n], log.reward[:n], log.propensity[:n])
                base = policy[:n, ::-1]
                gain = difference(part, policy[:n], base, estimator="ipw", interval=interval, confidence=0.9)
                if clears_gate(gain).passed:
                    opened[interval] += 1
                    break
    assert opened["anytime"] <= 2 < opened["default"] - 1


@example(seed=608573, n=182)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 200))
def test_bounds_are_below_the_mean_and_scale(seed, n):
    values = np.random.default_rng(seed).pareto(2.0, n)
    # What betting shows after any beginning holds to the end, where the mean may be lower by chance.
    means = np.cumsum(values) / np.arange(1, n + 1)
    most = {bernstein_bound: means[-1], betting_bound: means.max(), drifting_bound: means[-1]}
    for bound in (bernstein_bound, betting_bound, drifting_bound):
        found = bound(values, 0.05)
        assert found <= most[bound]
        assert found >= 0 or bound is drifting_bound
        assert bound(values, 0.01) <= found + 1e-9
    assert betting_bound(values * 3, 0.05) == pytest.approx(
        betting_bound(values, 0.05) * 3, rel=1e-4, abs=1e-6
    )


def test_nothing_earned_bounds_nothing_from_below():
    assert betting_bound(np.zeros(50), 0.05) == 0.0
    assert bernstein_bound(np.zeros(50), 0.05) == 0.0
    assert bernstein_bound(np.ones(1), 0.05) == 0.0
