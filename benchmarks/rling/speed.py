"""Steps of environments per second: vectorised against one user and one day at a time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import alternate, median_of
from benchmarks.rling.plain import PlainSales
from rllib.lockstep import LockstepEnv
from rllib.promotion import PromotionVectorEnv
from rllib.sales import DAYS, SalesVectorEnv
from rllib.sales_users import load_users

REPEATS = 5


def sales_speed(data: Path, num_envs: int, num_plain: int) -> dict[str, float]:
    """Median steps a second of both, in turns; the same constant action."""
    env, plain = SalesVectorEnv(num_envs, data), PlainSales(load_users(data))
    times = alternate({"ours": lambda: _episode(env), "plain": lambda: _alone(plain, num_plain)}, REPEATS)
    ours, theirs = median_of(times["ours"]), median_of(times["plain"])
    return {"ours": num_envs * DAYS / ours, "plain": num_plain * DAYS / theirs}


def promotion_speed(num_envs: int) -> float:
    """Median steps a second of the promotion environment."""
    env = PromotionVectorEnv(num_envs)
    times = alternate({"ours": lambda: _episode(env)}, REPEATS)
    return num_envs * env.horizon / median_of(times["ours"])


def _episode(env: LockstepEnv) -> None:
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = env.action_space.sample()
    for _ in range(env.horizon):
        env.step(actions)


def _alone(env: PlainSales, number: int) -> None:
    for seed in range(number):
        env.reset(seed)
        ended = False
        while not ended:
            _, _, ended, _, _ = env.step((1 + seed % 3, 0.6 + 0.05 * (seed % 8)))
