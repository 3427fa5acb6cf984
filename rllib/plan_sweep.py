"""A trial of a sweep of planning policies: some iterations of RLlib, then a look at episodes of its own.

The sweep itself is `training.tune`, which the command line brings together with this (`training.tune.
experiment.Work` and `Workshop` say what is asked of a trial).
"""

from __future__ import annotations

import io
import logging
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rllib.plan_algorithms import PlanningSettings, algorithm
from rllib.plan_evaluate import best_constant, compare
from rllib.plan_keep import SWEEP_SEED, TUNING_SEED
from rllib.plan_space import trial_settings
from rllib.plan_start import start_from
from rllib.policies import Network, network_of
from rllib.tasks import Constant, Task

# A trial is judged so often; what early stopping compares are these steps.
STEPS, GRACE = 9, 3
# SAC makes most of its updates on a network twice, and costs some ten times as much as PPO.
SHARES = {"ppo": 2, "sac": 1}


@dataclass(frozen=True, slots=True)
class PlanningWorkshop:
    """Makes trials. constant: that PPO starts from; base: settings where a trial has none of its own."""

    task: Task
    base: PlanningSettings
    constant: Constant

    @classmethod
    def of(cls, task: Task, base: PlanningSettings) -> PlanningWorkshop:
        """With the best constant, as `train_planning` finds it."""
        return cls(task, base, best_constant(task, base.episodes, TUNING_SEED))

    def make(self, model: str, parameters: Mapping[str, Any]) -> PlanningWork:
        """Untrained. model: `ppo` or `sac`."""
        return PlanningWork(self.task, trial_settings(self.base, model, parameters), self.constant)

    def close(self) -> None:
        """Trials share nothing on disk."""


class PlanningWork:
    """A policy in training. steps: looks at it, `STEPS` or one per iteration; all trials make them after the
    same shares of their episodes. patience: none, returns go up and down."""

    def __init__(self, task: Task, settings: PlanningSettings, constant: Constant) -> None:
        self.steps = min(STEPS, settings.iterations)
        self.patience, self.pace = self.steps + 1, STEPS / self.steps
        self._task, self._settings, self._constant = task, settings, constant
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._trained: Any = None  # RLlib's; made when there is something to do
        self._checkpoint: torch.Tensor | None = None
        self._done = 0
        self._best: tuple[float, Network] | None = None

    def advance(self, step: int) -> dict[str, float]:
        """Train on; `value` is the mean return of the policy without chance on the sweep's episodes,
        `exploring` that of training's last episodes."""
        trained, exploring = self._open(), float("nan")
        for _ in range(self._done, round(step * self._settings.iterations / self.steps)):
            exploring = float(trained.train()["env_runners"]["episode_return_mean"]) / self._task.scale
            self._done += 1
        network = network_of(trained.get_module(), self._task)
        value = self._judged(network)
        if np.isfinite(value) and (self._best is None or value > self._best[0]):
            self._best = (value, network)
        return {"value": value, "exploring": exploring}

    def _judged(self, network: Network) -> float:
        seeds = range(SWEEP_SEED, SWEEP_SEED + self._settings.rounds)
        found = compare(self._task, {"learned": network}, self._settings.episodes, seeds)
        return float(found["learned"].mean())

    def _open(self) -> Any:
        """RLlib's algorithm: as it was left, or new at the best constant."""
        if self._trained is None:
            logging.getLogger("ray.rllib").setLevel(logging.ERROR)
            self._folder = tempfile.TemporaryDirectory(prefix="qiance-rllib-")
            place = Path(self._folder.name)
            self._trained = algorithm(self._task, self._settings, place, self._done)
            if self._checkpoint is not None:
                _unpack(self._checkpoint, place / "before")
                self._trained.restore_from_path(str(place / "before"))
            elif self._settings.algorithm == "ppo":
                start_from(self._trained, self._constant, self._settings.num_envs, TUNING_SEED + 1)
        return self._trained

    def state(self) -> dict[str, Any]:
        """RLlib's checkpoint, packed, and the best policy so far."""
        with tempfile.TemporaryDirectory(prefix="qiance-rllib-") as folder:
            self._trained.save_to_path(folder)
            packed = _pack(Path(folder))
        best = None if self._best is None else {"value": self._best[0], **_plain(self._best[1])}
        return {"checkpoint": packed, "done": self._done, "best": best}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Episodes to come are others than an unbroken run would have met."""
        self._checkpoint, self._done = state["checkpoint"], int(state["done"])
        self._best = policy_in(state, self._task)

    def close(self) -> None:
        """Stop RLlib's algorithm and remove its files."""
        if self._trained is not None:
            self._trained.stop()
            self._trained = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def policy_in(state: Mapping[str, Any], task: Task) -> tuple[float, Network] | None:
    """The best policy in the state of a trial, with its mean return on the sweep's episodes."""
    best = state["best"]
    if best is None:
        return None
    weights, biases = (tuple(one.numpy() for one in best[name]) for name in ("weights", "biases"))
    return float(best["value"]), Network(task, weights, biases, bool(best["squash"]), float(best["stretch"]))


def _plain(network: Network) -> dict[str, Any]:
    arrays = {"weights": network.weights, "biases": network.biases}
    plain = {name: [torch.from_numpy(one.copy()) for one in found] for name, found in arrays.items()}
    return {**plain, "squash": network.squash, "stretch": network.stretch}


def _pack(folder: Path) -> torch.Tensor:
    """A folder as bytes: so the state of a trial is one file, which is replaced at once."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(folder, arcname=".")
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def _unpack(packed: torch.Tensor, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed.numpy().tobytes())) as archive:
        archive.extractall(folder, filter="data")
