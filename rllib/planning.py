"""Online training in the planning environments: start from a rule, learn, and keep what is better."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qiance.artifacts import load_manifest
from rllib.checkpoints import history_of, latest, save_checkpoint
from rllib.plan_algorithms import DEFAULTS, PlanningSettings, algorithm
from rllib.plan_evaluate import best_constant
from rllib.plan_keep import TUNING_SEED, Kept, keep_better
from rllib.plan_start import start_from
from rllib.policies import Network, load_policy, network_of
from rllib.tasks import Constant, Task, task_of
from rllib.world import fingerprint

Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class PlanningTrained(Kept):
    """What a run leaves behind, beside what was kept.

    history: by iteration, return of the exploring policy. seconds: of this call.
    """

    history: tuple[float, ...]
    seconds: float


def train_planning(
    environment: Mapping[str, Any],
    *,
    out: Path,
    settings: PlanningSettings | None = None,
    resume: bool = False,
    start: Path | None = None,
    parents: Sequence[str] = (),
    progress: Tell | None = None,
) -> PlanningTrained:
    """Train a policy, compare it with tuned rules on held-out episodes, and write the one that is kept.

    environment: `{"environment": "sales" | "promotion", ...}` with the task's arguments. settings: default by
    environment, `DEFAULTS`. out: folder for the artifact and for the checkpoint, which is written as training
    goes. resume: go on from that checkpoint; the environment and the settings must be those that it was made
    with, but for `iterations`. start: artifact of a network that PPO goes on from, such as an imitation
    (`rllib.offline`), instead of the best constant.
    Ray must be running. Raises ValueError for bad settings, and where there is something to go on with but
    `resume` is not set, or the other way round; RuntimeError without Ray.
    """
    task, started = task_of(environment), time.monotonic()
    settings, tell = settings or DEFAULTS[task.name], progress or (lambda share, text: None)
    given = None if start is None else _network(start, task, settings)
    said = {
        "environment": dict(environment),
        "settings": asdict(settings) | {"iterations": None},
        "start": {"version": None if start is None else load_manifest(start).version},
    }
    history = history_of(out, said, resume)
    out.mkdir(parents=True, exist_ok=True)
    tell(0.0, "tuning the rules that a trained policy must beat")
    constant = best_constant(task, settings.episodes, TUNING_SEED)
    network = _learn(task, given or constant, settings, out, said, history, tell)
    tell(0.9, f"comparing on {settings.episodes * settings.rounds:,} held-out episodes")
    kept = keep_better(
        task,
        constant,
        network,
        settings,
        out,
        metrics={"iterations": len(history)},
        fingerprint=digest(environment, settings),
        parents=parents,
    )
    tell(1.0, f"policy {kept.artifact.version} written: {kept.chosen}")
    return PlanningTrained(
        kept.artifact,
        kept.policies,
        kept.chosen,
        kept.best_rule,
        kept.returns,
        kept.gain,
        tuple(history),
        time.monotonic() - started,
    )


def _network(start: Path, task: Task, settings: PlanningSettings) -> Network:
    found = load_policy(start, task)
    if not isinstance(found, Network):
        raise ValueError(f"start: {start} holds a rule; PPO goes on from a network")
    if settings.algorithm != "ppo":
        raise ValueError(f"start: {settings.algorithm!r} starts from nothing; ppo goes on from a network")
    return found


def _learn(
    task: Task,
    start: Constant | Network,
    settings: PlanningSettings,
    out: Path,
    said: Mapping[str, Any],
    history: list[float],
    tell: Tell,
) -> Network:
    """Train until `settings.iterations` are in `history`, with checkpoints, and return the network."""
    tell(0.05, f"starting {settings.algorithm.upper()}")
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix=".rllib-", dir=out.resolve()) as storage:
        found = algorithm(task, settings, Path(storage), len(history))
        try:
            if history:
                found.restore_from_path(str(latest(out)))
            elif settings.algorithm == "ppo":
                start_from(found, start, settings.num_envs, TUNING_SEED + 1)
            for number in range(len(history) + 1, settings.iterations + 1):
                mean = float(found.train()["env_runners"]["episode_return_mean"]) / task.scale
                history.append(mean)
                tell(
                    0.1 + 0.8 * number / settings.iterations,
                    f"iteration {number} of {settings.iterations}: {mean:.4g}",
                )
                if number % settings.checkpoint_every == 0 or number == settings.iterations:
                    save_checkpoint(found, out, {**said, "history": history})
            return network_of(found.get_module(), task)
        finally:
            found.stop()


def digest(environment: Mapping[str, Any], settings: Any) -> str:
    """SHA-256 (hex) of what was trained on and how: of files their content, not their place."""
    said = [content_of(environment), asdict(settings)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def content_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an environment, with hashes of what files hold instead of their place."""
    return {name: _content(value) for name, value in environment.items()}


def _content(value: Any) -> Any:
    if not isinstance(value, str) or not Path(value).exists():
        return value
    files = sorted(Path(value).glob("*.npz")) if Path(value).is_dir() else [Path(value)]
    return [fingerprint(file) for file in files]
