"""RLlib's environment runner for natively vectorised environments: arrays in, whole episodes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.metrics import EPISODE_RETURN_MEAN, WEIGHTS_SEQ_NO

_STEP = (Columns.OBS, Columns.ACTIONS, Columns.REWARDS, Columns.ACTION_DIST_INPUTS, Columns.ACTION_LOGP)


def middle(distribution: Any) -> torch.Tensor:
    """The action without chance. RLlib's own answer for SAC (2.60) leaves out the squashing."""
    squashed = isinstance(distribution, TorchSquashedGaussian)
    return torch.tanh(distribution.loc) if squashed else distribution.to_deterministic().sample()


class ArrayEnvRunner(SingleAgentEnvRunner):
    """Samples whole episodes of an environment whose episodes begin and end together.

    RLlib's own runner appends every step of every episode in Python, which takes many times longer than the
    environment. Here a step is one pass of the network and one of the environment for all, and episodes are
    cut from the arrays at the end. So there is no per-step work of connectors and callbacks: the
    environment's observations and actions must be the network's, as those of `rllib.tasks.TrainingEnv` are.
    """

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        env = self.env.unwrapped
        wanted = num_episodes or -(-(num_timesteps or 0) // env.env.horizon)
        rounds = max(-(-wanted // self.num_envs), 1)
        episodes: list[SingleAgentEpisode] = []
        for _ in range(rounds):
            seed = self._seed if self._needs_initial_reset else None
            self._needs_initial_reset = False
            episodes += self._episodes(self._live(env, seed, explore, random_actions))
        self._increase_sampled_metrics(len(episodes) * env.env.horizon, len(episodes))
        returns = float(np.mean([episode.get_return() for episode in episodes]))
        self.metrics.log_value(EPISODE_RETURN_MEAN, returns, window=1)
        return episodes

    def _live(self, env: Any, seed: int | None, explore: bool, random_actions: bool) -> dict[str, Any]:
        """All episodes from start to end, by column `[T, n, …]`; observations `[T+1, n, d]`."""
        observations, _ = env.reset(seed=seed)
        columns: dict[str, list[Any]] = {name: [] for name in _STEP}
        columns[Columns.OBS].append(observations)
        for _ in range(env.env.horizon):
            step = self._random(env) if random_actions else self._act(observations, explore)
            observations, rewards, *_ = env.step(step[Columns.ACTIONS])
            step |= {Columns.OBS: observations, Columns.REWARDS: rewards.astype(np.float32)}
            for name, value in step.items():
                columns[name].append(value)
        return {name: np.stack(values).swapaxes(0, 1) for name, values in columns.items() if values}

    def _act(self, observations: np.ndarray, explore: bool) -> dict[str, np.ndarray]:
        batch = {Columns.OBS: torch.from_numpy(observations).to(self._device)}
        module = self.module
        with torch.no_grad():
            forward = module.forward_exploration if explore else module.forward_inference
            inputs = forward(batch)[Columns.ACTION_DIST_INPUTS]
            distribution = module.get_exploration_action_dist_cls().from_logits(inputs)
            actions = distribution.sample() if explore else middle(distribution)
            logp = distribution.logp(actions)
        found = {Columns.ACTIONS: actions, Columns.ACTION_DIST_INPUTS: inputs, Columns.ACTION_LOGP: logp}
        return {name: value.cpu().numpy() for name, value in found.items()}

    def _random(self, env: Any) -> dict[str, np.ndarray]:
        return {Columns.ACTIONS: env.action_space.sample()}

    def _episodes(self, columns: dict[str, np.ndarray]) -> list[SingleAgentEpisode]:
        extra = [name for name in (Columns.ACTION_DIST_INPUTS, Columns.ACTION_LOGP) if name in columns]
        seq = np.full(columns[Columns.REWARDS].shape[1], self._weights_seq_no)
        return [
            SingleAgentEpisode(
                observations=InfiniteLookbackBuffer(columns[Columns.OBS][n]),
                actions=InfiniteLookbackBuffer(columns[Columns.ACTIONS][n]),
                rewards=InfiniteLookbackBuffer(columns[Columns.REWARDS][n]),
                extra_model_outputs={name: InfiniteLookbackBuffer(columns[name][n]) for name in extra}
                | {WEIGHTS_SEQ_NO: InfiniteLookbackBuffer(seq)},
                observation_space=self.env.single_observation_space,
                action_space=self.env.single_action_space,
                terminated=True,
                len_lookback_buffer=0,
            )
            for n in range(len(columns[Columns.REWARDS]))
        ]
