"""From beliefs to choices: exact propensities of every rule, with masks and floors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qiance.bandits import Rule, best_probabilities, choose, rule_probabilities


def beliefs(n: int, a: int, seed: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, deviations over `spread` powers of ten, a mask with control."""
    rng = np.random.default_rng(seed)
    mean, deviation = rng.normal(size=(n, a)), 10.0 ** rng.uniform(-spread, 0, (n, a))
    mask = rng.random((n, a)) < 0.7
    mask[:, 0] = True
    return mean, deviation, mask


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_the_integral_is_what_draws_from_the_posteriors_say(spread: float) -> None:
    draws = 400_000
    mean, deviation, mask = beliefs(12, 6, 3, spread)
    found = best_probabilities(mean, deviation, mask)
    noise = np.random.default_rng(0).standard_normal((draws, 6))
    for row in range(12):
        drawn = np.where(mask[row], mean[row] + deviation[row] * noise, -np.inf)
        share = np.bincount(drawn.argmax(axis=1), minlength=6) / draws
        error = np.sqrt(found[row] * (1 - found[row]) / draws)
        assert np.all(np.abs(share - found[row]) < 5 * error + 1e-5), (share, found[row])


@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0])
def test_the_grid_is_as_good_as_one_made_for_each_row(spread: float) -> None:
    """Gauss-Legendre between many points around every mean."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    mean, deviation, _ = beliefs(60, 9, 1, spread)
    mean *= np.array([0.01, 1.0, 10.0])[np.arange(60) % 3, None]
    found = best_probabilities(mean, deviation, np.ones((60, 9), bool))
    for row in range(60):
        m, s = mean[row][:, None], deviation[row][:, None]
        ends = np.unique(m + s * np.linspace(-8, 8, 33))
        half = (ends[1:] - ends[:-1])[:, None] / 2
        x, w = (((ends[1:] + ends[:-1])[:, None] / 2) + half * nodes).ravel(), (half * weights).ravel()
        below, density = stats.norm.cdf(x, m, s), stats.norm.pdf(x, m, s)
        expected = [(w * density[a] * np.delete(below, a, axis=0).prod(axis=0)).sum() for a in range(9)]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_two_actions_have_the_closed_form_and_meet_the_integral() -> None:
    mean, deviation, _ = beliefs(200, 3, 5, 1.0)
    mask = np.ones((200, 3), bool)
    mask[:, 1] = False
    found = best_probabilities(mean, deviation, mask)
    gap = (mean[:, 0] - mean[:, 2]) / np.sqrt(deviation[:, 0] ** 2 + deviation[:, 2] ** 2)
    np.testing.assert_allclose(found[:, 0], stats.norm.cdf(gap), rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    # A third action that is surely worse takes the other path.
    mean[:, 1], mask[:, 1] = -1e3, True
    np.testing.assert_allclose(best_probabilities(mean, deviation, mask), found, atol=1e-5)


def test_far_from_zero_and_of_very_different_width_it_still_holds() -> None:
    mean, deviation = np.array([[0.0, 0.5, -0.2, 0.1]]), np.array([[1e-7, 1.0, 1e-3, 0.3]])
    here = best_probabilities(mean, deviation, np.ones((1, 4), bool))
    far = best_probabilities(1e6 + mean, deviation, np.ones((1, 4), bool))
    np.testing.assert_allclose(far, here, atol=1e-6)
    np.testing.assert_allclose(best_probabilities(1e9 * mean, 1e9 * deviation, mean < 1), here, atol=1e-12)


def test_equal_beliefs_are_equally_likely_and_alone_is_certain() -> None:
    n = 200
    found = best_probabilities(np.zeros((1, n)), np.ones((1, n)), np.ones((1, n), bool))
    np.testing.assert_allclose(found, 1 / n, rtol=1e-12)
    alone = np.array([[True, False, False]])
    np.testing.assert_array_equal(best_probabilities(np.zeros((1, 3)), np.ones((1, 3)), alone), [[1, 0, 0]])


@settings(max_examples=120, deadline=None)
@given(
    rule=st.sampled_from(Rule),
    n=st.integers(1, 20),
    a=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    spread=st.floats(0.0, 8.0),
    width=st.sampled_from([0.0, 0.3, 2.0]),
    epsilon=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_probabilities_are_a_distribution_over_what_is_admissible(
    rule: Rule, n: int, a: int, seed: int, spread: float, width: float, epsilon: float
) -> None:
    mean, deviation, mask = beliefs(n, a, seed, spread)
    found = rule_probabilities(rule, mean, deviation, mask, width, epsilon)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)
    assert np.all(found[~mask] == 0)
    floor = epsilon / mask.sum(axis=1)
    assert np.all(found >= np.where(mask, floor[:, None], 0.0)), "the floor holds exactly"
    drawn = choose(found, rng=np.random.default_rng(seed))
    assert mask[np.arange(n), drawn.choice].all()
    assert np.all(drawn.propensity > 0)
    again = choose(found, uniforms=drawn.uniforms)
    np.testing.assert_array_equal(again.choice, drawn.choice)


def test_each_rule_takes_what_it_should() -> None:
    mean, deviation = np.array([[0.0, 1.0, 0.9]]), np.array([[0.1, 0.1, 0.5]])
    mask = np.ones((1, 3), bool)

    def of(rule: Rule, **more: float) -> list[float]:
        return rule_probabilities(rule, mean, deviation, mask, **more)[0].tolist()

    assert of(Rule.GREEDY) == [0, 1, 0]
    assert of(Rule.UCB) == [0, 0, 1]
    assert of(Rule.UCB, width=0.1) == [0, 1, 0]
    assert of(Rule.UNIFORM) == pytest.approx([1 / 3] * 3)
    assert of(Rule.UCB, epsilon=0.3) == pytest.approx([0.1, 0.1, 0.8])
    assert of(Rule.THOMPSON)[2] == pytest.approx(stats.norm.cdf(-0.1 / np.hypot(0.1, 0.5)), abs=1e-3)
    assert of(Rule.THOMPSON, width=0.0) == [0, 1, 0]
    mean[0, 2] = 1.0
    assert of(Rule.GREEDY) == [0, 0.5, 0.5], "equals share"


def test_what_is_logged_is_how_often_it_is_chosen() -> None:
    """Chi-square over 200,000 choices of one user under every rule."""
    n = 200_000
    mean, deviation, mask = beliefs(1, 6, 11, 0.5)
    for rule in Rule:
        found = rule_probabilities(rule, mean, deviation, mask, 1.0, 0.1)
        drawn = choose(np.repeat(found, n, axis=0), rng=np.random.default_rng(2))
        counts, possible = np.bincount(drawn.choice, minlength=6), found[0] > 0
        assert counts[~possible].sum() == 0
        assert stats.chisquare(counts[possible], n * found[0][possible]).pvalue > 1e-3, rule
        np.testing.assert_array_equal(drawn.propensity, found[0][drawn.choice])


def asked(**changed: Any) -> None:
    given = {
        "rule": Rule.THOMPSON,
        "mean": np.zeros((2, 3)),
        "deviation": np.ones((2, 3)),
        "admissible": np.ones((2, 3), bool),
    }
    rule_probabilities(**(given | changed))


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        ("mean: row 1, column 2 is nan; must be finite", {"mean": np.array([[0, 0, 0], [0, 0, np.nan]])}),
        ("deviation: row 0, column 0 is 0.0; must be > 0", {"deviation": np.zeros((2, 3))}),
        (r"deviation: has shape \(2, 2\); must be \(2, 3\)", {"deviation": np.ones((2, 2))}),
        ("admissible: dtype is float64; must be bool", {"admissible": np.ones((2, 3))}),
        ("admissible: row 0, column 0 is False; column 0 is control", {"admissible": np.zeros((2, 3), bool)}),
        (r"epsilon: -0.1 is outside \[0, 1\]", {"epsilon": -0.1}),
        ("width: -2.0 is outside", {"width": -2.0}),
    ],
)
def test_bad_beliefs_are_refused_by_name(message: str, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        asked(**changed)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("pass either rng or uniforms, got neither", {}),
        ("uniforms: row 1 is 1.0; must be in", {"uniforms": [0.5, 1.0]}),
        ("uniforms: has 1 rows; must have 2", {"uniforms": [0.5]}),
    ],
)
def test_a_draw_needs_its_randomness(message: str, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        choose(np.full((2, 2), 0.5), **given)
