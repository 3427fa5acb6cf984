"""Natively vectorised environments whose episodes all have the same length, and one of them alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]
Info = dict[str, Any]


class LockstepEnv(VectorEnv[Floats32, Floats32, Floats], ABC):
    """`num_envs` episodes of `horizon` days side by side, as arrays.

    They begin and end together, so that one counter has the day of all of them. The step after the last day
    starts the next episodes (Gymnasium's `NEXT_STEP` mode): its actions are ignored and its rewards are 0.

    A subclass sets `single_observation_space` and `single_action_space` and calls `__init__` last. It begins
    episodes in `_begin`, which returns observations `[n, d]`, and lives a day in `_live`, which returns
    observations, rewards `[n]` and what goes into `info`, `[n]` each.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, horizon: int) -> None:
        for name, value in (("num_envs", num_envs), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name}: {value} is less than 1")
        self.num_envs, self.horizon, self.day = num_envs, horizon, -1
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats32, Info]:
        """Start all episodes; `seed` (one number for all) fixes these and the following ones."""
        super().reset(seed=seed)
        self.day = 0
        return self._begin(), {}

    def step(self, actions: Floats32) -> tuple[Floats32, Floats, NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Live a day; or start anew where the last step ended the episodes."""
        going = np.zeros(self.num_envs, dtype=np.bool_)
        if self.day < 0:
            raise ValueError("day: no episode has been started; call reset() first")
        if self.day == self.horizon:
            self.day = 0
            return self._begin(), np.zeros(self.num_envs), going, going.copy(), {}
        observations, rewards, info = self._live(self._checked(actions))
        self.day += 1
        info |= {f"_{name}": ~going for name in info}  # Gymnasium's mask of who has the entry
        return observations, rewards, going | (self.day == self.horizon), going, info

    def _checked(self, actions: Floats32) -> Floats:
        """Actions `[n, d]` within the space; what is outside is clipped."""
        found = np.asarray(actions, dtype=np.float64)
        space = self.single_action_space
        assert isinstance(space, gymnasium.spaces.Box)
        if found.shape != (self.num_envs, *space.shape):
            raise ValueError(
                f"actions: shape is {list(found.shape)}; must be {[self.num_envs, *space.shape]}"
            )
        if np.isnan(found).any():
            raise ValueError(f"actions: row {int(np.isnan(found).any(axis=1).argmax())} is NaN")
        return np.clip(found, space.low, space.high)

    @abstractmethod
    def _begin(self) -> Floats32: ...

    @abstractmethod
    def _live(self, actions: Floats) -> tuple[Floats32, Floats, Info]: ...


class AloneEnv(gymnasium.Env[Floats32, Floats32]):
    """A lockstep environment of one episode as a plain Gymnasium environment."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, env: LockstepEnv) -> None:
        if env.num_envs != 1:
            raise ValueError(f"env: has {env.num_envs} episodes side by side; must have 1")
        self._env = env
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Floats32, Info]:
        """Start an episode; `seed` fixes this and the following ones."""
        super().reset(seed=seed)
        observations, _ = self._env.reset(seed=seed, options=options)
        return observations[0], {}

    def step(self, action: Floats32) -> tuple[Floats32, float, bool, bool, Info]:
        """Live a day."""
        if self._env.day == self._env.horizon:
            raise ValueError(f"day: the episode is over after {self._env.day} days; call reset() first")
        observations, rewards, ended, cut, info = self._env.step(np.asarray(action)[None])
        own = {name: values[0].item() for name, values in info.items() if not name.startswith("_")}
        return observations[0], float(rewards[0]), bool(ended[0]), bool(cut[0]), own
