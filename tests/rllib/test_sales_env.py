from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from sales_cases import PUBLISHED, random_states, write_users

import rllib
from benchmarks.rling.plain import PlainSales, live
from rllib.sales import (
    SCALE,
    SalesEnv,
    SalesVectorEnv,
    moved_by_discount,
    moved_by_weekday,
    remember,
    settled,
)
from rllib.sales_users import load_users


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_users(tmp_path_factory.mktemp("users"))


def roll(env: SalesVectorEnv, seed: int, action: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    env.reset(seed=seed)
    actions = np.tile(np.float32(action), (env.num_envs, 1))
    rewards, seen = [], []
    for _ in range(env.horizon):
        observations, reward, *_ = env.step(actions)
        rewards.append(reward)
        seen.append(observations)
    return np.array(rewards), np.array(seen)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published user model is not here")
@pytest.mark.parametrize(
    ("action", "published"),
    [
        ((0, 0.8), (454.5, 455.6, 453.9)),
        ((1, 0.6), (930.1, 934.0, 931.9)),
        pytest.param((1, 0.95), (835.3,), marks=pytest.mark.slow),
        pytest.param((2, 0.95), (826.1,), marks=pytest.mark.slow),
        ((5, 0.6), (293.6,)),
    ],
)
def test_returns_are_those_that_are_known_of_the_published_users(
    action: tuple[float, float], published: tuple[float, ...]
) -> None:
    """30-day returns of constants; a run of 10,000 users has a standard deviation of 2 to 4."""
    env = SalesVectorEnv(10_000, PUBLISHED)
    found = roll(env, 0, action)[0].sum(axis=0).mean()
    assert found == pytest.approx(np.mean(published), rel=0.012)


class Fixed:
    """A generator whose draws are all the same, so that their order does not matter."""

    def __init__(self, uniform: float, normal: float) -> None:
        self.uniform, self.normal = uniform, normal

    def random(self, size=None):
        return self.uniform if size is None else np.full(size, self.uniform)

    def standard_normal(self, size=None):
        return self.normal if size is None else np.full(size, self.normal)


@settings(max_examples=60, deadline=None)
@given(
    uniform=st.floats(0, 0.999),
    normal=st.floats(-3, 3),
    coupons=st.integers(0, 5),
    factor=st.sampled_from([0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 0.95]),
    seed=st.integers(0, 10_000),
)
def test_days_are_those_of_the_rules_in_plain_python(
    uniform: float, normal: float, coupons: int, factor: float, seed: int
) -> None:
    rng, draws = np.random.default_rng(seed), Fixed(uniform, normal)
    size = 50
    states = random_states(size, rng) * SCALE
    orders = rng.choice([0, 1, 2, 6], size).astype(np.float64)
    fee = np.where(orders > 0, rng.uniform(0.05, 100, size), 0.0)
    given_off = 1.0 - factor if coupons else 0.0
    plain = [row.tolist() for row in states]
    expected = [
        live(s, coupons, given_off, int(o), float(f), draws)
        for s, o, f in zip(plain, orders, fee, strict=True)
    ]
    state, offered, off = states.T.copy(), np.full(size, float(coupons)), np.full(size, given_off)
    orders = moved_by_weekday(orders, state[15], draws)
    orders = moved_by_discount(orders, offered, off, state[14], draws)
    orders, fee = settled(orders, fee, state[5:10], draws)
    used = np.minimum(orders, offered)
    remember(state, orders, fee, np.where(used > 0, off, 0.4))
    np.testing.assert_allclose(np.stack([orders, fee], axis=1), [row[:2] for row in expected], rtol=1e-9)
    np.testing.assert_allclose(orders * fee - 2 * off * used * fee, [row[2] for row in expected], atol=1e-9)
    np.testing.assert_allclose(state.T, plain, rtol=1e-9, atol=1e-9)


def test_networks_answer_alike_in_plain_python(data: Path) -> None:
    users, total = load_users(data), 0.0
    vector = roll(SalesVectorEnv(200, data), 0, (1, 0.8))[0].sum(axis=0)
    plain = PlainSales(users)
    for seed in range(200):
        plain.reset(seed)
        total += sum(plain.step((1, 0.8))[1] for _ in range(30)) / 200
    error = vector.std() / np.sqrt(200)
    assert abs(vector.mean() - total) < 5 * error


@pytest.mark.parametrize("name", ["SalesPromotion", "Promotion"])
def test_registered_and_checked(name: str, data: Path) -> None:
    rllib.register()
    arguments = {"data": str(data)} if name == "SalesPromotion" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Coupons and price factors are in their own units, as in the benchmark.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        env = gymnasium.make(f"qiance/{name}-v0", **arguments)
        check_env(env.unwrapped, skip_render_check=True)
    envs = gymnasium.make_vec(
        f"qiance/{name}-v0", num_envs=7, vectorization_mode="vector_entry_point", **arguments
    )
    observations, _ = envs.reset(seed=3)
    assert envs.observation_space.contains(observations)
    observations, rewards, ended, cut, info = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observations)
    assert rewards.shape == ended.shape == cut.shape == (7,)
    assert all(len(values) == 7 for values in info.values())


