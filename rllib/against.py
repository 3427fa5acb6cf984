"""The pacing environment for training: the same days are lived twice, and only the difference is rewarded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.decide.pacing import EvenPace, Observation
from rllib.env import PacingEnv

# Episodes of training are drawn from here, so that no small seed of an evaluation is among them.
_FIRST_SEED, _LAST_SEED = 2**32, 2**62
SCALE = 100.0


class AgainstRuleEnv(PacingEnv):
    """`PacingEnv` with the reward measured against a rule on the same traffic.

    A twin runs the same episode (same users, same order, same exploration) under `EvenPace(gain)`. Traffic
    does not depend on actions, so that the twin's reward is a baseline that leaves the gradient of the
    objective unbiased and takes out most of its variance: how many users came (common random numbers).

    ## Action, Observation, Episode end
    As `PacingEnv`.

    ## Reward
    100 × (own reward − the twin's): an episode's return is the gain over the rule, per cent of the cap.

    ## Arguments
    config: `{"world": path, "gain": gain of the rule}`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if "gain" not in config:
            raise ValueError("config: 'gain' is missing; pass that of the EvenPace rule to compare with")
        super().__init__(config)
        self._twin, self._rule = PacingEnv(config), EvenPace(float(config["gain"]))
        self._seeds = np.random.default_rng()
        self._seen: Observation | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode on both sides; `seed` fixes this and the following ones."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        episode = int(self._seeds.integers(_FIRST_SEED, _LAST_SEED))
        self._seen, _ = self._twin.reset(seed=episode)
        return super().reset(seed=episode)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Run the day on both sides."""
        observation, reward, over, cut, info = super().step(action)
        if self._seen is None:
            raise ValueError("day: no episode has been started; call reset() first")
        self._seen, ruled, _, _, _ = self._twin.run_day(self._rule.multiplier(self._seen))
        return observation, SCALE * (reward - ruled), over, cut, info
