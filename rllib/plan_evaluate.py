"""What policies bring on the same held-out episodes of a planning environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qiance.domain import Interval
from rllib.evaluate import choose, mean_interval
from rllib.lockstep import Floats, LockstepEnv
from rllib.tasks import Constant, Policy, Task

_SEMIFINAL = 8  # constants that are looked at closely


def returns_of(env: LockstepEnv, policy: Policy, seed: int) -> Floats:
    """Return of each of the episodes that `env.reset(seed=seed)` starts, `[n]`, in the environment's unit."""
    observations, _ = env.reset(seed=seed)
    total = np.zeros(env.num_envs)
    for _ in range(env.horizon):
        observations, rewards, *_ = env.step(policy.act(observations))
        total += rewards
    return total


def best_constant(task: Task, num_envs: int, seed: int) -> Constant:
    """The constant of the task's grid with the highest mean return.

    All are tried on an eighth of `num_envs` episodes, and the best eight again on all of them.
    """
    found = [Constant(task, dials) for dials in task.constants()]
    for size in (max(num_envs // 8, 1), num_envs):
        env = task.make(size)
        means = [returns_of(env, policy, seed).mean() for policy in found]
        found = [found[place] for place in np.argsort(means)[::-1][:_SEMIFINAL]]
    return found[0]


def compare(
    task: Task, policies: Mapping[str, Policy], num_envs: int, seeds: Sequence[int]
) -> dict[str, Floats]:
    """Returns by policy on the same episodes, `[len(seeds) · num_envs]` each."""
    env = task.make(num_envs)
    return {
        name: np.concatenate([returns_of(env, policy, seed) for seed in seeds])
        for name, policy in policies.items()
    }


def verdict(returns: Mapping[str, Floats]) -> tuple[str, str, Interval]:
    """Which policy is kept, the best rule beside `learned`, and what learned brings more than it (paired)."""
    rule = max((name for name in returns if name != "learned"), key=lambda name: returns[name].mean())
    return choose(dict(returns)), rule, mean_interval(returns["learned"] - returns[rule])
