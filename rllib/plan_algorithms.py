"""PPO and SAC for the planning environments, on RLlib's new stack and whole arrays of episodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium

from rllib.start import logging_below
from rllib.tasks import Task, TrainingEnv

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

ALGORITHMS = ("ppo", "sac")
_COUNTS = ("iterations", "num_envs", "epochs", "minibatch", "updates", "rounds", "checkpoint_every")
_SAC_BATCH = 512
_SEED_STEP = 7_919


@dataclass(frozen=True, slots=True)
class PlanningSettings:
    """How to train and judge.

    algorithm: `ppo`, which starts as `rllib.plan_start` says, or `sac`, from nothing. iterations: each lives
    `num_envs` episodes. seed: of training. learning_rate: with PPO it falls to a tenth by the end. epochs:
    passes of PPO over an iteration's days, in minibatches of `minibatch`. updates: of SAC in an iteration.
    discount: per day. hidden: widths of the network. episodes: side by side when policies are judged;
    `rounds` times that many are held out. checkpoint_every: iterations.
    """

    algorithm: str = "ppo"
    iterations: int = 100
    num_envs: int = 256
    seed: int = 0
    learning_rate: float = 2e-3
    epochs: int = 5
    minibatch: int = 2_048
    updates: int = 64
    discount: float = 1.0
    hidden: tuple[int, ...] = (64, 64)
    episodes: int = 512
    rounds: int = 2
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: {self.algorithm!r} is none of {', '.join(ALGORITHMS)}")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is less than 1")
        if self.episodes * self.rounds < 20:
            raise ValueError(
                f"episodes: {self.episodes * self.rounds} held-out ones tell policies apart by luck; use 20"
            )
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate: {self.learning_rate} is outside (0, 1)")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount: {self.discount} is outside (0, 1]")


# By environment: users of `sales` differ more than campaigns do, and cost less.
DEFAULTS = {
    "promotion": PlanningSettings(),
    "sales": PlanningSettings(
        iterations=60, num_envs=2_000, learning_rate=1e-3, minibatch=4_096, episodes=10_000, rounds=1
    ),
}


def algorithm(task: Task, settings: PlanningSettings, storage: Path, done: int = 0) -> Algorithm:
    """The algorithm on `task`, in this process: its one environment runner and its learner are local.

    storage: folder for RLlib's own files. done: iterations before a resume, so that it meets other episodes
    than those that the run began with. RuntimeError where Ray is not running.

    Sources: Schulman et al., "Proximal Policy Optimization Algorithms" (2017); Haarnoja et al., "Soft
    Actor-Critic Algorithms and Applications" (2018).
    """
    import ray

    if not ray.is_initialized():
        # Left to itself RLlib would start a cluster that listens on every interface.
        raise RuntimeError("Ray is not running: call ray.init before training")
    from rllib.array_runner import ArrayEnvRunner

    configure = _ppo if settings.algorithm == "ppo" else _sac
    return (
        configure(settings, task, storage)
        .environment(TrainingEnv, env_config={"task": task})
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=settings.num_envs,
            batch_mode="complete_episodes",
            gym_env_vectorize_mode="vector_entry_point",
            env_runner_cls=ArrayEnvRunner,
        )
        .learners(num_learners=0)
        .debugging(seed=settings.seed + _SEED_STEP * done, log_level="ERROR")
        .build_algo()
    )


def _ppo(settings: PlanningSettings, task: Task, storage: Path) -> AlgorithmConfig:
    from ray.rllib.algorithms.ppo import PPO, PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    batch = settings.num_envs * task.make(1).horizon
    model = DefaultModelConfig(
        fcnet_hiddens=list(settings.hidden),
        free_log_std=isinstance(task.dials, gymnasium.spaces.Box),
        vf_share_layers=False,
    )
    config = PPOConfig(algo_class=logging_below(storage, PPO)).rl_module(model_config=model)
    return config.training(
        gamma=settings.discount,
        lambda_=0.95,
        lr=[[0, settings.learning_rate], [settings.iterations * batch, settings.learning_rate / 10]],
        train_batch_size_per_learner=batch,
        minibatch_size=min(settings.minibatch, batch),
        num_epochs=settings.epochs,
        clip_param=0.2,
        vf_clip_param=float("inf"),
        use_kl_loss=False,
        grad_clip=1.0,
    )


def _sac(settings: PlanningSettings, task: Task, storage: Path) -> AlgorithmConfig:
    from ray.rllib.algorithms.sac import SAC, SACConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    model = DefaultModelConfig(
        fcnet_hiddens=list(settings.hidden),
        fcnet_activation="tanh",
        head_fcnet_hiddens=[],
        head_fcnet_activation=None,
    )
    config = SACConfig(algo_class=logging_below(storage, SAC)).rl_module(model_config=model)
    steps = settings.num_envs * task.make(1).horizon
    return config.training(
        gamma=settings.discount,
        actor_lr=settings.learning_rate,
        critic_lr=settings.learning_rate,
        alpha_lr=settings.learning_rate,
        lr=None,
        tau=0.005,
        train_batch_size_per_learner=_SAC_BATCH,
        # RLlib makes updates of it by: intensity × environments ÷ batch, per sample of all of them.
        training_intensity=settings.updates * _SAC_BATCH / settings.num_envs,
        num_steps_sampled_before_learning_starts=steps,
        replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": max(100 * steps, 100_000)},
    )
