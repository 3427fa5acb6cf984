"""What pacing policies bring on the same episodes, and which of them is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.decide.pacing import LIMIT, Constant, EvenPace, PacingPolicy
from qiance.domain import Interval
from qiance.evaluate import ab
from rllib.env import PacingEnv

Floats = NDArray[np.float64]
CONFIDENCE = 0.9
MULTIPLIERS = tuple(float(LIMIT**x) for x in (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0))
GAINS = (0.5, 1.0, 2.0, 4.0)


def episode_returns(world: Path, policy: PacingPolicy, seeds: Sequence[int]) -> Floats:
    """True incremental margin of an episode per seed, `[len(seeds)]`, minor units; deterministic."""
    env = PacingEnv({"world": str(world)})
    return np.array([_episode(env, policy, seed) for seed in seeds])


def tuned_baselines(world: Path, seeds: Sequence[int]) -> dict[str, Constant | EvenPace]:
    """The best constant of `MULTIPLIERS` and the best controller of `GAINS` on the episodes of `seeds`.

    What a trained policy must beat is a rule set with the same knowledge, not one left at its default.
    """

    def best(policies: Sequence[Any]) -> Any:
        return max(policies, key=lambda policy: episode_returns(world, policy, seeds).mean())

    return {
        "constant": best([Constant(min(value, LIMIT)) for value in MULTIPLIERS]),
        "even_pace": best([EvenPace(gain) for gain in GAINS]),
    }


def choose(returns: dict[str, Floats]) -> str:
    """Name of the policy to keep, from returns on the same episodes, `[n]` each.

    The rule with the highest mean stays unless `learned` beats it: the lower end of the 90 % Student-t
    interval of the paired differences must be above 0.
    """
    rule = max((name for name in returns if name != "learned"), key=lambda name: returns[name].mean())
    gain = mean_interval(returns["learned"] - returns[rule])
    return "learned" if gain.low > 0 else rule


def mean_interval(x: Floats) -> Interval:
    """Mean of `[n]` with its 90 % Student-t interval; n ≥ 2."""
    return ab.mean_interval(x, CONFIDENCE)


def _episode(env: PacingEnv, policy: PacingPolicy, seed: int) -> float:
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        observation, _, over, _, info = env.run_day(policy.multiplier(observation))
        total += info["margin"]
    return total
