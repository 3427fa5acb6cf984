"""Policies that explore with known propensities: what makes a log that others can be judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np

from rllib.lockstep import Floats, Floats32
from rllib.plan_log import PlanningLog
from rllib.policies import Network
from rllib.tasks import Constant, Dials, Task

# By environment: standard deviation of dials that are numbers, or the share of days with a random choice.
EXPLORE = {"promotion": 0.3, "sales": 0.2}


@dataclass(frozen=True, eq=False)
class Exploring:
    """`policy` with chance.

    explore: where dials are numbers, the standard deviation of a normal distribution around the policy's,
    each number on its own; they are logged as drawn, and those outside [−1, 1] do what the nearest end does.
    Where dials are a choice, the probability that one is drawn, all with the same chance.
    """

    task: Task
    policy: Constant | Network
    explore: float

    def __post_init__(self) -> None:
        most = np.inf if self._numbers else 1.0
        if not 0 < self.explore <= most or not np.isfinite(self.explore):
            what = "a positive number" if self._numbers else "in (0, 1]"
            raise ValueError(f"explore: {self.explore} must be {what}; without chance nothing can be judged")

    @property
    def _numbers(self) -> bool:
        return isinstance(self.task.dials, gymnasium.spaces.Box)

    def draw(self, observations: Floats32, rng: np.random.Generator) -> Dials:
        """Dials `[n, k]` or `[n]`."""
        wanted = self.policy.choose(observations)
        if self._numbers:
            return np.asarray(wanted + self.explore * rng.standard_normal(wanted.shape))
        number = self.task.dials.n  # type: ignore[union-attr]
        drawn = rng.integers(0, number, len(wanted))
        return np.where(rng.random(len(wanted)) < self.explore, drawn, wanted)

    def log_propensity(self, observations: Floats32, dials: Dials) -> Floats:
        """`[n]` natural logarithm of the density or probability of `dials`."""
        wanted = self.policy.choose(observations)
        if self._numbers:
            z = (dials - wanted) / self.explore
            size = z.shape[1] * (np.log(self.explore) + 0.5 * np.log(2 * np.pi))
            return np.asarray(-0.5 * np.square(z).sum(axis=1) - size)
        share = self.explore / self.task.dials.n  # type: ignore[union-attr]
        kept = np.maximum(1.0 - self.explore, 0.0) * (dials == wanted)
        return np.asarray(np.log(kept + share))

    def chances(self, observations: Floats32) -> Floats:
        """`[n, m]` probability of each choice; only where dials are a choice."""
        number = self.task.dials.n  # type: ignore[union-attr]
        wanted = np.eye(number)[self.policy.choose(observations).astype(np.int64)]
        return np.asarray((1.0 - self.explore) * wanted + self.explore / number)


def record(
    running: Exploring, episodes: int, seed: int, tell: Callable[[float, str], None] | None = None
) -> PlanningLog:
    """Live `episodes` of the environment under `running`, side by side, and log them."""
    task, env = running.task, running.task.make(episodes)
    rng = np.random.default_rng([seed, 1])  # not the environment's own stream
    seen, _ = env.reset(seed=seed)
    kept: list[tuple[Floats32, Dials, Floats, Floats]] = []
    for day in range(env.horizon):
        dials = running.draw(seen, rng)
        propensity = np.exp(running.log_propensity(seen, dials))
        following, rewards, *_ = env.step(task.act(seen, dials))
        kept.append((seen, dials, propensity, rewards))
        seen = following
        if tell is not None:
            tell((day + 1) / env.horizon, f"day {day + 1} of {env.horizon}")
    observation, dials, propensity, reward = (np.stack(x, axis=1) for x in zip(*kept, strict=True))
    names = np.array([f"{seed}-{n}" for n in range(episodes)])
    length = np.full(episodes, env.horizon)
    return PlanningLog(names, observation, dials, propensity, reward, length, running.explore)
