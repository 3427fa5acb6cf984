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
from rllib.myopic import Myopic
from rllib.promotion import DEEPEST as DEEPEST_OFFER
from rllib.promotion import PromotionVectorEnv, Rules
from rllib.sales import COUPONS, DEEPEST, SEEN_DAYS, SHALLOWEST, SalesVectorEnv
from rllib.segments import FATIGUE, NUM_SEGMENTS, segments_of

# Among fees, price factors and shares, what a policy without a look at the user could do all the time.
_SALES_COUPONS, _SALES_FACTORS = (2, 3, COUPONS), np.arange(DEEPEST, SHALLOWEST + 0.001, 0.01)
_SHARES, _DEPTHS = (0.25, 0.5, 0.75, 1.0), np.linspace(0.0, DEEPEST_OFFER, 9)


class Policy(Protocol):
    """Whatever acts: a network, a rule, a constant."""

    def act(self, observations: Floats32) -> Floats32:
        """Actions `[n, k]` of the environment for its observations `[n, d]`; no state, no chance."""
        ...


@dataclass(frozen=True, eq=False)
class Constant:
    """The same action for everybody on every day, `[k]`."""

    action: Floats32

    def act(self, observations: Floats32) -> Floats32:
        """The action, `[n, k]`."""
        return np.tile(self.action, (len(observations), 1))


class Task(Protocol):
    """An environment as training sees it.

    scale: rewards are multiplied by it, so that returns are of the order of 1 to 10. start: name of the rule
    that training starts from.
    """

    name: str
    scale: float
    start: str

    def make(self, num_envs: int) -> LockstepEnv:
        """The environment."""
        ...

    def features(self, observations: Floats32) -> Floats32:
        """What the network sees, `[n, f]` of about [−1, 1], of observations `[n, d]` and nothing else."""
        ...

    def rules(self) -> dict[str, Policy]:
        """Rules that are known to work, by name; constants apart."""
        ...

    def constants(self) -> Floats32:
        """Actions to try as constants, `[m, k]`."""
        ...


class SalesTask:
    """`SalesVectorEnv`; what a network sees is made of the agent's four numbers alone."""

    name, scale, start = "sales", 0.01, "constant"

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
        columns = [
            np.log1p(total) / 5.0,
            rate - 0.5,
            np.sqrt(fee) / 5.0 - 0.5,
            np.clip(days / 15.0 - 5.0, -1.0, 1.0),
        ]
        return np.hstack([np.stack(columns, axis=1), flags]).astype(np.float32)

    def rules(self) -> dict[str, Policy]:
        """None but constants: what a myopic rule would need, the response, is not known."""
        return {}

    def constants(self) -> Floats32:
        """No coupon; one with any price factor in hundredths; several in steps of a twentieth."""
        grid = [(0, DEEPEST), *((1, d) for d in _SALES_FACTORS)]
        grid += [(n, d) for n in _SALES_COUPONS for d in _SALES_FACTORS[::5]]
        return np.array(grid, dtype=np.float32)


class PromotionTask:
    """`PromotionVectorEnv`; its observations are features already.

    world: file of `rllib.world.save_world`, None for a made-up population. rules: of `Rules`, by name.
    """

    name, scale, start = "promotion", 1.0, "myopic"

    def __init__(
        self,
        world: str | None = None,
        num_segments: int = NUM_SEGMENTS,
        fatigue: float = FATIGUE,
        rules: Mapping[str, Any] | None = None,
    ) -> None:
        self._segments = segments_of(world, num_segments, fatigue)
        self._rules = Rules(**(rules or {}))

    def make(self, num_envs: int) -> PromotionVectorEnv:
        """The environment of `num_envs` campaigns."""
        return PromotionVectorEnv(num_envs, self._segments, self._rules)

    def features(self, observations: Floats32) -> Floats32:
        """The observations."""
        return observations

    def rules(self) -> dict[str, Policy]:
        """The myopic allocator."""
        return {"myopic": Myopic(self._segments, self._rules)}

    def constants(self) -> Floats32:
        """Shares × depths, the same in all segments."""
        size = len(self._segments)
        grid = [
            [2 * share - 1] * size + [2 * d / DEEPEST_OFFER - 1] * size for share in _SHARES for d in _DEPTHS
        ]
        return np.array(grid, dtype=np.float32)


class TrainingEnv(VectorEnv[Floats32, Floats32, Floats]):
    """A task as a network meets it: its features, actions in Box(−1, 1), rewards scaled."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, task: Task, num_envs: int) -> None:
        self.task, self.env, self.num_envs = task, task.make(num_envs), num_envs
        space = self.env.single_action_space
        seen = task.features(np.zeros((1, *self.env.single_observation_space.shape), dtype=np.float32))
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-10.0, 10.0, seen.shape[1:], np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats32, Info]:
        """As the environment's."""
        observations, info = self.env.reset(seed=seed, options=options)
        return self.task.features(observations), info

    def step(self, actions: Floats32) -> tuple[Floats32, Floats, NDArray[np.bool_], NDArray[np.bool_], Info]:
        """As the environment's; actions outside [−1, 1] are clipped."""
        own = from_unit(self.env.single_action_space, actions)
        observations, rewards, ended, cut, info = self.env.step(own)
        return self.task.features(observations), self.task.scale * rewards, ended, cut, info


def from_unit(space: gymnasium.spaces.Box, actions: Floats32) -> Floats32:
    """Actions of `space` `[n, k]` from [−1, 1], linear; what is outside is clipped first."""
    share = 0.5 * (np.clip(actions, -1.0, 1.0) + 1.0)
    return np.asarray(space.low + share * (space.high - space.low), dtype=np.float32)


def to_unit(space: gymnasium.spaces.Box, actions: Floats32) -> Floats32:
    """The inverse of `from_unit`."""
    return np.asarray(2.0 * (actions - space.low) / (space.high - space.low) - 1.0, dtype=np.float32)


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
