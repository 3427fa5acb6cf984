"""Uplift curves agree with their definitions, RATE covers, and targeting is worth what the truth says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.uplift import (
    cumulative_gain,
    effect_scores,
    qini_intervals,
    qini_radcliffe,
    rate,
    resampled_interval,
    targeting_policy,
    targeting_value,
)

rows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 6)), min_size=4, max_size=40
).filter(lambda found: len({t for _, t, _ in found}) == 2)


def planted(n: int, seed: int = 0, share: float = 0.5) -> tuple[np.ndarray, ...]:
    """Outcome, treatment, propensity, and the true effect 0.3·x for x in [0, 1]."""
    random = np.random.default_rng(seed)
    x = random.random(n)
    t = (random.random(n) < share).astype(int)
    y = (random.random(n) < 0.2 + 0.3 * x * t).astype(float)
    return y, t, np.full(n, share), 0.3 * x


@given(rows)
@settings(deadline=None)
def test_both_curves_are_their_formulas(found: list[tuple[int, int, int]]) -> None:
    y, t, s = (np.array(column, dtype=float) for column in zip(*found, strict=True))
    a, b = qini_radcliffe(y, t, s), cumulative_gain(y, t, s)
    for place, threshold in enumerate(sorted(set(s), reverse=True), start=1):
        ones, zeros = (s >= threshold) & (t == 1), (s >= threshold) & (t == 0)
        scaled = y[zeros].sum() * ones.sum() / zeros.sum() if zeros.any() else 0.0
        assert a.gain[place] == pytest.approx((y[ones].sum() - scaled) / t.sum())
        means = [y[group].mean() if group.any() else 0.0 for group in (ones, zeros)]
        assert b.gain[place] == pytest.approx((means[0] - means[1]) * np.mean(s >= threshold))
    assert (a.share[0], a.gain[0], a.share[-1]) == (0.0, 0.0, 1.0)
    order = np.random.default_rng(0).permutation(len(y))
    assert qini_radcliffe(y[order], t[order], s[order]).area == pytest.approx(a.area)


def test_the_better_score_has_the_larger_area_and_none_is_zero() -> None:
    y, t, _, effect = planted(40_000)
    noise = np.random.default_rng(1).normal(size=y.size)
    for curve in (qini_radcliffe, cumulative_gain):
        good, dull, bad = (curve(y, t, s).above_line for s in (effect, effect + 0.1 * noise, -effect))
        assert good > dull > 0 > bad
        assert abs(curve(y, t, noise).above_line) < 0.006
        assert curve(y, t, np.zeros(y.size)).above_line == pytest.approx(0.0, abs=1e-12)
        # Of a uniform effect on [0, 0.3] the gain at share q is 0.3 (q − q²/2): 0.025 lies above the line.
        assert good == pytest.approx(0.025, abs=0.006)


def test_rate_is_right_covers_and_knows_noise() -> None:
    inside = []
    for seed in range(40):
        y, t, e, effect = planted(1_500, seed, share=0.3)
        found = rate(effect, effect_scores(y, t, e), draws=60, seed=seed)
        # E[effect | best share q] = 0.3 (1 − q/2), so TOC(q) = 0.15 (1 − q) and its integral is 0.075.
        inside.append(found.low <= 0.075 <= found.high)
    assert np.mean(inside) >= 0.85
    y, t, e, effect = planted(20_000)
    gamma = effect_scores(y, t, e)
    assert rate(effect, gamma, "qini").value == pytest.approx(0.025, abs=0.008)
    noise = rate(np.random.default_rng(2).random(y.size), gamma)
    assert noise.low < 0 < noise.high
    assert rate(np.zeros(y.size), gamma).value == pytest.approx(0.0, abs=1e-12)


def test_qini_intervals_cover_and_are_no_wider_than_chance() -> None:
    """Coverage of 95 % intervals, and half-sampled errors beside how far the figures really move."""
    # Of an effect 0.3·x, x uniform: E[effect | best share q] = 0.3 (1 − q/2), and AUUC is ∫ q of it.
    truth = {"qini_radcliffe": 0.025, "cumulative_gain": 0.025, "auuc": 0.1}
    for share in (0.5, 0.2):
        found = []
        for seed in range(150):
            y, t, _, effect = planted(1_000, seed, share)
            found.append(qini_intervals(y, t, effect, draws=50, seed=seed))
        for name, true in truth.items():
            inside = np.mean([one[name].low <= true <= one[name].high for one in found])
            assert 0.9 <= inside <= 0.985
            errors = [(one[name].high - one[name].low) / (2 * 1.96) for one in found]
            assert np.mean(errors) == pytest.approx(np.std([one[name].value for one in found]), rel=0.15)
    assert found[0] == qini_intervals(
        *planted(1_000, 0, 0.2)[:2], planted(1_000, 0, 0.2)[3], draws=50, seed=0
    )


def test_qini_intervals_are_those_of_the_curves_and_count_users_once() -> None:
    y, t, _, effect = planted(800)
    found = qini_intervals(y, t, effect)
    gain = cumulative_gain(y, t, effect)
    assert found["qini_radcliffe"].value == qini_radcliffe(y, t, effect).above_line
    assert (found["cumulative_gain"].value, found["auuc"].value) == (gain.above_line, gain.area)
    four = [np.repeat(values, 4) for values in (y, t, effect)]
    apart, whole = qini_intervals(*four), qini_intervals(*four, cluster=np.repeat(np.arange(800), 4))
    for name, one in found.items():
        width = one.high - one.low
        assert whole[name].high - whole[name].low == pytest.approx(width, rel=0.25)
        assert apart[name].high - apart[name].low < 0.65 * width
    two = qini_intervals(y, t, effect, cluster=t)
    assert np.isnan([two["auuc"].low, two["auuc"].high]).all(), "two units: no half has both groups"
    assert np.isfinite(two["auuc"].value)


def test_a_model_of_the_outcome_narrows_the_scores_and_moves_nothing() -> None:
    y, t, e, effect = planted(40_000, share=0.3)
    plain, modelled = (
        effect_scores(y, t, e),
        effect_scores(y, t, e, np.stack([0.2 + 0 * effect, 0.2 + effect], 1)),
    )
    assert plain.mean() == pytest.approx(0.15, abs=0.012)
    assert modelled.mean() == pytest.approx(0.15, abs=0.012)
    assert modelled.std() < plain.std()
    wrong = effect_scores(y, t, e, np.full((y.size, 2), 0.9))
    assert wrong.mean() == pytest.approx(0.15, abs=0.03)


def test_rows_of_one_user_are_one_unit() -> None:
    y, t, e, effect = planted(800)
    four = [np.repeat(values, 4) for values in (y, t, e, effect)]
    apart = rate(four[3], effect_scores(*four[:3]))
    whole = rate(four[3], effect_scores(*four[:3]), cluster=np.repeat(np.arange(800), 4))
    assert whole.std_error > 1.6 * apart.std_error
    assert whole.std_error == pytest.approx(rate(effect, effect_scores(y, t, e)).std_error, rel=0.3)


@given(
    gains=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=30),
    budget=st.floats(0, 1),
    cost=st.floats(0, 0.5),
)
def test_a_policy_keeps_to_its_budget_and_treats_nobody_at_a_loss(
    gains: list[tuple[float, float]], budget: float, cost: float
) -> None:
    uplift = np.array([(0.0, *pair) for pair in gains])
    probs = targeting_policy(uplift, budget, cost=(0.0, cost, 0.0))
    np.testing.assert_array_equal(probs.sum(axis=1), 1.0)
    treated = probs[:, 0] == 0
    assert treated.sum() <= round(budget * len(gains))
    net = uplift - np.array([0.0, cost, 0.0])
    assert (net[np.arange(len(gains)), probs.argmax(axis=1)][treated] > 0).all()
    if budget == 1:
        assert treated.sum() == (net[:, 1:].max(axis=1) > 0).sum()


def test_targeting_is_worth_what_the_truth_says() -> None:
    random = np.random.default_rng(3)
    n = 60_000
    x = random.random(n)
    action = random.integers(0, 3, n)
    truth = 0.1 + np.stack([0 * x, 0.3 * x, 0.3 * (1 - x)], axis=1)
    log = BanditLog(action, (random.random(n) < truth[np.arange(n), action]).astype(float), np.full(n, 1 / 3))
    uplift, cost = truth - truth[:, :1], (0.0, 0.02, 0.02)
    for model in (None, truth):
        found = targeting_value(log, uplift, (0.0, 0.3, 1.0), cost=cost, model=model)
        for budget, one in found.items():
            probs = targeting_policy(uplift, budget, cost=cost)
            exact = float((probs * (truth - np.array(cost))).sum() / n)
            assert one.low - 0.002 < exact < one.high + 0.002
            assert one.estimator == ("snipw" if model is None else "sndr")
        assert found[0.0].value < found[0.3].value < found[1.0].value


def test_repeated_splits_are_not_taken_as_independent() -> None:
    values = np.random.default_rng(4).normal(0.1, 0.02, 50)
    found = resampled_interval(values, 0.3)
    naive = 0.02 / np.sqrt(50) * 2
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value > 4 * naive
    with pytest.raises(ValueError, match="needs two or more"):
        resampled_interval([0.1], 0.3)


def test_bad_arrays_are_named() -> None:
    with pytest.raises(ValueError, match="treated: row 1 is 2"):
        qini_radcliffe([0, 1], [0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="treated: all rows are 1; a comparison needs both groups"):
        cumulative_gain([0, 1], [1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"propensity: row 0 is 1.0; must be in \(0, 1\)"):
        effect_scores([0, 1], [1, 0], [1.0, 0.5])
    with pytest.raises(ValueError, match="weighting: 'auc' is not known"):
        rate([1, 2], [1, 2], "auc")
    with pytest.raises(ValueError, match="control: 3 is no column"):
        targeting_policy([[0.0, 1.0]], 0.5, control=3)
