from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib.hindsight import HindsightPlan, hindsight
from rllib.myopic import Myopic
from rllib.plan_evaluate import returns_of
from rllib.promotion import PromotionEnv, PromotionVectorEnv, Rules, decode, encode
from rllib.segments import made_up, segments_of, split
from rllib.world import load_world


class Always:
    """The same share and depth in all segments."""

    def __init__(self, share: float, depth: float, size: int) -> None:
        self._action = encode(np.full((1, size), share), np.full((1, size), depth))

    def act(self, observations: np.ndarray) -> np.ndarray:
        return np.repeat(self._action, len(observations), axis=0)


def always(env: PromotionVectorEnv, share: float, depth: float) -> Always:
    return Always(share, depth, len(env.segments))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), budget_share=st.floats(0.01, 2.0), boldness=st.floats(0.0, 1.0))
def test_money_is_accounted_for_and_the_budget_never_passed(
    seed: int, budget_share: float, boldness: float
) -> None:
    env = PromotionVectorEnv(6, segments=made_up(3, 60), rules=Rules(horizon=8, budget_share=budget_share))
    env.reset(seed=seed)
    rng, spent, earned = np.random.default_rng(seed), np.zeros(6), np.zeros(6)
    for _ in range(8):
        actions = rng.uniform(-1 + boldness, 1, env.action_space.shape)
        observations, reward, _, _, info = env.step(actions)
        assert env.observation_space.contains(observations)
        assert (info["cost"] >= 0).all()
        spent += info["cost"]
        earned += info["margin"]
        np.testing.assert_allclose(reward, info["margin"] / env.budget)
    assert (spent <= env.budget * (1 + 1e-9)).all()
    np.testing.assert_allclose(env.left, env.budget - spent, atol=1e-6 * env.budget)


def test_a_day_is_the_markets_own_expectation() -> None:
    env = PromotionVectorEnv(2, rules=Rules(spread=0.0, budget_share=50.0))
    env.reset(seed=0)
    env.fatigue[:], env.stock[:] = 1.0, 0.3
    share, depth = np.full((2, 4), 0.5), np.full((2, 4), 0.2)
    info = env.step(encode(share, depth))[4]
    crowd = env.segments.crowd(np.arange(4))
    truth = crowd.contacted(np.full(4, 0.2), np.zeros(4), np.ones(4), np.full(4, 0.3))
    control = env.segments.users.organic * env.segments.users.basket * env.segments.users.margin_rate
    expected = 0.5 * (env.segments.size * (truth.margin - 1.0 - control)).sum()
    np.testing.assert_allclose(info["margin"], expected, rtol=1e-6)
    np.testing.assert_allclose(info["cost"], 0.5 * (env.segments.size * truth.cost).sum(), rtol=1e-6)
    np.testing.assert_allclose(env.fatigue, 0.8 * 1.5)
    np.testing.assert_allclose(env.stock, 0.9 * (0.3 + 0.5 * np.tile(truth.conversion, (2, 1))), rtol=1e-6)


def test_nothing_done_brings_nothing() -> None:
    env = PromotionVectorEnv(3)
    np.testing.assert_array_equal(returns_of(env, always(env, 0.0, 0.4), 0), 0.0)
    assert (env.fatigue < 0.01).all()


@pytest.mark.parametrize("name", ["fatigue", "stock"])
def test_fatigue_and_stock_take_from_what_comes_after(name: str) -> None:
    known = made_up(2, 60)
    free = replace(known, coefficients=replace(known.coefficients, **{name: 0.0}))
    last = []
    for own in (known, free):
        env = PromotionVectorEnv(4, segments=own, rules=Rules(spread=0.0, budget_share=50.0))
        env.reset(seed=1)
        action = always(env, 1.0, 0.3).act(np.zeros((4, 1)))
        last.append([env.step(action)[4]["margin"].mean() for _ in range(20)][-1])
    assert last[0] < 0.85 * last[1]


def test_more_contacts_are_not_always_better() -> None:
    env = PromotionVectorEnv(16, rules=Rules(budget_share=50.0))
    seldom, often = (returns_of(env, always(env, share, 0.0), 2).mean() for share in (0.5, 1.0))
    assert seldom > often > 0


