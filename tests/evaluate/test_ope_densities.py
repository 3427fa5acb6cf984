"""Sequential estimators where actions are numbers: a small linear problem whose truth can be simulated."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from qiance.evaluate.ope_densities import density_pair
from qiance.evaluate.ope_fitted_q import fitted_q_numbers
from qiance.evaluate.ope_result import clears_gate
from qiance.evaluate.ope_trajectory import (
    TrajectoryLog,
    estimate_trajectories,
    trajectory_improvement,
)

STEPS, SPREAD = 3, 0.4


class Square(LinearRegression):
    def fit(self, x, y):
        return super().fit(self._wide(x), y)

    def predict(self, x):
        return super().predict(self._wide(x))

    def _wide(self, x):
        return np.hstack([x, x**2, x[:, :1] * x[:, 1:]])


def live(middle: float, episodes: int, seed: int) -> tuple[np.ndarray, ...]:
    """States `[n, T]`, actions and rewards of a policy that draws around `middle`."""
    rng = np.random.default_rng(seed)
    state, kept = rng.normal(0, 0.5, episodes), []
    for _ in range(STEPS):
        action = middle + SPREAD * rng.standard_normal(episodes)
        reward = 1.0 - (state - 0.5) ** 2 + 0.3 * action + 0.1 * rng.standard_normal(episodes)
        kept.append((state, action, reward))
        state = 0.6 * state + 0.5 * action
    return tuple(np.stack(x, axis=1) for x in zip(*kept, strict=True))


def log_density(action: np.ndarray, middle: float) -> np.ndarray:
    return -0.5 * ((action - middle) / SPREAD) ** 2


def value_model(log: TrajectoryLog, states: np.ndarray, actions: np.ndarray, middle: float):
    rng = np.random.default_rng(1)

    def draws(step: int) -> np.ndarray:
        return middle + SPREAD * rng.standard_normal((len(states), 8, 1))

    return fitted_q_numbers(log, states[..., None], actions[..., None], draws, Square)


def test_estimates_are_near_the_truth_and_the_value_model_narrows_them():
    states, actions, rewards = live(0.0, 3_000, 0)
    truth = [live(middle, 400_000, 9)[2].sum(axis=1).mean() for middle in (0.0, 0.15)]
    propensity, probs = density_pair(log_density(actions, 0.0), log_density(actions, 0.15))
    log = TrajectoryLog(rewards, propensity)
    models = value_model(log, states, actions, 0.15)
    widths = {}
    for name in ("pdis", "wpdis", "dr", "wdr", "dm"):
        found = estimate_trajectories(log, probs, *models, name)
        assert found.value == pytest.approx(truth[1], abs=4 * max(found.std_error, 0.01)), name
        widths[name] = found.high - found.low
    assert widths["dr"] < 0.6 * widths["pdis"]
    gain = trajectory_improvement(log, probs, *models)
    assert gain.value == pytest.approx(truth[1] - truth[0], abs=3 * gain.std_error)
    assert gain.baseline_value == pytest.approx(rewards.sum(axis=1).mean())
    assert clears_gate(gain).passed


def test_following_the_log_is_no_improvement():
    states, actions, rewards = live(0.0, 500, 2)
    log = TrajectoryLog(rewards, np.ones_like(rewards))
    found = trajectory_improvement(log, np.ones_like(rewards), estimator="pdis")
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert not clears_gate(found).passed
    gain = trajectory_improvement(log, np.ones_like(rewards), *value_model(log, states, actions, 0.0))
    assert gain.low <= 0 <= gain.high


def test_densities_keep_their_ratio_within_what_the_log_accepts():
    rng = np.random.default_rng(0)
    logged, policy = rng.normal(3, 2, (2, 40, 5))
    propensity, probs = density_pair(logged, policy)
    np.testing.assert_allclose(np.log(probs / propensity), policy - logged, atol=1e-9)
    assert ((propensity > 0) & (propensity <= 1) & (probs <= 1)).all()


def test_a_policy_far_from_the_log_gets_a_number_and_no_pass():
    _, actions, rewards = live(0.0, 200, 3)
    for away in (2.0, 60.0):
        propensity, probs = density_pair(log_density(actions, 0.0), log_density(actions, away))
        found = trajectory_improvement(TrajectoryLog(rewards, propensity), probs, estimator="pdis")
        assert np.isfinite([found.value, found.low, found.high]).all()
        verdict = clears_gate(found)
        assert not verdict.passed
        assert "effective sample size" in verdict.reason


@pytest.mark.parametrize(
    ("state", "action", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 3, 1)), r"state: has shape \(4, 3\); must be \(4, 3, d\)"),
        (np.zeros((4, 3, 1)), np.zeros((4, 2, 1)), r"action: has shape \(4, 2, 1\)"),
        (np.zeros((4, 3, 1)), np.full((4, 3, 1), np.nan), "action: row 0, column 0 is nan; must be finite"),
    ],
)
def test_arrays_that_do_not_fit_are_named(state, action, message):
    log = TrajectoryLog(np.zeros((4, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match=message):
        fitted_q_numbers(log, state, action, lambda step: np.zeros((4, 2, 1)), Square)
