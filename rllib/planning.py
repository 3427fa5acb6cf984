"""Online training in the planning environments: start from a rule, learn, and keep what is better."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qiance.artifacts import Artifact
from qiance.domain import Interval
from rllib.evaluate import mean_interval
from rllib.plan_algorithms import DEFAULTS, PlanningSettings, algorithm
from rllib.plan_evaluate import best_constant, compare, verdict
from rllib.plan_start import start_from
from rllib.policies import network_of, save_policy
from rllib.tasks import Constant, Policy, Task, task_of
from rllib.world import fingerprint

Tell = Callable[[float, str], None]
CHECKPOINT, STATE = "checkpoint", "training.json"
# Apart from each other, and from the seeds that training draws its episodes from.
_TUNING_SEED, _HELD_OUT_SEED = 1_000_000, 2_000_000


@dataclass(frozen=True, slots=True)
class PlanningTrained:
    """What a run leaves behind.

    artifact: of the policy that is kept. policies: all of them, by name. chosen: `learned` or the name of a
    rule. best_rule: the best of the rules. returns: of an episode by policy, mean and 90 % interval over
    held-out episodes. gain: learned minus the best rule on the same episodes. history: by iteration, return
    of the exploring policy. seconds: of this call.
    """

    artifact: Artifact = field(repr=False)
    policies: Mapping[str, Policy] = field(repr=False)
    chosen: str
    best_rule: str
    returns: Mapping[str, Interval]
    gain: Interval
    history: tuple[float, ...]
    seconds: float


def train_planning(
    environment: Mapping[str, Any],
    *,
    out: Path,
    settings: PlanningSettings | None = None,
    resume: bool = False,
    parents: Sequence[str] = (),
    progress: Tell | None = None,
) -> PlanningTrained:
    """Train a policy, compare it with tuned rules on held-out episodes, and write the one that is kept.

    environment: `{"environment": "sales" | "promotion", ...}` with the task's arguments. settings: default by
    environment, `DEFAULTS`. out: folder for the artifact and for the checkpoint, which is written as training
    goes. resume: go on from that checkpoint; the environment and the settings must be those that it was made
    with, but for `iterations`.
    Ray must be running. Raises ValueError for bad settings, and where there is something to go on with but
    `resume` is not set, or the other way round; RuntimeError without Ray.
    """
    task, started = task_of(environment), time.monotonic()
    settings, tell = settings or DEFAULTS[task.name], progress or (lambda share, text: None)
    said = {"environment": dict(environment), "settings": asdict(settings) | {"iterations": None}}
    history = _history(out, said, resume)
    out.mkdir(parents=True, exist_ok=True)
    tell(0.0, "tuning the rules that a trained policy must beat")
    constant = best_constant(task, settings.episodes, _TUNING_SEED)
    network = _learn(task, constant, settings, out, said, history, tell)
    policies: dict[str, Policy] = {"constant": constant, **task.rules(), "learned": network}
    tell(0.9, f"comparing on {settings.episodes * settings.rounds:,} held-out episodes")
    seeds = range(_HELD_OUT_SEED, _HELD_OUT_SEED + settings.rounds)
    returns = compare(task, policies, settings.episodes, seeds)
    chosen, best_rule, gain = verdict(returns)
    means = {name: mean_interval(values) for name, values in returns.items()}
    artifact = save_policy(
        out,
        task,
        "network" if chosen == "learned" else chosen,
        policies[chosen],
        metrics=_metrics(means, gain, len(history)),
        data_fingerprint=_digest(environment, settings),
        parents=parents,
    )
    tell(1.0, f"policy {artifact.version} written: {chosen}")
    seconds = time.monotonic() - started
    return PlanningTrained(artifact, policies, chosen, best_rule, means, gain, tuple(history), seconds)


def _metrics(means: Mapping[str, Interval], gain: Interval, iterations: int) -> dict[str, float]:
    found = {f"return_{name}": mean.value for name, mean in means.items()}
    return found | {
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "iterations": iterations,
    }


def _learn(
    task: Task,
    start: Constant,
    settings: PlanningSettings,
    out: Path,
    said: Mapping[str, Any],
    history: list[float],
    tell: Tell,
) -> Policy:
    """Train until `settings.iterations` are in `history`, with checkpoints, and return the network."""
    tell(0.05, f"starting {settings.algorithm.upper()}")
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix=".rllib-", dir=out.resolve()) as storage:
        found = algorithm(task, settings, Path(storage), len(history))
        try:
            if history:
                found.restore_from_path(str(latest(out)))
            elif settings.algorithm == "ppo":
                start_from(found, start, settings.num_envs, _TUNING_SEED + 1)
            for number in range(len(history) + 1, settings.iterations + 1):
                mean = float(found.train()["env_runners"]["episode_return_mean"]) / task.scale
                history.append(mean)
                tell(
                    0.1 + 0.8 * number / settings.iterations,
                    f"iteration {number} of {settings.iterations}: {mean:.4g}",
                )
                if number % settings.checkpoint_every == 0 or number == settings.iterations:
                    _checkpoint(found, out, {**said, "history": history})
            return network_of(found.get_module(), task)
        finally:
            found.stop()


def latest(out: Path) -> Path | None:
    """The checkpoint to go on from."""
    found = {int(path.name.partition("-")[2]): path for path in out.glob(f"{CHECKPOINT}-*")}
    return found[max(found)].resolve() if found else None


def _checkpoint(found: Any, out: Path, state: Mapping[str, Any]) -> None:
    """Write the new one, name it when it is whole, then drop the old one: a stop at any point leaves one."""
    before, fresh = latest(out), out / f".{CHECKPOINT}"
    shutil.rmtree(fresh, ignore_errors=True)
    found.save_to_path(str(fresh.resolve()))
    (fresh / STATE).write_text(json.dumps(state), encoding="utf-8")
    fresh.rename(out / f"{CHECKPOINT}-{len(state['history'])}")
    if before is not None:
        shutil.rmtree(before)


def _history(out: Path, said: Mapping[str, Any], resume: bool) -> list[float]:
    """Returns of the iterations that are done: empty for a new run."""
    checkpoint = latest(out)
    if not resume:
        if checkpoint is not None:
            raise ValueError(f"out: {out} holds a checkpoint; resume it, or name another folder")
        return []
    if checkpoint is None:
        raise ValueError(f"out: {out} holds no checkpoint to resume; leave resume off for a new run")
    found = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    for part in ("environment", "settings"):
        now = json.loads(json.dumps(said[part]))
        differing = [name for name in now if now[name] != found[part].get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{part}.{name}: the checkpoint in {out} was made with {found[part].get(name)!r}, now it is "
                f"{now[name]!r}; use the same, or start in another folder"
            )
    return [float(x) for x in found["history"]]


def _digest(environment: Mapping[str, Any], settings: PlanningSettings) -> str:
    """SHA-256 (hex) of what was trained on and how: of files their content, not their place."""
    said = [{name: _content(value) for name, value in environment.items()}, asdict(settings)]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _content(value: Any) -> Any:
    if not isinstance(value, str) or not Path(value).exists():
        return value
    files = sorted(Path(value).glob("*.npz")) if Path(value).is_dir() else [Path(value)]
    return [fingerprint(file) for file in files]
