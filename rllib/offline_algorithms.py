"""RLlib's algorithms that learn from a log, through Ray Data."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from rllib.advantage import shaped
from rllib.model_settings import ModelSettings
from rllib.plan_log import PlanningLog
from rllib.start import logging_below
from rllib.tasks import Task

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

IMITATION, MODEL = "bc", "model"
ALGORITHMS = (IMITATION, "marwil", "iql", "cql", MODEL)
_SQUASHED = ("iql", "cql")
_NUMBERS_ONLY = (*_SQUASHED, MODEL)
_ROWS = "rows.npz"
# Dials of squashed policies, whose middle lies elsewhere near the ends, are divided by so much; what a log
# has beyond is cut, short of where densities are infinite.
_STRETCH, _EDGE = 2.0, 0.99
_CQL_ACTIONS = 4  # of each kind that the penalty looks at, per day: they take most of the time
_BETA = {"iql": 2.0}  # where it is not 1
_SEED_STEP = 7_919


@dataclass(frozen=True, slots=True)
class OfflineSettings:
    """How to learn from a log and judge.

    algorithm: `bc`, imitation of the running policy; `marwil`, which imitates what turned out better more;
    `iql` or `cql`, which learn what a day's dials are worth, and `model`, which plans in a model of the log
    (`rllib.model_plan`), where dials are numbers. iterations: each of `updates` steps on `batch` days. beta:
    how much more what was better counts, for `marwil` and `iql`, per standard deviation of advantages; None
    is 1, and 2 for `iql`. conservatism: of `cql`, weight of the penalty on dials that were not logged.
    expectile: of `iql`, how near the best of the logged dials values are. model: of `model`.
    discount: per day. trace: λ of `rllib.advantage.shaped`, for `marwil`. hidden: widths of the network.
    held_out: share of episodes that judge and are not learned from. explore: with which the policy is judged,
    None: as the log was made. confidence: of the two-sided interval whose lower bound decides.
    checkpoint_every: iterations.
    """

    algorithm: str = "marwil"
    iterations: int = 10
    updates: int = 100
    batch: int = 512
    seed: int = 0
    learning_rate: float = 1e-3
    beta: float | None = None
    conservatism: float = 1.0
    expectile: float = 0.7
    model: ModelSettings = field(default_factory=ModelSettings)
    discount: float = 1.0
    trace: float = 0.8
    hidden: tuple[int, ...] = (64, 64)
    held_out: float = 0.5
    explore: float | None = None
    confidence: float = 0.9
    checkpoint_every: int = 5

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm: {self.algorithm!r} is none of {', '.join(ALGORITHMS)}")
        for name in ("iterations", "updates", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is less than 1")
        for name in ("learning_rate", "expectile", "held_out", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside (0, 1)")
        for name in ("beta", "conservatism"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name}: {value} is not a positive number")
        for name in ("discount", "trace"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is outside (0, 1]")


def stretch_of(algorithm: str) -> float:
    """What the actions of the algorithm's module are multiplied by to be dials."""
    return _STRETCH if algorithm in _SQUASHED else 1.0


def check_dials(task: Task, algorithm: str) -> None:
    """ValueError where the algorithm cannot set the task's dials."""
    if algorithm in _NUMBERS_ONLY and not isinstance(task.dials, gymnasium.spaces.Box):
        raise ValueError(
            f"algorithm: {algorithm!r} sets numbers, and {task.name} is about choices; take marwil"
        )


def offline_algorithm(
    log: PlanningLog, task: Task, settings: OfflineSettings, storage: Path, done: int = 0
) -> Algorithm:
    """The algorithm on the days of `log`, in this process.

    storage: folder for RLlib's own files and the rows that Ray Data reads. done: iterations before a resume,
    so that it meets the rows in another order. RuntimeError where Ray is not running.

    BC is MARWIL with beta 0, as in RLlib, with PPO's network, so that PPO can go on from it. Sources: Wang et
    al., "Exponentially Weighted Imitation Learning for Batched Historical Data" (2018); Kumar et al.,
    "Conservative Q-Learning for Offline Reinforcement Learning" (2020); Kostrikov et al., "Offline
    Reinforcement Learning with Implicit Q-Learning" (2021).
    """
    import ray
    import ray.data

    if not ray.is_initialized():
        # Left to itself RLlib would start a cluster that listens on every interface.
        raise RuntimeError("Ray is not running: call ray.init before training")
    from rllib.offline_rows import Rows

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    check_dials(task, settings.algorithm)
    rng = np.random.default_rng([settings.seed, done])
    rows = _write_rows(log, task, settings, storage / _ROWS, rng)
    seen = gymnasium.spaces.Box(-10.0, 10.0, (rows,), np.float32)
    configure = {"iql": _iql, "cql": _cql}.get(settings.algorithm, _marwil)
    return (
        configure(settings, task, storage)
        .environment(observation_space=seen, action_space=task.dials)
        .env_runners(num_env_runners=0, create_local_env_runner=False)
        .learners(num_learners=0)
        .offline_data(
            input_=[str(storage / _ROWS)],
            input_read_method="from_items",
            offline_data_class=Rows,
            materialize_data=False,
            dataset_num_iters_per_learner=settings.updates,
        )
        .debugging(seed=settings.seed + _SEED_STEP * done, log_level="ERROR")
        .build_algo()
    )


