"""The environments that can be planned in: how a network sees them, and the rules that it must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rllib.lockstep import Floats, Floats32, Info, LockstepEnv
from rllib.myopic import Myopic, Steer
from rllib.promotion import PromotionVectorEnv, Rules
from rllib.sales import COUPONS, DEEPEST, SEEN_DAYS, SHALLOWEST, SalesVectorEnv
from rllib.segments import FATIGUE, NUM_SEGMENTS, segments_of

# Grids of constants that a policy must beat.
_COUPONS, _FACTORS = (2, 3, COUPONS), np.arange(DEEPEST, SHALLOWEST + 0.001, 0.01)
_CAPS, _STEERS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0), (-0.3, 0.0, 0.3)


class Policy(Protocol):
    """Whatever acts: a network, a rule, a constant."""

    def act(self, observations: Floats32) -> Floats32:
        """Actions `[n, k]` of the environment for its observations `[n, d]`; no state, no chance."""
        ...


class Task(Protocol):
    """An environment as training sees it.

    num_actions: a network answers with so many numbers in [−1, 1], its dials. scale: rewards are multiplied
    by it, so that returns are of the order of 1 to 10. log_std: of the dials when PPO starts.
    """

    name: str
    num_actions: int
    scale: float
    log_std: float

    def make(self, num_envs: int) -> LockstepEnv:
        """The environment."""
        ...

    def features(self, observations: Floats32) -> Floats32:
        """What the network sees, `[n, f]` of about [−1, 1], of observations `[n, d]` and nothing else."""
        ...

    def act(self, observations: Floats32, dials: Floats32) -> Floats32:
        """Actions of the environment for dials `[n, k]`; what is outside [−1, 1] is clipped."""
        ...

    def rules(self) -> dict[str, Policy]:
        """Rules that are known to work, by name; constants apart."""
        ...

    def constants(self) -> Floats32:
        """Dials to try as constants, `[m, k]`."""
        ...


@dataclass(frozen=True, eq=False)
class Constant:
    """The same dials `[k]` for everybody on every day."""

    task: Task
    dials: Floats32

    def act(self, observations: Floats32) -> Floats32:
        """The task's actions for them."""
        return self.task.act(observations, np.tile(self.dials, (len(observations), 1)))


class SalesTask:
    """`SalesVectorEnv`; what a network sees is made of the agent's four numbers alone.

    Dials: number of coupons and price factor, linear. PPO explores widely, since what is good for one user
    lies far from what is good for another, with worse between them.
    """

    name, num_actions, scale, log_std = "sales", 2, 0.01, 0.0

    def __init__(self, data: str) -> None:
        self._data = data
        self._low, self._high = np.array([0.0, DEEPEST]), np.array([COUPONS, SHALLOWEST])

    def make(self, num_envs: int) -> LockstepEnv:
        """The environment of `num_envs` users."""
        return SalesVectorEnv(num_envs, self._data)

    def features(self, observations: Floats32) -> Floats32:
        """Orders, order rate, fee, days gone by (total ÷ rate tells them), and the weekday as seven flags."""
        total, rate, fee, weekday = observations.T.astype(np.float64)
        days = np.divide(total, rate, out=np.full(len(total), float(SEEN_DAYS)), where=rate > 0)
        flags = np.eye(7)[np.rint(weekday).astype(np.int64) % 7]
        gone = np.clip(days / 15.0 - 5.0, -1.0, 1.0)
        columns = [np.log1p(total) / 5.0, rate - 0.5, np.sqrt(fee) / 5.0 - 0.5, gone]
        return np.hstack([np.stack(columns, axis=1), flags]).astype(np.float32)

    def act(self, observations: Floats32, dials: Floats32) -> Floats32:
        """Coupons in [0, 5] and price factors in [0.6, 0.95]."""
        share = 0.5 * (np.clip(dials, -1.0, 1.0) + 1.0)
        return np.asarray(self._low + share * (self._high - self._low), dtype=np.float32)

    def rules(self) -> dict[str, Policy]:
        """None but constants: what a myopic rule would need, the response, is not known."""
        return {}

    def constants(self) -> Floats32:
        """No coupon; one with any price factor in hundredths; several in steps of a twentieth."""
        grid = [(0, DEEPEST), *((1, d) for d in _FACTORS), *((n, d) for n in _COUPONS for d in _FACTORS[::5])]
        share = (np.array(grid) - self._low) / (self._high - self._low)
        return np.asarray(2.0 * share - 1.0, dtype=np.float32)


