from __future__ import annotations

import shutil
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from qiance.decide.pacing import Constant, EvenPace
from qiance.market import ActionTable, Market
from rllib.against import SCALE, AgainstRuleEnv
from rllib.env import PacingEnv
from rllib.evaluate import episode_returns
from rllib.world import Campaign, load_world, save_world


@pytest.fixture
def env(world: Path) -> PacingEnv:
    return PacingEnv({"world": str(world)})


def roll(env: PacingEnv, seed: int, actions: np.ndarray) -> tuple[np.ndarray, list[float], list[dict]]:
    observation, _ = env.reset(seed=seed)
    seen, rewards, infos = [observation], [], []
    for action in actions:
        observation, reward, over, cut, info = env.step(np.array([action], dtype=np.float32))
        seen.append(observation)
        rewards.append(reward)
        infos.append(info)
        assert not cut
    assert over
    return np.stack(seen), rewards, infos


@pytest.mark.parametrize("kind", [PacingEnv, AgainstRuleEnv])
def test_environment_passes_the_checker_of_gymnasium(kind: type[PacingEnv], world: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It asks for the registry's copy, which an environment made by hand has not.
        warnings.filterwarnings("ignore", message=".*spec.*")
        check_env(kind({"world": str(world), "gain": 2.0}), skip_render_check=True)


@pytest.mark.parametrize("kind", [PacingEnv, AgainstRuleEnv])
def test_two_runs_of_one_seed_are_equal(kind: type[PacingEnv], world: Path) -> None:
    actions = np.random.default_rng(3).uniform(-1, 1, 10)
    first, second = (kind({"world": str(world), "gain": 2.0}) for _ in range(2))
    roll(first, 99, actions)  # a past must not show
    a, b = roll(first, 5, actions), roll(second, 5, actions)
    np.testing.assert_array_equal(a[0], b[0])
    assert a[1:] == b[1:]
    assert a[1] != roll(second, 6, actions)[1]


def test_observations_and_rewards_are_what_they_say(env: PacingEnv) -> None:
    seen, rewards, infos = roll(env, 1, np.full(10, -0.2))
    assert all(env.observation_space.contains(row) for row in seen)
    np.testing.assert_allclose(seen[:, 0], np.linspace(1, 0, 11), atol=1e-6)
    left = 1 - np.cumsum([info["cost"] for info in infos]) / env.campaign.budget
    np.testing.assert_allclose(seen[1:, 1], left, atol=1e-6)
    np.testing.assert_allclose(seen[1:, 5], -0.2, atol=1e-6)
    np.testing.assert_allclose(rewards, [info["margin"] / env.campaign.budget for info in infos])


@pytest.mark.parametrize("seed", range(5))
def test_spending_never_passes_the_cap(env: PacingEnv, seed: int) -> None:
    _, rewards, infos = roll(env, seed, np.full(10, -1.0))
    spent = sum(info["cost"] for info in infos)
    assert spent <= env.campaign.budget * (1 + 1e-9)
    assert spent > 0.95 * env.campaign.budget, "the cheapest price must exhaust the budget"
    last = infos[-1]
    assert last["arrivals"] > 0
    assert (last["contacts"], last["margin"], last["cost"], rewards[-1]) == (0, 0.0, 0.0, 0.0)


def test_a_higher_price_spends_less(env: PacingEnv) -> None:
    costs = [roll(env, 4, np.full(10, a))[2][0]["cost"] for a in (-1.0, 0.0, 1.0)]
    assert costs[0] > costs[1] > costs[2] > 0


def test_contacts_tire_users(world: Path) -> None:
    env = PacingEnv({"world": str(world)})
    env.reset(seed=0)
    users = np.arange(len(env._world.value))
    choice = np.full(users.size, 1)
    before = env._market.truth(users, env._world.table, choice)
    for _ in range(5):
        env._remember(users, choice, env._market.truth(users, env._world.table, choice))
    after = env._market.truth(users, env._world.table, choice)
    assert after.induced.mean() < 0.9 * before.induced.mean()
    env.reset(seed=0)
    again = env._market.truth(users, env._world.table, choice)
    np.testing.assert_array_equal(again.induced, before.induced)


def test_greed_is_not_the_best(world: Path) -> None:
    greedy, price, paced = (
        episode_returns(world, policy, range(12)).mean()
        for policy in (Constant(1 / 3), Constant(1.0), EvenPace(2.0))
    )
    assert greedy < price < paced


def test_traffic_does_not_depend_on_actions(env: PacingEnv) -> None:
    arrivals = [[i["arrivals"] for i in roll(env, 8, np.full(10, a))[2]] for a in (-1.0, 1.0)]
    assert arrivals[0] == arrivals[1]


def test_reward_against_the_same_rule_is_zero(world: Path) -> None:
    env = AgainstRuleEnv({"world": str(world), "gain": 2.0})
    rule = EvenPace(2.0)
    observation, _ = env.reset(seed=1)
    for _ in range(10):
        action = np.log(rule.multiplier(observation)) / np.log(3.0)
        observation, reward, _, _, _ = env.step(np.array([action], dtype=np.float32))
        # Actions are float32: a user at the very edge may be decided otherwise.
        assert abs(reward) < 0.05
    dear = roll(env, 1, np.full(10, 1.0))
    plain = roll(PacingEnv({"world": str(world)}), 1, np.full(10, 1.0))
    assert sum(dear[1]) < -0.05 * SCALE * sum(plain[1])


def test_unusual_campaigns_run(market: Market, table: ActionTable, tmp_path: Path) -> None:
    zeros = np.zeros((len(market.population), len(table)))
    campaign = Campaign(1, 1.0, arrivals_per_day=1e-9, horizon_days=1, epsilon=1.0)
    env = PacingEnv({"world": str(save_world(tmp_path / "w.npz", market, table, zeros, zeros, campaign))})
    seen, rewards, infos = roll(env, 0, np.zeros(1))
    assert np.isfinite(seen).all()
    assert rewards == [0.0]
    assert infos[0]["arrivals"] == 0
    crowd = Campaign(1_000, 1.0, arrivals_per_day=1e6, horizon_days=2)
    env = PacingEnv({"world": str(save_world(tmp_path / "c.npz", market, table, zeros, zeros, crowd))})
    assert roll(env, 0, np.zeros(2))[2][0]["arrivals"] == len(market.population)


def test_misuse_is_refused(env: PacingEnv, world: Path) -> None:
    with pytest.raises(ValueError, match="'world' is missing"):
        PacingEnv({})
    with pytest.raises(ValueError, match="'gain' is missing"):
        AgainstRuleEnv({"world": str(world)})
    with pytest.raises(ValueError, match="no episode has been started"):
        AgainstRuleEnv({"world": str(world), "gain": 1.0}).step(np.zeros(1, dtype=np.float32))
    with pytest.raises(ValueError, match="action: is NaN"):
        env.step(np.array([np.nan], dtype=np.float32))
    roll(env, 0, np.zeros(10))
    with pytest.raises(ValueError, match="over after 10 days"):
        env.step(np.zeros(1, dtype=np.float32))


def test_a_day_is_quick(env: PacingEnv) -> None:
    """400 users × 16 actions: 2 ms at most; the best of many days, since the machine may be shared."""
    assert env._world.value.shape == (400, 16)
    best = np.inf
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(10):
            started = time.perf_counter()
            env.step(np.zeros(1, dtype=np.float32))
            best = min(best, time.perf_counter() - started)
    assert best < 2e-3


def test_vectorised_by_gymnasium(world: Path) -> None:
    envs = gymnasium.vector.SyncVectorEnv([lambda: PacingEnv({"world": str(world)})] * 2)
    observations, _ = envs.reset(seed=[0, 1])
    assert observations.shape == (2, 6)


def test_world_repeats_the_market(market: Market, table: ActionTable, tmp_path: Path) -> None:
    users = np.array([3, 1, 399, 12])
    grid = np.zeros((4, len(table)))
    campaign = Campaign(5_000, 0.7, 2.0, 7, 0.1, 0.0)
    path = save_world(tmp_path / "w.npz", market, table, grid, grid, campaign, users=users)
    world = load_world(path)
    assert world.campaign == campaign
    copy, choice = world.market(), np.array([1, 5, 15, 0])
    mine = copy.truth(np.arange(4), world.table, choice)
    theirs = market.truth(users, table, choice)
    for name in ("click", "organic", "induced", "sales", "margin", "cost"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    copy.fatigue += 1
    assert world.market().fatigue.sum() == 0, "markets of one world share no state"
    assert b"u399" not in path.read_bytes()


def test_bad_worlds_are_refused(market: Market, table: ActionTable, tmp_path: Path, world: Path) -> None:
    good = np.zeros((len(market.population), len(table)))
    campaign = Campaign(1_000, 1.0, 10.0)
    with_nan, negative = good.copy(), good.copy()
    with_nan[2, 3], negative[1, 1] = np.nan, -1.0
    closed = np.zeros(good.shape, dtype=bool)
    no_control = market.table(table.actions[1:])
    cases = [
        ((table, good[:, :3], good), {}, r"value: shape is \[400, 3\]; must be users × actions, \[400, 16\]"),
        ((table, with_nan, good), {}, "value: holds NaN"),
        ((table, good, negative), {}, "cost: -1.0 is negative"),
        ((table, good, good), {"admissible": closed}, "admissible: must be bool, and True for control"),
        ((table, good[:0], good[:0]), {"users": np.arange(0)}, "users: is empty"),
        ((no_control, good[:, 1:], good[:, 1:]), {}, "first action must be control"),
    ]
    for (actions, value, cost), more, message in cases:
        with pytest.raises(ValueError, match=message):
            save_world(tmp_path / "x.npz", market, actions, value, cost, campaign, **more)
    with pytest.raises(ValueError, match="does not exist; write it with"):
        load_world(tmp_path / "none.npz")
    broken = tmp_path / "broken.npz"
    for content in (b"", b"not a zip", world.read_bytes()[:5_000]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="is not a world"):
            load_world(broken)
    np.savez(broken, value=good)
    with pytest.raises(ValueError, match="is not a world"):
        load_world(broken)
    shutil.copy(world, broken)
    load_world(broken)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("budget", 0, "budget: 0 is less than 1"),
        ("shadow_price", 0.0, "shadow_price: 0.0 is not a positive number; a price of 0 means"),
        ("arrivals_per_day", -1.0, "arrivals_per_day: -1.0"),
        ("horizon_days", 0, "horizon_days: 0"),
        ("epsilon", 1.5, "epsilon: 1.5 is outside"),
        ("traffic_spread", -0.1, "traffic_spread: -0.1 is outside"),
    ],
)
def test_bad_campaigns_are_refused(field: str, value: float, message: str) -> None:
    good = {"budget": 100, "shadow_price": 1.0, "arrivals_per_day": 10.0}
    with pytest.raises(ValueError, match=message):
        Campaign(**(good | {field: value}))  # type: ignore[arg-type]