def test_two_runs_of_one_seed_are_equal(data: Path) -> None:
    first, second = (SalesVectorEnv(20, data) for _ in range(2))
    roll(first, 9, (2, 0.7))  # a past must not show
    a, b = roll(first, 5, (1, 0.7)), roll(second, 5, (1, 0.7))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert (a[0] != roll(second, 6, (1, 0.7))[0]).any()


def test_observations_are_running_means_of_what_was_bought(data: Path) -> None:
    env = SalesVectorEnv(50, data)
    start, _ = env.reset(seed=1)
    orders, fees = np.zeros(50), np.zeros(50)
    for _ in range(30):
        observations, reward, _, _, info = env.step(np.tile(np.float32([2, 0.7]), (50, 1)))
        orders += np.clip(info["orders"], 0, 6)
        fees += np.clip(info["fee"], 0, 100)
        assert (info["orders"] >= 0).all()
        np.testing.assert_allclose(reward, info["orders"] * info["fee"] - 2 * info["discount"], atol=1e-9)
        assert (info["discount"] <= 0.3 * info["orders"] * info["fee"] + 1e-4).all()
    np.testing.assert_allclose(observations[:, 0], start[:, 0] + orders, rtol=1e-5)
    np.testing.assert_allclose(observations[:, 1], (start[:, 1] * 60 + orders) / 90, rtol=1e-5)
    np.testing.assert_allclose(observations[:, 2], (start[:, 2] * 60 + fees) / 90, rtol=1e-5)
    assert (observations[:, 3] == (1 + 30) % 7).all()


def test_whoever_took_a_discount_waits_for_one(data: Path) -> None:
    """Without coupons a user who once accepted 10 % buys less than one who never did."""
    n = 4_000
    orders, none = np.full(n, 4.0), np.zeros(n)
    rng = np.random.default_rng(0)
    spoilt = moved_by_discount(orders, none, none, np.full(n, 0.2), rng)
    fresh = moved_by_discount(orders, none, none, np.full(n, 0.1), rng)
    assert (spoilt == 1).all()
    assert fresh.mean() == pytest.approx(3.75, abs=0.05)


def test_the_step_after_the_end_starts_anew(data: Path) -> None:
    env = SalesVectorEnv(4, data, horizon=2)
    env.reset(seed=0)
    action = env.action_space.sample()
    assert not env.step(action)[2].any()
    assert env.step(action)[2].all()
    observations, rewards, ended, *_ = env.step(action)
    assert not ended.any()
    assert not rewards.any()
    assert (observations[:, 3] == 1).all()


def test_users_are_read_as_they_are_published(data: Path, tmp_path: Path) -> None:
    with np.load(data / "user_model.npz") as arrays:
        torch.save(
            {name: torch.from_numpy(arrays[name]) for name in arrays.files}, tmp_path / "user_model.pt"
        )
    with pytest.raises(ValueError, match=r"has no test_initial_states_10000_people\.npy"):
        SalesVectorEnv(2, tmp_path)
    with np.load(data / "initial_states.npz") as states:
        np.save(tmp_path / "test_initial_states_10000_people.npy", states["internal_states"])
        np.save(tmp_path / "evaluation_init_obs.npy", states["agent_obs"])
    ours, published = SalesVectorEnv(50, data), SalesVectorEnv(50, tmp_path)
    offer = np.tile([1.0, 0.8], (50, 1))
    for env in (ours, published):
        env.reset(seed=3)
    for _ in range(3):
        np.testing.assert_array_equal(ours.step(offer)[0], published.step(offer)[0])
    torch.save({"not": pickle.PickleBuffer}, tmp_path / "user_model.pt")
    with pytest.raises(ValueError, match="holds no users"):
        SalesVectorEnv(2, tmp_path)


def test_misuse_is_refused(data: Path, tmp_path: Path) -> None:
    env = SalesVectorEnv(2, data)
    with pytest.raises(ValueError, match="no episode has been started"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions: shape is \[2\]; must be \[2, 2\]"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="actions: row 1 is NaN"):
        env.step(np.array([[1, 0.8], [np.nan, 0.8]]))
    with pytest.raises(ValueError, match="num_envs: 0 is less than 1"):
        SalesVectorEnv(0, data)
    alone = SalesEnv(data, horizon=1)
    alone.reset(seed=0)
    alone.step(np.array([1, 0.8], dtype=np.float32))
    with pytest.raises(ValueError, match="the episode is over after 1 days"):
        alone.step(np.array([1, 0.8], dtype=np.float32))
    with pytest.raises(ValueError, match=r"has no user_model\.npz"):
        SalesVectorEnv(2, tmp_path)
    shutil.copy(data / "user_model.npz", tmp_path)
    with pytest.raises(ValueError, match=r"has no initial_states\.npz"):
        SalesVectorEnv(2, tmp_path)
    np.savez(tmp_path / "initial_states.npz", internal_states=np.zeros((3, 4)), agent_obs=np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"must be \[U, 18\]"):
        SalesVectorEnv(2, tmp_path)
    (tmp_path / "user_model.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no users"):
        SalesVectorEnv(2, tmp_path)