class PromotionTask:
    """`PromotionVectorEnv`; its observations are features already.

    Dials: those of the myopic allocator (`rllib.myopic.Steer`), for each segment the cap on the share
    contacted and a factor on the shadow price, and the pace of the budget. So a policy is about what the
    allocator does not see, the days that follow.

    world: file of `rllib.world.save_world`, None for a made-up population. rules: of `Rules`, by name.
    """

    name, scale, log_std = "promotion", 1.0, -1.5

    def __init__(
        self,
        world: str | None = None,
        num_segments: int = NUM_SEGMENTS,
        fatigue: float = FATIGUE,
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        self._segments = segments_of(world, num_segments, fatigue)
        self._rules = Rules(**(rules or {}))
        self._myopic = Myopic(self._segments, self._rules)
        self.num_actions = 2 * num_segments + 1

    def make(self, num_envs: int) -> PromotionVectorEnv:
        """The environment of `num_envs` campaigns."""
        return PromotionVectorEnv(num_envs, self._segments, self._rules)

    def features(self, observations: Floats32) -> Floats32:
        """The observations."""
        return observations

    def act(self, observations: Floats32, dials: Floats32) -> Floats32:
        """What the allocator does with such dials."""
        return self._myopic.steered(
            observations, Steer.from_unit(np.clip(dials, -1.0, 1.0).astype(np.float64))
        )

    def rules(self) -> dict[str, Policy]:
        """The myopic allocator, left alone."""
        return {"myopic": self._myopic}

    def constants(self) -> Floats32:
        """Caps × price factors × paces, the same in all segments."""
        size = len(self._segments)
        grid = [
            [2 * cap - 1] * size + [price] * size + [pace]
            for cap in _CAPS
            for price in _STEERS
            for pace in _STEERS
        ]
        return np.array(grid, dtype=np.float32)


class TrainingEnv(VectorEnv[Floats32, Floats32, Floats]):
    """A task as a network meets it: its features, actions in Box(−1, 1), rewards scaled.

    config: `{"task": Task, "num_envs": episodes side by side, 1 if missing}`, as RLlib hands it over.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, config: Mapping[str, Any]) -> None:
        task, num_envs = config["task"], int(config.get("num_envs", 1))
        self.task, self.env, self.num_envs = task, task.make(num_envs), num_envs
        seen = task.features(np.zeros((1, *self.env.single_observation_space.shape), dtype=np.float32))
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.num_actions,), np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-10.0, 10.0, seen.shape[1:], np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats32, Info]:
        """As the environment's."""
        self._seen, info = self.env.reset(seed=seed, options=options)
        return self.task.features(self._seen), info

    def step(self, actions: Floats32) -> tuple[Floats32, Floats, NDArray[np.bool_], NDArray[np.bool_], Info]:
        """As the environment's, for dials."""
        self._seen, rewards, ended, cut, info = self.env.step(self.task.act(self._seen, actions))
        return self.task.features(self._seen), self.task.scale * rewards, ended, cut, info


def task_of(settings: Mapping[str, Any]) -> Task:
    """The task of `{"environment": name, ...its arguments}`; ValueError names what is unknown."""
    arguments = dict(settings)
    name = arguments.pop("environment", None)
    kinds = {"sales": SalesTask, "promotion": PromotionTask}
    if name not in kinds:
        raise ValueError(f"environment: {name!r} is none of {', '.join(kinds)}")
    try:
        return kinds[name](**arguments)
    except TypeError as error:
        raise ValueError(f"environment {name}: {error}") from None