def _marwil(settings: OfflineSettings, task: Task, storage: Path) -> AlgorithmConfig:
    from ray.rllib.algorithms.marwil import MARWIL, MARWILConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    model = DefaultModelConfig(
        fcnet_hiddens=list(settings.hidden),
        free_log_std=isinstance(task.dials, gymnasium.spaces.Box),
        vf_share_layers=False,
    )
    config = MARWILConfig(algo_class=logging_below(storage, MARWIL)).rl_module(model_config=model)
    return config.training(
        # Returns are written scaled (`_write_rows`), so beta is in them and the norm stays at 1.
        beta=0.0 if settings.algorithm == IMITATION else 1.0,
        moving_average_sqd_adv_norm_start=1.0,
        moving_average_sqd_adv_norm_update_rate=0.0,
        gamma=settings.discount,
        lr=settings.learning_rate,
        train_batch_size_per_learner=settings.batch,
        grad_clip=1.0,
    )


def _squashed(settings: OfflineSettings) -> dict[str, Any]:
    """What IQL and CQL have in common; the target follows once in an iteration of so many updates."""
    return {
        "gamma": settings.discount,
        "actor_lr": settings.learning_rate,
        "critic_lr": settings.learning_rate,
        "lr": None,
        "tau": 0.5,
        "train_batch_size_per_learner": settings.batch,
    }


def _model(settings: OfflineSettings) -> Any:
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    return DefaultModelConfig(
        fcnet_hiddens=list(settings.hidden),
        fcnet_activation="tanh",
        head_fcnet_hiddens=[],
        head_fcnet_activation=None,
    )


def _iql(settings: OfflineSettings, task: Task, storage: Path) -> AlgorithmConfig:
    from ray.rllib.algorithms.iql import IQL, IQLConfig

    config = IQLConfig(algo_class=logging_below(storage, IQL)).rl_module(model_config=_model(settings))
    return config.training(
        beta=1.0,
        expectile=settings.expectile,
        value_lr=settings.learning_rate,
        **_squashed(settings),
    )


def _cql(settings: OfflineSettings, task: Task, storage: Path) -> AlgorithmConfig:
    from ray.rllib.algorithms.cql import CQL, CQLConfig

    config = CQLConfig(algo_class=logging_below(storage, CQL)).rl_module(model_config=_model(settings))
    config._is_online = False  # RLlib (2.60) says so of MARWIL only, and would ask for an environment
    return config.training(
        alpha_lr=settings.learning_rate,
        bc_iters=0,  # RLlib (2.60) counts them anew in each iteration
        min_q_weight=settings.conservatism,
        num_actions=_CQL_ACTIONS,
        **_squashed(settings),
    )


def _write_rows(
    log: PlanningLog, task: Task, settings: OfflineSettings, path: Path, rng: np.random.Generator
) -> int:
    """Days as RLlib reads them, in random order, and the number of features."""
    inside, steps = log.inside(), log.reward.shape[1]
    flat = log.observation.reshape(-1, log.observation.shape[-1])
    features = task.features(flat).reshape(len(log), steps, -1)
    reward, advantage = shaped(log.reward, features, inside, settings.discount, settings.trace)
    scale = 1.0 / max(float(advantage[inside].std()), 1e-9)
    if settings.algorithm != "cql":
        scale *= settings.beta or _BETA.get(settings.algorithm, 1.0)
    dials = log.dials
    if settings.algorithm in _SQUASHED:
        dials = np.clip(dials / _STRETCH, -_EDGE, _EDGE)
    order = rng.permutation(int(inside.sum()))
    columns = {
        "obs": features,
        "new_obs": np.concatenate([features[:, 1:], features[:, -1:]], axis=1),
        "actions": dials.astype(np.float32 if task.dials.shape else np.int64),
        "rewards": (scale * reward).astype(np.float32),
        "value_targets": (scale * advantage).astype(np.float32),
        "terminateds": np.arange(steps) == log.length[:, None] - 1,
    }
    np.savez(path, **{name: value[inside][order] for name, value in columns.items()})
    return int(features.shape[-1])
