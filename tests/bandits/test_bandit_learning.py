"""What bandits learn: the posterior is ridge regression, whatever comes when, in which batch, how often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.bandits import Bandit, BanditSettings, Learn, LinearPosterior, Network, Pending, Prior, Rule

ARMS = ("control", "mail", "mailer")
DAYS, WINDOW = 12, 3.0


def rows(n: int, seed: int = 0, d: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, action, reward, day."""
    rng = np.random.default_rng(seed)
    x, action = rng.normal(size=(n, d)), rng.integers(0, 3, n)
    reward = x @ rng.normal(size=(3, d)).T[:, 0] + action + rng.normal(size=n)
    return x, action, reward, np.sort(rng.integers(0, DAYS, n)).astype(float)


def same(a: LinearPosterior, b: LinearPosterior) -> None:
    for name, array in a.state().items():
        np.testing.assert_allclose(array, b.state()[name], rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_posterior_is_ridge_regression_per_action() -> None:
    x, action, reward, day = rows(300)
    found = LinearPosterior(3, 4, Prior(ridge=2.5, noise=3.0, noise_weight=7.0))
    found.update(x, action, reward, day)
    residual, fresh = 0.0, np.random.default_rng(1).normal(size=(5, 4))
    mean, deviation = found.predict(fresh)
    for a in range(3):
        own, y = x[action == a], reward[action == a]
        precision = own.T @ own + 2.5 * np.eye(4)
        theta = np.linalg.solve(precision, own.T @ y)
        np.testing.assert_allclose(found.coefficients()[a], theta)
        np.testing.assert_allclose(mean[:, a], fresh @ theta)
        # The penalised residual is what the normal-inverse-gamma posterior adds to b.
        residual += np.square(y - own @ theta).sum() + 2.5 * np.square(theta).sum()
    noise = (7.0 * 9.0 + residual) / (7.0 + 300)
    assert found.noise_variance() == pytest.approx(noise)
    spread = np.linalg.inv(precision)
    expected = np.sqrt(noise * np.einsum("nd,de,ne->n", fresh, spread, fresh))
    np.testing.assert_allclose(deviation[:, 2], expected)


def test_the_posterior_covers_the_truth() -> None:
    """Of 90 % intervals of x·θ, 90 % hold it."""
    held, rng = [], np.random.default_rng(0)
    for _ in range(300):
        theta, x = rng.normal(size=3), rng.normal(size=(60, 3))
        found = LinearPosterior(1, 3, Prior())
        found.update(x, np.zeros(60, int), x @ theta + 2.0 * rng.normal(size=60), np.zeros(60))
        at = rng.normal(size=(1, 3))
        mean, deviation = found.predict(at)
        held.append(abs(float(at[0] @ theta - mean[0, 0])) < 1.645 * float(deviation[0, 0]))
    assert 0.85 < np.mean(held) < 0.95


def test_forgetting_halves_what_is_old_and_gives_back_the_prior() -> None:
    x, action, reward, _ = rows(50)
    found = LinearPosterior(3, 4, Prior(half_life=10.0))
    found.update(x, action, reward, np.zeros(50))
    plain = found.weight.sum()
    found.update(x[:1], action[:1], reward[:1], np.array([20.0]))
    assert found.weight.sum() == pytest.approx(plain / 4 + 1)
    found.update(x[:1], action[:1], np.zeros(1), np.array([1_000.0]))
    other = (action[0] + 1) % 3
    after = found.predict(x)[1]
    assert np.all(after[:, other] / np.sqrt(found.noise_variance()) > 0.99 * np.linalg.norm(x, axis=1))


def bandit(learn: Learn = Learn.CLOSE, half_life: float | None = None, keep: bool = False) -> Bandit:
    prior = Prior(half_life=half_life)
    told = BanditSettings(prior=prior, window=WINDOW, learn=learn, keep=keep)
    return Bandit(["a", "b", "c", "d"], ARMS, told, centre=[0.5, 0, 0, 0], scale=[1, 2, 1, 1])


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    n=st.integers(1, 60),
    learn=st.sampled_from(Learn),
    half_life=st.sampled_from([None, 5.0]),
)
def test_order_batches_and_repeats_change_nothing(
    data: st.DataObject, n: int, learn: Learn, half_life: float | None
) -> None:
    x, action, reward, day = rows(n, seed=n)
    bought = np.random.default_rng(n).random(n) < 0.6
    ids = np.array([f"d{k}" for k in range(n)])
    at_once = LinearPosterior(3, 5, Prior(half_life=half_life))
    standardised = np.column_stack([np.ones(n), (x - [0.5, 0, 0, 0]) / [1, 2, 1, 1]])
    at_once.update(standardised, action, np.where(bought, reward, 0.0), day)
    shuffled = bandit(learn, half_life)
    late = data.draw(st.lists(st.integers(0, int(WINDOW)), min_size=n, max_size=n))
    comes = day + np.array(late)
    for now in range(DAYS + 2 * int(WINDOW) + 1):
        # Deliveries of the day, some of them again, in any order and in two batches; then the windows close.
        due = np.flatnonzero(bought & ((comes == now) | (comes == now - 1)))
        order = np.array(data.draw(st.permutations(due.tolist())), dtype=int)
        cut = data.draw(st.integers(0, due.size))
        today = np.flatnonzero(day == now)[::-1]
        for again in (today, today[: today.size // 2]):
            shuffled.decided(ids[again], x[again], action[again], day[again])
        for part in (order[:cut], order[cut:], order[:1]):
            shuffled.outcomes(ids[part], reward[part])
        shuffled.close(now)
    assert len(shuffled.pending) == 0
    same(shuffled.posterior, at_once)


def test_what_is_pending_teaches_nothing() -> None:
    x, action, reward, day = rows(40)
    found, context = bandit(Learn.OUTCOME), rows(10, seed=5)[0]
    ids = np.arange(40)
    inputs = found.posterior.predict(np.ones((1, 5)))
    found.decided(ids, x, action, day)
    np.testing.assert_array_equal(found.posterior.predict(np.ones((1, 5))), inputs)
    assert len(found.pending) == 40
    assert found.outcomes(ids[:5], reward[:5]) == 5
    assert found.outcomes(ids[:7], reward[:7]) == 2
    assert found.outcomes([999], [1.0]) == 0
    assert found.outcomes([], []) == 0
    assert len(found.pending) == 33
    assert found.posterior.weight.sum() == 7
    assert found.probabilities(context).shape == (10, 3)


def test_a_window_that_closes_is_a_reward_of_nothing_and_the_end() -> None:
    found = Pending(1, window=3.0)
    assert found.add(["a", "b"], [[1.0], [2.0]], [0, 1], [0.0, 1.0]) == 2
    assert len(found.outcome(["b"], [5.0])) == 0, "it waits for the others of its day"
    assert found.close(3.0).reward.tolist() == [0.0]
    assert found.close(3.0).ids.size == 0
    settled = found.close(4.0)
    assert (settled.ids.tolist(), settled.reward.tolist(), settled.context.tolist()) == (
        ["b"],
        [5.0],
        [[2.0]],
    )
    # The decision delivered again after its window is not a new one, and an outcome of it comes too late.
    assert found.add(["a", "b"], [[1.0], [2.0]], [0, 1], [0.0, 1.0]) == 0
    assert len(found.outcome(["a"], [9.0])) == 0
    assert len(found) == 0


def test_outcomes_that_teach_at_once_make_the_newest_look_too_good() -> None:
    """Why `close` is the default: a third buys the next day, and until the window ends all seem to."""
    means = {}
    for learn in Learn:
        found = bandit(learn)
        ids, x = np.arange(300), np.tile([0.5, 0.0, 0.0, 0.0], (300, 1))
        found.decided(ids, x, np.zeros(300, int), 0.0)
        found.outcomes(ids[::3], np.full(100, 9.0))
        found.close(1.0)
        before = float(found.posterior.coefficients()[0, 0])
        found.close(WINDOW)
        means[learn] = (before, float(found.posterior.coefficients()[0, 0]))
    assert means[Learn.OUTCOME][0] > 8.0
    assert means[Learn.CLOSE][0] == 0.0
    assert means[Learn.OUTCOME][1] == pytest.approx(means[Learn.CLOSE][1])
    assert means[Learn.CLOSE][1] == pytest.approx(900 / 301)


def test_a_refit_learns_the_log_anew_in_any_order() -> None:
    def fit(context: np.ndarray, action: np.ndarray, reward: np.ndarray) -> Network:
        seen.append((context, action, reward))
        return Network((np.vstack([np.eye(4)[:, :2]]),), (np.array([0.1, 0.2]),))

    x, action, reward, day = rows(30)
    ids, seen, found = np.arange(30), [], []
    for order in (np.arange(30), np.random.default_rng(0).permutation(30)):
        one = bandit(Learn.OUTCOME, keep=True)
        one.decided(ids[order], x[order], action[order], day[order])
        for k in order:
            one.outcomes(ids[[k]], reward[[k]])
        one.refit(fit)
        found.append(one)
    for one, other in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, other)
    same(found[0].posterior, found[1].posterior)
    hidden = found[0].network.hidden((x - [0.5, 0, 0, 0]) / [1, 2, 1, 1])
    by_hand = LinearPosterior(3, 3)
    by_hand.update(np.column_stack([np.ones(30), hidden]), action, reward, day)
    same(found[0].posterior, by_hand)


def update(**changed: Any) -> None:
    given = {"features": np.ones((2, 2)), "action": [0, 1], "reward": [1.0, 2.0], "at": [0.0, 0.0]}
    LinearPosterior(2, 2).update(**(given | changed))


WRONG = {
    "features: has shape": lambda: update(features=np.ones((2, 3))),
    "features: row 1, column 0 is nan": lambda: update(features=[[1.0, 1.0], [np.nan, 1.0]]),
    "action: row 1 is 2; must be under 2": lambda: update(action=[0, 2]),
    "action: row 0 is -1": lambda: update(action=[-1, 0]),
    "reward: row 1 is inf": lambda: update(reward=[0.0, np.inf]),
    "at: has 1 rows; must have 2": lambda: update(at=[0.0]),
    "ridge: 0.0 is not a positive number": lambda: Prior(ridge=0.0),
    "half_life: -1 is not a positive number": lambda: Prior(half_life=-1),
    "window: 0 is not a positive number of days": lambda: Pending(1, 0),
    "'sometimes' is not a valid Learn": lambda: Pending(1, 1, "sometimes"),  # type: ignore[arg-type]
    "ids: float64 of shape": lambda: bandit().outcomes([1.5], [1.0]),
    "now: nan is not a day": lambda: bandit().close(np.nan),
    "reward: row 0 is nan": lambda: bandit().outcomes(["a"], [np.nan]),
    "context: has shape .* must have 4 columns": lambda: bandit().probabilities(np.ones((2, 3))),
    "context: has shape .* must have 2 dimensions": lambda: bandit().probabilities(1.0),
    "action: row 0 is 3; must be under 3, the arms": lambda: bandit().decided(
        ["a"], np.ones((1, 4)), [3], 0.0
    ),
    "arms: .* must be at least 2 different names": lambda: Bandit(["a"], ["x", "x"]),
    "scale: row 0 is 0.0; must be > 0": lambda: Bandit(["a"], ARMS, scale=[0.0]),
    "cost: has 2 rows; must have 3": lambda: Bandit(["a"], ARMS, cost=[0.0, 1.0]),
    "epsilon: 1.5 is outside": lambda: BanditSettings(epsilon=1.5),
    "width: -1 is outside": lambda: BanditSettings(rule=Rule.UCB, width=-1),
    "refit: no settled decisions": lambda: bandit().refit(lambda *_: Network((), ())),
    "network: takes 3 features; the bandit has 1": lambda: Bandit(
        ["a"], ARMS, network=Network((np.ones((3, 2)),), (np.zeros(2),))
    ),
    "network: layer 1 is": lambda: Network((np.ones((3, 2)), np.ones((3, 2))), (np.zeros(2), np.zeros(2))),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
