"""Learning from the log of a running policy, and judging by it before anybody acts."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qiance.artifacts import Artifact
from rllib.checkpoints import history_of, latest, save_checkpoint
from rllib.explore import Exploring
from rllib.model_plan import Promise, plan_in_model
from rllib.offline_algorithms import (
    IMITATION,
    MODEL,
    OfflineSettings,
    check_dials,
    offline_algorithm,
    stretch_of,
)
from rllib.offline_judge import Judged, judge
from rllib.plan_log import PlanningLog
from rllib.planning import Tell
from rllib.policies import Network, network_of, save_policy
from rllib.tasks import Task

LEAST_EPISODES = 20
_SPLIT_SEED = 4_000_000


@dataclass(frozen=True, slots=True)
class OfflineTrained:
    """What a run leaves behind.

    policy: as learned. artifact: of the policy, None if it is not kept. judged: by episodes that were not
    learned from. episodes: learned from, and judged by. history: loss of the policy by iteration. promise: of
    the algorithm `model`, what it expects itself.
    """

    policy: Network = field(repr=False)
    artifact: Artifact | None = field(repr=False)
    judged: Judged
    episodes: tuple[int, int]
    history: tuple[float, ...]
    seconds: float
    promise: Promise | None = None

    @property
    def kept(self) -> bool:
        """Whether an artifact was written."""
        return self.artifact is not None


def train_offline(
    log: PlanningLog,
    task: Task,
    *,
    out: Path,
    settings: OfflineSettings | None = None,
    resume: bool = False,
    parents: Sequence[str] = (),
    progress: Tell | None = None,
) -> OfflineTrained:
    """Learn a policy from one part of `log`, judge it by the other, and write it if it is shown to be better.

    An imitation (`bc`) is written in any case: it is the running policy, to start from. What is judged is the
    policy with exploration (`rllib.explore.Exploring`) against the running one with its own. out, resume: as
    of `rllib.planning.train_planning`. Ray must be running, but for `model`.
    Raises ValueError for bad settings, few episodes, no exploration known, a checkpoint of another run;
    RuntimeError without Ray.
    """
    settings, started = settings or OfflineSettings(), time.monotonic()
    tell = progress or (lambda share, text: None)
    check_dials(task, settings.algorithm)
    explore = _explore(log, settings)
    learned_from, held_out = split(log, settings.held_out)
    data = fingerprint(log)
    said = {"log": {"content": data}, "settings": asdict(settings) | {"iterations": None}}
    history = history_of(out, said, resume)
    out.mkdir(parents=True, exist_ok=True)
    promise = None
    if settings.algorithm == MODEL:
        network, promise = plan_in_model(learned_from, task, settings, explore, out, said, history, tell)
    else:
        network = _learn(learned_from, task, settings, out, said, history, tell)
    tell(0.8, f"judging by {len(held_out):,} held-out episodes")
    judged = judge(held_out, Exploring(task, network, explore), settings.discount, settings.confidence)
    artifact = None
    if judged.gate.passed or settings.algorithm == IMITATION:
        metrics = _metrics(judged, explore, len(history), promise)
        key = hashlib.sha256(json.dumps([data, asdict(settings)], sort_keys=True).encode()).hexdigest()
        artifact = save_policy(
            out, task, "network", network, metrics=metrics, data_fingerprint=key, parents=parents
        )
    tell(1.0, "done")
    counts = (len(learned_from), len(held_out))
    seconds = time.monotonic() - started
    return OfflineTrained(network, artifact, judged, counts, tuple(history), seconds, promise)


def split(log: PlanningLog, held_out: float) -> tuple[PlanningLog, PlanningLog]:
    """Episodes to learn from and to judge by, the same for every seed of training."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(log))
    count = round(held_out * len(log))
    if min(count, len(log) - count) < LEAST_EPISODES:
        raise ValueError(
            f"log: {len(log)} episodes, {count} of them held out, are too few to learn from and to judge by; "
            f"there must be {LEAST_EPISODES} of both"
        )
    return log.take(np.sort(order[count:])), log.take(np.sort(order[:count]))


def fingerprint(log: PlanningLog) -> str:
    """SHA-256 (hex) of the episodes."""
    found = hashlib.sha256()
    for name in ("observation", "dials", "propensity", "reward", "length"):
        found.update(np.ascontiguousarray(getattr(log, name)).tobytes())
    return found.hexdigest()


def _explore(log: PlanningLog, settings: OfflineSettings) -> float:
    explore = log.explore if settings.explore is None else settings.explore
    if explore is None:
        raise ValueError(
            "explore: the log does not say how widely its policy explored; say how widely the new one will"
        )
    return explore


def _learn(
    log: PlanningLog,
    task: Task,
    settings: OfflineSettings,
    out: Path,
    said: Mapping[str, Any],
    history: list[float],
    tell: Tell,
) -> Network:
    """Train until `settings.iterations` are in `history`, with checkpoints, and return the network."""
    from ray.rllib.core import COMPONENT_LEARNER_GROUP

    tell(0.0, f"starting {settings.algorithm.upper()} on {len(log):,} episodes")
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix=".rllib-", dir=out.resolve()) as storage:
        found = offline_algorithm(log, task, settings, Path(storage), len(history))
        try:
            if history and (checkpoint := latest(out)):
                # Only what learned: RLlib's (2.60) own way asks for a runner of environments.
                found.learner_group.restore_from_path(str(checkpoint / COMPONENT_LEARNER_GROUP))
            for number in range(len(history) + 1, settings.iterations + 1):
                loss = float(found.train()["learners"]["default_policy"]["policy_loss"])
                if not np.isfinite(loss):
                    raise ValueError(f"learning_rate: {settings.learning_rate} is too high: loss {loss}")
                history.append(loss)
                share = 0.05 + 0.75 * number / settings.iterations
                tell(share, f"iteration {number} of {settings.iterations}: loss {loss:.4g}")
                if number % settings.checkpoint_every == 0 or number == settings.iterations:
                    save_checkpoint(found, out, {**said, "history": history})
            modules: list[Any] = []
            found.learner_group.foreach_learner(lambda learner, **_: modules.append(learner.module))
            return network_of(modules[0]["default_policy"], task, stretch_of(settings.algorithm))
        finally:
            found.stop()


def _metrics(judged: Judged, explore: float, iterations: int, promise: Promise | None) -> dict[str, float]:
    gain = judged.improvements["dr"]
    found = {} if promise is None else promise.metrics()
    return found | {
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "return_running": float(gain.baseline_value or 0.0),
        "effective_episodes": gain.diagnostics.effective_sample_size,
        "explore": explore,
        "iterations": iterations,
    }
