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

Dials = NDArray[np.floating] | NDArray[np.integer]
# What may be offered in `sales`: nothing, or a number of coupons with a price factor.
_FACTORS, _FEWER = np.linspace(DEEPEST, SHALLOWEST, 8), (0.6, 0.65, 0.8, 0.95)
OFFERS = np.array(
    [(0, SHALLOWEST), *((1, d) for d in _FACTORS), *((n, d) for n in (2, 3, COUPONS) for d in _FEWER)],
    dtype=np.float32,
)
# Grids of constants that a policy in `promotion` must beat.
_CAPS, _STEERS = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0), (-0.3, 0.0, 0.3)


class Policy(Protocol):
    """Whatever acts: a network, a rule, a constant."""

    def act(self, observations: Floats32) -> Floats32:
        """Actions `[n, k]` of the environment for its observations `[n, d]`; no state, no chance."""
        ...


class Task(Protocol):
    """An environment as training sees it.

    dials: what a policy sets, numbers in Box(−1, 1) or one of several choices. scale: rewards are multiplied
    by it, so that returns are of the order of 1 to 10. explore: how PPO starts, logarithm of the
    standard deviation of numbers, or log-odds of the starting choice over any other.
    """

    name: str
    dials: gymnasium.spaces.Box | gymnasium.spaces.Discrete
    scale: float
    explore: float

    def make(self, num_envs: int) -> LockstepEnv:
        """The environment."""
        ...

    def features(self, observations: Floats32) -> Floats32:
        """What the network sees, `[n, f]` of about [−1, 1], of observations `[n, d]` and nothing else."""
        ...

    def act(self, observations: Floats32, dials: Dials) -> Floats32:
        """Actions of the environment for dials `[n, k]` or `[n]`; numbers outside [−1, 1] are clipped."""
        ...

    def rules(self) -> dict[str, Policy]:
        """Rules that are known to work, by name; constants apart."""
        ...

    def constants(self) -> Dials:
        """Dials to try as constants, `[m, k]` or `[m]`."""
        ...

    def cautious(self) -> Constant:
        """What a shop may run that has not tried much: good for nothing but to learn from its log."""
        ...


@dataclass(frozen=True, eq=False)
class Constant:
    """The same dials, `[k]` or one choice, for everybody on every day."""

    task: Task
    dials: Dials

    def choose(self, observations: Floats32) -> Dials:
        """The dials, once per observation."""
        return np.repeat(self.dials[None], len(observations), axis=0)

    def act(self, observations: Floats32) -> Floats32:
        """The task's actions for them."""
        return self.task.act(observations, self.choose(observations))


class SalesTask:
    """`SalesVectorEnv`; what a network sees is made of the agent's four numbers alone.

    Dials: one of `OFFERS`. What is good for one user lies far from what is good for another, with worse
    between them, so that numbers would be explored at a loss.
    """

    name, scale, explore = "sales", 0.01, 5.0
    dials = gymnasium.spaces.Discrete(len(OFFERS))

    def __init__(self, data: str) -> None:
        self._data = data

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

    def act(self, observations: Floats32, dials: Dials) -> Floats32:
        """Coupons and price factors of the offers chosen."""
        return OFFERS[dials.astype(np.int64)]

    def rules(self) -> dict[str, Policy]:
        """None but constants: what a myopic rule would need, the response, is not known."""
        return {}

    def constants(self) -> Dials:
        """Each of the offers."""
        return np.arange(len(OFFERS))

    def cautious(self) -> Constant:
        """One coupon of the smallest discount."""
        return Constant(self, np.array(len(_FACTORS)))


class PromotionTask:
    """`PromotionVectorEnv`; its observations are features already.

    Dials: those of the myopic allocator (`rllib.myopic.Steer`), for each segment the cap on the share
    contacted and a factor on the shadow price, and the pace of the budget. So a policy is about what the
    allocator does not see, the days that follow.

    world: file of `rllib.world.save_world`, None for a made-up population. rules: of `Rules`, by name.
    """

    name, scale, explore = "promotion", 1.0, -1.5

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
        self.dials = gymnasium.spaces.Box(-1.0, 1.0, (2 * num_segments + 1,), np.float32)

    def make(self, num_envs: int) -> PromotionVectorEnv:
        """The environment of `num_envs` campaigns."""
        return PromotionVectorEnv(num_envs, self._segments, self._rules)

    def features(self, observations: Floats32) -> Floats32:
        """The observations."""
        return observations

    def act(self, observations: Floats32, dials: Dials) -> Floats32:
        """What the allocator does with such dials."""
        return self._myopic.steered(
            observations, Steer.from_unit(np.clip(dials, -1.0, 1.0).astype(np.float64))
        )

    def rules(self) -> dict[str, Policy]:
        """The myopic allocator, left alone."""
        return {"myopic": self._myopic}

    def constants(self) -> Dials:
        """Caps × price factors × paces, the same in all segments."""
        size = len(self._segments)
        grid = [
            [2 * cap - 1] * size + [price] * size + [pace]
            for cap in _CAPS
            for price in _STEERS
            for pace in _STEERS
        ]
        return np.array(grid, dtype=np.float32)

    def cautious(self) -> Constant:
        """The myopic allocator, which may contact 7 of 10 users of a segment in a day."""
        size = len(self._segments)
        return Constant(self, np.array([2 * 0.7 - 1] * size + [0.0] * (size + 1), dtype=np.float32))


class TrainingEnv(VectorEnv[Floats32, Any, Floats]):
    """A task as a network meets it: its features, its dials as actions, rewards scaled.

    config: `{"task": Task, "num_envs": episodes side by side, 1 if missing}`, as RLlib hands it over.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, config: Mapping[str, Any]) -> None:
        task, num_envs = config["task"], int(config.get("num_envs", 1))
        self.task, self.env, self.num_envs = task, task.make(num_envs), num_envs
        seen = task.features(np.zeros((1, *self.env.single_observation_space.shape), dtype=np.float32))
        self.single_action_space = task.dials
        self.single_observation_space = gymnasium.spaces.Box(-10.0, 10.0, seen.shape[1:], np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats32, Info]:
        """As the environment's."""
        self.seen, info = self.env.reset(seed=seed, options=options)
        return self.task.features(self.seen), info

    def step(self, actions: Dials) -> tuple[Floats32, Floats, NDArray[np.bool_], NDArray[np.bool_], Info]:
        """As the environment's, for dials."""
        self.seen, rewards, ended, cut, info = self.env.step(self.task.act(self.seen, actions))
        return self.task.features(self.seen), self.task.scale * rewards, ended, cut, info


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
