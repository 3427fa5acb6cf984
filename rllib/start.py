"""Where training starts: from a rule that is known to work, exploring narrowly around it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from qiance.decide.pacing import LIMIT, EvenPace
from rllib.against import AgainstRuleEnv

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

# RLlib starts at a standard deviation of 1, as wide as half the action space.
LOG_STD = -1.5
_NOISE = 0.3  # of the actions of the demonstration, so that states beside the rule's own path are seen
_STEPS, _LEARNING_RATE = 400, 1e-2
Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Demonstration:
    """Days of a rule, float32: observations `[n, 6]`, its actions `[n]`, and returns to the end `[n]`."""

    observations: Floats32
    actions: Floats32
    returns: Floats32


def start_from(ppo: Algorithm, world: Path, rule: EvenPace, seeds: Sequence[int]) -> None:
    """Fit the actor of `ppo` to `rule` and its critic to what follows (least squares), and explore narrowly.

    A short run then spends its episodes on being better than the rule, not on finding it again. An untrained
    critic would undo the actor in the first iterations.
    """
    shown = demonstrate(world, rule, seeds)
    observations = {"obs": torch.from_numpy(shown.observations)}

    def fit(learner: Any, **_: Any) -> None:
        module = learner.module["default_policy"]
        encoder = module.encoder
        least_squares([encoder.actor_encoder, module.pi.net], observations, shown.actions)
        least_squares([encoder.critic_encoder, module.vf], observations, shown.returns)
        module.pi.log_std.data.fill_(LOG_STD)

    ppo.learner_group.foreach_learner(fit)
    ppo.env_runner_group.sync_weights(from_worker_or_learner_group=ppo.learner_group, inference_only=True)


def demonstrate(world: Path, rule: EvenPace, seeds: Sequence[int]) -> Demonstration:
    """An episode per seed: done is the rule's action with noise, kept is the rule's action."""
    env, rng = AgainstRuleEnv({"world": str(world), "gain": rule.gain}), np.random.default_rng(list(seeds))
    seen, wanted, returns = [], [], []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        over, rewards = False, []
        while not over:
            action = math.log(rule.multiplier(observation), LIMIT)
            seen.append(observation)
            wanted.append(action)
            done = np.clip(action + _NOISE * rng.standard_normal(1), -1.0, 1.0).astype(np.float32)
            observation, reward, over, _, _ = env.step(done)
            rewards.append(reward)
        returns.append(np.cumsum(rewards[::-1])[::-1])
    floats = (np.stack(seen), np.array(wanted), np.concatenate(returns))
    return Demonstration(*(x.astype(np.float32) for x in floats))


def logging_below(storage: Path, kind: type[Algorithm]) -> type[Algorithm]:
    """`kind` with its log folder below `storage`; RLlib has it in the home folder, without a setting."""

    class Below(kind):  # type: ignore[misc,valid-type]
        def _setup_logdir(self) -> None:
            self._logdir = tempfile.mkdtemp(prefix=f"{kind.__name__.lower()}-", dir=storage)

    return Below


def least_squares(parts: list[Any], inputs: dict[str, torch.Tensor], target: Floats32) -> None:
    """Fit head(encoder(inputs)) to `target` `[n]`, in place; parts: encoder and head."""
    encoder, head = parts
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=_LEARNING_RATE)
    wanted = torch.from_numpy(target)
    for step in range(_STEPS):
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * (1.0 - step / _STEPS)
        loss = torch.nn.functional.mse_loss(head(encoder(inputs)["encoder_out"])[:, 0], wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
