"""Sequential and slate estimators against the truth of a tiny problem, by hand, and what is refused."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from qiance.evaluate.ope_fitted_q import fitted_q
from qiance.evaluate.ope_slate import SLATE, SlateLog, estimate_slates
from qiance.evaluate.ope_trajectory import SEQUENTIAL, TrajectoryLog, estimate_trajectories

STEPS, GAMMA = 3, 0.9
START = np.array([0.6, 0.4])
MOVE = np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.1, 0.9]]])  # [state, action, next]
REWARD = np.array([[0.1, 0.6], [0.4, 0.9]])  # probability of a reward of 1
LOGGING = np.array([[0.6, 0.4], [0.3, 0.7]])
POLICY = np.array([[0.2, 0.8], [0.5, 0.5]])


def values(policy):
    """Q [T, 2, 2] and V [T, 2] by backward induction."""
    q, v = np.zeros((STEPS, 2, 2)), np.zeros((STEPS + 1, 2))
    for step in reversed(range(STEPS)):
        q[step] = REWARD + GAMMA * MOVE @ v[step + 1]
        v[step] = (policy * q[step]).sum(axis=1)
    return q, v[:STEPS]


def enumerated(policy):
    """The same value by going through every trajectory."""
    total = 0.0
    for path in product(*[range(2)] * (2 * STEPS)):
        states, actions = path[:STEPS], path[STEPS:]
        chance, earned = START[states[0]], 0.0
        for step in range(STEPS):
            chance *= policy[states[step], actions[step]]
            earned += GAMMA**step * REWARD[states[step], actions[step]]
            if step + 1 < STEPS:
                chance *= MOVE[states[step], actions[step], states[step + 1]]
        total += chance * earned
    return total


TRUTH = enumerated(POLICY)


def sample(n, seed):
    """(log, states, actions, probability of the logged actions under POLICY)."""
    rng = np.random.default_rng(seed)
    states, actions = np.zeros((n, STEPS), int), np.zeros((n, STEPS), int)
    rewards = np.zeros((n, STEPS))
    state = (rng.random(n) > START[0]).astype(int)
    for step in range(STEPS):
        action = (rng.random(n) > LOGGING[state, 0]).astype(int)
        states[:, step], actions[:, step] = state, action
        rewards[:, step] = rng.random(n) < REWARD[state, action]
        state = (rng.random(n) > MOVE[state, action, 0]).astype(int)
    return TrajectoryLog(rewards, LOGGING[states, actions]), states, actions, POLICY[states, actions]


def true_models(states, actions):
    q, v = values(POLICY)
    step = np.arange(STEPS)
    return q[step, states, actions], v[step, states]


def test_the_truth_is_the_truth():
    assert values(POLICY)[1][0] @ START == pytest.approx(TRUTH)


@pytest.mark.parametrize("name", list(SEQUENTIAL))
def test_estimates_are_unbiased_and_intervals_cover(name):
    found = []
    for seed in range(150):
        log, states, actions, probs = sample(300, seed)
        models = true_models(states, actions)
        wrong = (models[0] + 0.3, models[1] + 0.3) if name in ("dr", "wdr") else models
        found.append(estimate_trajectories(log, probs, *wrong, name, GAMMA))
    mean = np.mean([one.value for one in found])
    spread = np.std([one.value for one in found]) / np.sqrt(len(found))
    assert abs(mean - TRUTH) < 3.5 * spread + 0.002
    assert np.mean([one.low <= TRUTH <= one.high for one in found]) >= 0.9


def test_the_right_model_takes_the_variance_away():
    log, states, actions, probs = sample(500, 3)
    models = true_models(states, actions)
    errors = {
        name: estimate_trajectories(log, probs, *models, name, GAMMA).std_error
        for name in ("is", "pdis", "dr")
    }
    assert errors["is"] > errors["pdis"] > errors["dr"]


def test_one_step_is_the_bandit():
    from qiance.evaluate.ope import BanditLog, estimate

    log, states, actions, probs = sample(200, 5)
    one = TrajectoryLog(log.reward[:, :1], log.propensity[:, :1])
    bandit = BanditLog(actions[:, 0], log.reward[:, 0], log.propensity[:, 0])
    policy, q = POLICY[states[:, 0]], REWARD[states[:, 0]]
    models = (q[np.arange(200), actions[:, 0]][:, None], (policy * q).sum(axis=1)[:, None])
    for name, same in (("pdis", "ipw"), ("wpdis", "snipw"), ("dr", "dr"), ("wdr", "sndr"), ("dm", "dm")):
        found = estimate_trajectories(one, probs[:, :1], *models, name)
        assert found.value == pytest.approx(estimate(bandit, policy, q, same).value), name


def test_following_the_log_earns_what_the_log_earned():
    log, *_ = sample(100, 1)
    returns = (log.reward * GAMMA ** np.arange(STEPS)).sum(axis=1)
    for name in ("is", "pdis", "wpdis"):
        found = estimate_trajectories(log, log.propensity, estimator=name, discount=GAMMA)
        assert found.value == pytest.approx(returns.mean())
        assert found.std_error == pytest.approx(returns.std(ddof=1) / 10, rel=0.03)


def test_what_lies_beyond_the_end_is_not_read():
    log, _, _, probs = sample(50, 2)
    length = np.random.default_rng(0).integers(1, STEPS + 1, 50)
    beyond = np.arange(STEPS) >= length[:, None]
    junk = [np.where(beyond, np.nan, a) for a in (log.reward, log.propensity, probs)]
    zero = (
        np.where(beyond, 0.0, log.reward),
        np.where(beyond, 1.0, log.propensity),
        np.where(beyond, 1.0, probs),
    )
    for name in ("is", "pdis", "wpdis"):
        short = estimate_trajectories(TrajectoryLog(*junk[:2], length), junk[2], estimator=name)
        assert short.value == pytest.approx(
            estimate_trajectories(TrajectoryLog(*zero[:2]), zero[2], estimator=name).value
        )


def test_fitted_q_finds_the_value():
    log, states, actions, _ = sample(4000, 7)
    one_hot = np.eye(2)[states]

    # One-hot of state × action lets a linear regression hold any Q.
    class Table(LinearRegression):
        def _cross(self, x):
            return np.einsum("ns,na->nsa", x[:, :2], x[:, 2:]).reshape(len(x), -1)

        def fit(self, x, y):
            return super().fit(self._cross(x), y)

        def predict(self, x):
            return super().predict(self._cross(x))

    q, v = fitted_q(log, one_hot, actions, POLICY[states], Table, GAMMA)
    true_q, true_v = true_models(states, actions)
    assert np.abs(q - true_q).max() < 0.15
    assert np.abs(v - true_v).max() < 0.12
    for name in ("dm", "dr", "wdr"):
        found = estimate_trajectories(log, POLICY[states, actions], q, v, name, GAMMA)
        assert found.value == pytest.approx(TRUTH, abs=0.06), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": [[0.5, 0.0], [0.5, 0.5]]}, "propensity: row 0, column 1 is 0.0; must be in"),
        ({"propensity": [[0.5, 0.5]]}, r"propensity: has shape \(1, 2\); must be \(2, 2\)"),
        ({"reward": [[0.5, np.nan], [0, 0]]}, "reward: row 0, column 1 is nan"),
        ({"length": [0, 1]}, "length: row 0 is 0; must be in 1 … 2"),
        ({"length": [1, 3]}, "length: row 1 is 3"),
        ({"cluster": ["a"]}, r"cluster: has shape \(1,\)"),
    ],
)
def test_bad_logs_are_named(change, message):
    arrays = {"reward": [[1.0, 0.0], [0.0, 1.0]], "propensity": [[0.5, 0.5], [0.5, 0.5]]}
    with pytest.raises(ValueError, match=message):
        TrajectoryLog(**{**arrays, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy_probs": [[0.5, 1.5], [0.5, 0.5]]}, "policy_probs: row 0, column 1 is 1.5; must be in"),
        ({"policy_probs": [[0.0, 0.5], [0.0, 0.5]]}, "policy_probs: no overlap"),
        (
            {"policy_probs": [[0.5, 0.5], [0.5, 0.0]]},
            "too little overlap: trajectory 0 carries all .* at step 1",
        ),
        (
            {"estimator": "magic"},
            "estimator: 'magic' is not known; choose one of is, pdis, wpdis, dm, dr, wdr",
        ),
        ({"estimator": "dr"}, "estimator: 'dr' needs logged_model and policy_model"),
        ({"discount": 1.5}, "discount: 1.5 is outside"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    log = TrajectoryLog([[1.0, 0.0], [0.0, 1.0]], np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=message):
        estimate_trajectories(**{"log": log, "policy_probs": np.full((2, 2), 0.5), **arguments})


def test_slates_by_hand():
    log = SlateLog([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[0.5, 0.25], [0.5, 0.5], [0.25, 0.5]])
    probs = np.array([[1.0, 0.25], [0.25, 0.5], [0.0, 0.5]])  # ratios 2, 1; 0.5, 1; 0, 1
    expected = {
        "sips": (2 * 1 + 0.5 * 2 + 0) / 3,
        "iips": (2 * 1 + 1 * 2 + 0 + 1) / 3,
        "rips": (2 * 1 + 0.5 * 2 + 0) / 3,
        "snrips": 2 / 2.5 + 1 / 2.5,
        "pi": (2 * 1 + 0.5 * 2 + 0) / 3,
    }
    for name, value in expected.items():
        assert estimate_slates(log, probs, estimator=name).value == pytest.approx(value), name


def slate_world(seed, n=400):
    """Users who read from the top: the second slot's click hangs on what is above it."""
    rng = np.random.default_rng(seed)
    first = (rng.random(n) < 0.5).astype(int)
    second = (rng.random(n) < 0.5).astype(int)
    target = np.array([0.2, 0.8])
    mean = np.stack([0.2 + 0.4 * first, 0.1 + 0.3 * second * (1 + first)], axis=1)
    reward = (rng.random((n, 2)) < mean).astype(float)
    probs = np.stack([target[first], target[second]], axis=1)
    truth = 0.2 + 0.4 * 0.8 + 0.1 + 0.3 * 0.8 * 1.8
    below = 0.1 + 0.3 * 0.8 * (1 + first)
    logged = np.stack([0.2 + 0.4 * first + below, mean[:, 1]], axis=1)
    by_policy = np.stack([np.full(n, truth), below], axis=1)
    return SlateLog(reward, np.full((n, 2), 0.5)), probs, logged, by_policy, truth


@pytest.mark.parametrize("name", list(SLATE))
def test_slate_estimates_are_unbiased_where_their_user_lives(name):
    found = []
    for seed in range(150):
        log, probs, logged, by_policy, truth = slate_world(seed)
        found.append(estimate_slates(log, probs, logged, by_policy, name))
    off = np.mean([one.value for one in found]) - truth
    noise = np.std([one.value for one in found]) / np.sqrt(len(found))
    # What the slots do to each other is lost: all of it to iips, to pi what no sum of the two can say.
    lost = {"iips": 0.3 * 0.8 * 0.3, "pi": 0.3 * 0.3 * 0.3}.get(name, 0.0)
    assert abs(off + lost) < 3.5 * noise + 0.002
    if not lost:
        assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.9
    with pytest.raises(ValueError, match="'cascade-dr' needs logged_model"):
        estimate_slates(log, probs, estimator="cascade-dr")