def test_demand_does_not_depend_on_actions() -> None:
    env = PromotionVectorEnv(3)
    paths = []
    for share in (0.0, 1.0):
        env.reset(seed=4)
        action = always(env, share, 0.1).act(np.zeros((3, 1)))
        paths.append([env.demand.copy() for _ in range(5) if env.step(action)])
    np.testing.assert_array_equal(paths[0], paths[1])


def test_two_runs_of_one_seed_are_equal() -> None:
    envs = [PromotionVectorEnv(5) for _ in range(2)]
    policy = always(envs[0], 0.5, 0.1)
    returns_of(envs[0], policy, 7)  # a past must not show
    np.testing.assert_array_equal(*(returns_of(env, policy, 3) for env in envs))
    assert (returns_of(envs[0], policy, 3) != returns_of(envs[1], policy, 4)).all()


@given(st.lists(st.floats(0.03, 1.0), min_size=8, max_size=8))
def test_actions_are_coded_and_decoded(values: list[float]) -> None:
    share, depth = np.array(values[:4])[None], 0.4 * np.array(values[4:])[None]
    found = decode(encode(share, depth).astype(np.float64))
    np.testing.assert_allclose(found[0], share, atol=1e-6)
    np.testing.assert_allclose(found[1], np.where(depth < 0.02, 0.0, depth), atol=1e-6)


def test_the_myopic_allocator_is_the_best_of_a_day() -> None:
    """Of one day whose demand is as usual, no other plan of the grid within the day's budget brings more."""
    env = PromotionVectorEnv(1, rules=Rules(horizon=1, spread=0.0, budget_share=0.3))
    myopic = returns_of(env, Myopic(env.segments, env.rules), 0)[0]
    rng, best = np.random.default_rng(0), 0.0
    for _ in range(400):
        share, depth = rng.integers(0, 2, (1, 4)), rng.integers(0, 9, (1, 4)) * 0.05
        env.reset(seed=0)
        best = max(best, float(env.step(encode(share, depth))[1][0]))
    assert myopic > 0.97 * best
    assert env.left[0] >= 0


def test_no_policy_passes_the_bound_and_its_plan_is_near() -> None:
    env = PromotionVectorEnv(2, segments=made_up(4, 60), rules=Rules(horizon=10, budget_share=0.4))
    found = hindsight(env, 5)
    plan = returns_of(env, HindsightPlan(env, found), 5)
    myopic = returns_of(env, Myopic(env.segments, env.rules), 5)
    constants = [returns_of(env, always(env, s, d), 5) for s in (0.5, 1.0) for d in (0.05, 0.1, 0.2)]
    for other in (plan, myopic, *constants):
        assert (other <= found.bound * 1.005).all()
    assert plan.mean() > 0.95 * found.bound.mean()
    assert plan.mean() > myopic.mean()


def test_segments_of_a_world_are_its_users_in_groups(world: Path) -> None:
    users = load_world(world).population
    found = segments_of(world, 4, 0.5)
    assert found.size.sum() == len(users)
    assert (np.diff(found.users.sensitivity) > 0).all()
    weighted = (found.size * found.users.basket).sum() / found.size.sum()
    assert weighted == pytest.approx(users.basket.mean())
    env = PromotionVectorEnv(2, segments_of(world, 2, 0.5))
    assert env.action_space.shape == (2, 4)
    assert np.isfinite(returns_of(env, always(env, 0.5, 0.1), 0)).all()


def test_misuse_is_refused(world: Path) -> None:
    population, known = load_world(world).population, made_up(2, 60)
    with pytest.raises(ValueError, match="num_segments: 0 is outside"):
        split(population, known.intercepts, known.coefficients, 0)
    with pytest.raises(ValueError, match="spread: -1"):
        Rules(spread=-1.0)
    with pytest.raises(ValueError, match="budget_share: 0"):
        Rules(budget_share=0.0)
    with pytest.raises(ValueError, match="does not exist"):
        segments_of("none.npz", 2, 0.5)
    env = PromotionEnv(rules=Rules(horizon=1))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    with pytest.raises(ValueError, match="over after 1 days"):
        env.step(env.action_space.sample())
