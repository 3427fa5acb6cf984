"""The decision rule: exact propensities, draws that follow them, and replay bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qiance.decide import decide, hash_uniforms, holdout, policy_probabilities, replay
from qiance.evaluate.ope import BanditLog, estimate


def make_case(users, actions, seed):
    rng = np.random.default_rng(seed)
    value = rng.normal(0, 50, (users, actions)).round(int(rng.integers(0, 3)))  # rounding makes ties
    cost = rng.gamma(1, 20, (users, actions))
    value[:, 0], cost[:, 0] = 0, 0
    admissible = rng.random((users, actions)) < rng.random()
    admissible[:, 0] = True
    return value, cost, admissible, rng


CASES = {
    "users": st.integers(1, 25),
    "actions": st.integers(1, 12),
    "seed": st.integers(0, 10**6),
    "epsilon": st.one_of(st.sampled_from([0.0, 1.0, 0.1]), st.floats(0, 1)),
    "price": st.floats(0, 100),
}


@settings(max_examples=200, deadline=None)
@given(**CASES)
def test_probabilities_are_a_distribution_with_a_floor(users, actions, seed, epsilon, price):
    value, cost, admissible, rng = make_case(users, actions, seed)
    made = decide(value, cost, admissible, price, epsilon, rng=rng)
    np.testing.assert_allclose(made.probabilities.sum(axis=1), 1, atol=1e-12)
    floor = epsilon / admissible.sum(axis=1, keepdims=True)
    assert (made.probabilities >= np.where(admissible, floor, 0)).all()
    assert not made.probabilities[~admissible].any()
    rows = np.arange(users)
    assert admissible[rows, made.choice].all()
    assert (made.propensity > 0).all()
    np.testing.assert_array_equal(made.propensity, made.probabilities[rows, made.choice])
    assert made.score.dtype == np.float32
    assert made.probabilities.dtype == np.float64
    np.testing.assert_array_equal(
        policy_probabilities(value, cost, admissible, price, epsilon), made.probabilities
    )


@settings(max_examples=200, deadline=None)
@given(**CASES)
def test_replay_is_identical_one_by_one_and_from_admissible_columns_only(
    users, actions, seed, epsilon, price
):
    value, cost, admissible, rng = make_case(users, actions, seed)
    made = decide(value, cost, admissible, price, epsilon, rng=rng)
    np.testing.assert_array_equal(replay(made.score, admissible, epsilon, made.uniforms), made.choice)
    for user in range(users):
        columns = np.flatnonzero(admissible[user])
        # As a ledger holds them: Python floats of the float32 scores, admissible candidates only.
        logged = [[float(score) for score in made.score[user, columns]]]
        alone = replay(logged, np.ones((1, columns.size), bool), epsilon, [float(made.uniforms[user])])
        assert columns[alone[0]] == made.choice[user]


@settings(max_examples=100, deadline=None)
@given(**CASES)
def test_without_exploration_the_best_admissible_is_chosen(users, actions, seed, epsilon, price):
    value, cost, admissible, _ = make_case(users, actions, seed)
    made = decide(value, cost, admissible, price, 0.0, uniforms=np.full(users, np.nextafter(1.0, 0.0)))
    best = np.where(admissible, made.score, -np.inf).argmax(axis=1)  # argmax: ties go to the lowest column
    np.testing.assert_array_equal(made.choice, best)
    np.testing.assert_array_equal(made.propensity, 1.0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 0.3, 1.0])
def test_uniforms_at_the_ends_choose_admissible_actions(uniform, epsilon):
    admissible = np.array([[True, False, True, False]])
    made = decide(np.array([[0, 9, 1, 9.0]]), np.zeros((1, 4)), admissible, 0.0, epsilon, uniforms=[uniform])
    assert made.choice[0] in (0, 2)
    assert made.propensity[0] > 0


def test_a_rising_shadow_price_moves_users_to_control():
    value, cost = np.array([[0.0, 10.0, 14.0]]), np.array([[0.0, 2.0, 5.0]])
    everything = np.ones((1, 3), bool)
    chosen = [int(decide(value, cost, everything, p, 0.0, uniforms=[0.5]).choice[0]) for p in (0, 2, 6)]
    assert chosen == [2, 1, 0]


def test_chosen_frequencies_match_the_propensities():
    """Chi-square over 10⁵ decisions: users in ten groups of equal scores."""
    rng = np.random.default_rng(11)
    value = np.repeat(rng.normal(0, 5, (10, 6)), 10_000, axis=0)
    admissible = np.repeat(rng.random((10, 6)) < 0.7, 10_000, axis=0)
    admissible[:, 0] = True
    made = decide(value, np.zeros_like(value), admissible, 0.0, 0.3, rng=rng)
    statistic, freedom = 0.0, 0
    for group in range(10):
        rows = slice(group * 10_000, (group + 1) * 10_000)
        expected = made.probabilities[rows.start] * 10_000
        counted = np.bincount(made.choice[rows], minlength=6)
        live = expected > 0
        assert not counted[~live].any()
        statistic += float(((counted[live] - expected[live]) ** 2 / expected[live]).sum())
        freedom += int(live.sum()) - 1
    assert stats.chi2.sf(statistic, freedom) > 0.001


def test_inverse_propensity_weighting_with_these_propensities_is_unbiased():
    rng = np.random.default_rng(12)
    value, cost, admissible, _ = make_case(500, 5, 12)
    truth = rng.normal(10, 5, (500, 5))  # mean reward of every action: not what the value said
    target = policy_probabilities(truth, cost, admissible, 0.0, 0.0)
    worth = float((target * truth).sum(axis=1).mean())
    found = []
    for _ in range(400):
        made = decide(value, cost, admissible, 0.5, 0.4, rng=rng)
        reward = truth[np.arange(500), made.choice] + rng.normal(0, 1, 500)
        log = BanditLog(made.choice, reward, made.propensity)
        found.append(estimate(log, target, estimator="ipw").value)
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - worth) < 4 * error
    assert error < 0.02 * worth


GOOD = {
    "value": np.zeros((2, 3)),
    "cost": np.zeros((2, 3)),
    "admissible": np.ones((2, 3), bool),
    "shadow_price": 1.0,
    "epsilon": 0.1,
    "uniforms": np.array([0.1, 0.2]),
}


def with_cell(name, row, column, value):
    array = np.array(GOOD[name])
    array[row, column] = value
    return {name: array}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_cell("value", 1, 2, np.nan), "value: row 1, column 2 is nan; must be finite"),
        (with_cell("value", 0, 1, np.inf), "value: row 0, column 1 is inf"),
        (with_cell("value", 0, 1, 1e300), "row 0, column 1 is 1e.300; too large for the float32"),
        (with_cell("cost", 0, 1, -np.inf), "cost: row 0, column 1 is -inf"),
        (with_cell("cost", 1, 1, -2.0), "cost: row 1, column 1 is -2.0; must be ≥ 0"),
        ({"cost": np.zeros((2, 2))}, r"cost: has shape \(2, 2\); must be \(2, 3\)"),
        (with_cell("admissible", 1, 0, False), "admissible: row 1, column 0 is False; column 0 is control"),
        ({"admissible": np.ones((2, 3))}, "admissible: dtype is float64; must be bool"),
        ({"shadow_price": -0.5}, r"shadow_price: -0.5 is outside \[0, infinity\)"),
        ({"shadow_price": np.nan}, "shadow_price: nan"),
        ({"epsilon": 1.5}, r"epsilon: 1.5 is outside \[0, 1\]"),
        ({"epsilon": np.nan}, "epsilon: nan"),
        ({"uniforms": [0.5, 1.0]}, r"uniforms: row 1 is 1.0; must be in \[0, 1\)"),
        ({"uniforms": [0.5]}, "uniforms: has 1 rows; must have 2"),
        ({"uniforms": None}, "got neither"),
        ({"rng": np.random.default_rng(0)}, "got both"),
        ({"value": np.empty((0, 3))}, "value: is empty"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        decide(**{**GOOD, **change})


def test_holdout_is_stable_nested_and_independent_of_other_salts():
    users = [f"p{number}" for number in range(20_000)]
    tenth, fifth = holdout(users, "spring", 0.1), holdout(users, "spring", 0.2)
    assert stats.binomtest(int(tenth.sum()), 20_000, 0.1).pvalue > 0.001
    assert (fifth | ~tenth).all()
    np.testing.assert_array_equal(holdout(users[::-1], "spring", 0.1)[::-1], tenth)
    other = holdout(users, "summer", 0.1)
    crossed = np.bincount(2 * tenth + other, minlength=4).reshape(2, 2)
    assert stats.chi2_contingency(crossed).pvalue > 0.001
    assert not holdout(users, "spring", 0.0).any()
    assert holdout(users, "spring", 1.0).all()


def test_hash_uniforms_do_not_change_between_releases():
    """A changed hash would reshuffle every running holdout: these figures are fixed for good."""
    expected = [0.029751700468344966, 0.29231038749143845]
    np.testing.assert_array_equal(hash_uniforms(["甲", "u1"], "spring"), expected)
    assert hash_uniforms([], "spring").shape == (0,)


@pytest.mark.parametrize(("salt", "share", "message"), [("", 0.1, "salt: ''"), ("s", -0.1, "share: -0.1")])
def test_bad_holdout_input_is_named(salt, share, message):
    with pytest.raises(ValueError, match=message):
        holdout(["a"], salt, share)
