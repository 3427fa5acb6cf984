"""Policies of the planning environments as artifacts: a network or a rule, behind one loader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from qiance.artifacts import Artifact, ArtifactError, load_manifest, write_artifact
from rllib.lockstep import Floats32
from rllib.tasks import Constant, Dials, Policy, Task

KIND = "planning-policy"
POLICY, WEIGHTS = "policy.json", "weights.npz"


@dataclass(frozen=True, eq=False)
class Network:
    """An MLP with tanh between its layers, from the task's features to its dials.

    weights `[in, out]` and biases `[out]`, float32. squash: tanh of the outputs too, as SAC has it. stretch:
    dials are the outputs times it.
    """

    task: Task
    weights: tuple[Floats32, ...]
    biases: tuple[Floats32, ...]
    squash: bool
    stretch: float = 1.0

    def choose(self, observations: Floats32) -> Dials:
        """Dials `[n, k]` for observations `[n, d]`, their mean; or the likeliest choice, `[n]`."""
        x = self.task.features(np.asarray(observations, dtype=np.float32))
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            x = np.tanh(x) if layer < last or self.squash else x
        choice = isinstance(self.task.dials, gymnasium.spaces.Discrete)
        return x.argmax(axis=1) if choice else np.float32(self.stretch) * x

    def act(self, observations: Floats32) -> Floats32:
        """Actions `[n, k]` for observations `[n, d]`."""
        return self.task.act(observations, self.choose(observations))


def network_of(module: Any, task: Task, stretch: float = 1.0) -> Network:
    """The deterministic policy of an RLlib module of PPO (separate value layers) or SAC.

    stretch: of dials that the module's actions are, where it was trained on smaller ones.
    """
    ppo = hasattr(module, "encoder")
    parts = [module.encoder.actor_encoder, module.pi] if ppo else [module.pi_encoder, module.pi]
    linear = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Linear)]
    weights = [layer.weight.detach().cpu().numpy().T.copy() for layer in linear]
    biases = [layer.bias.detach().cpu().numpy().copy() for layer in linear]
    if isinstance(task.dials, gymnasium.spaces.Discrete):
        return Network(task, tuple(weights), tuple(biases), squash=False)
    size = task.dials.shape[0]  # the rest are standard deviations
    weights[-1], biases[-1] = weights[-1][:, :size].copy(), biases[-1][:size].copy()
    return Network(task, tuple(weights), tuple(biases), squash=not ppo, stretch=stretch)


def save_policy(
    root: Path,
    task: Task,
    rule: str,
    policy: Policy,
    *,
    metrics: Mapping[str, float],
    data_fingerprint: str,
    parents: Sequence[str] = (),
) -> Artifact:
    """Write a policy below `root`. rule: `network`, `constant`, or the name of one of the task's rules."""
    settings: dict[str, Any] = {"environment": task.name, "rule": rule}
    files: dict[str, Callable[[Path], None]] = {}
    if isinstance(policy, Network):
        settings |= {
            "squash": policy.squash,
            "stretch": policy.stretch,
            "layers": len(policy.weights),
        }
        files[WEIGHTS] = _weights_writer(policy)
    elif isinstance(policy, Constant):
        settings["dials"] = np.asarray(policy.dials).tolist()
    text = json.dumps(settings, sort_keys=True)
    files[POLICY] = lambda path: path.write_text(text, encoding="utf-8") and None
    return write_artifact(
        root,
        KIND,
        files,
        metrics=metrics,
        parents=parents,
        feature_service=f"planning-{task.name}",
        schema_hash=schema_hash(task),
        data_fingerprint=data_fingerprint,
    )


def load_policy(path: Path, task: Task) -> Policy:
    """Load and verify the policy at `path` for `task`.

    Raises ArtifactError for a damaged artifact, another kind or environment, other features or actions than
    the task has, and weights that do not fit.
    """
    manifest = load_manifest(path, KIND, "qiance train planning")
    if manifest.schema_hash != schema_hash(task):
        raise ArtifactError(
            f"{path}: was trained on other observations or actions than {task.name} has; train it again"
        )
    try:
        settings = json.loads((path / POLICY).read_text(encoding="utf-8"))
        return _policy(path, settings, task)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ArtifactError(f"{path}: {POLICY} cannot be used ({error}); export the policy again") from None


def schema_hash(task: Task) -> str:
    """SHA-256 (hex) of what a policy is built on: the environment, its features and its actions."""
    env = task.make(1)
    space = env.single_action_space
    seen = task.features(np.zeros((1, *env.single_observation_space.shape), dtype=np.float32))
    said = [task.name, seen.shape[1], str(task.dials), space.low.tolist(), space.high.tolist()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _policy(path: Path, settings: Mapping[str, Any], task: Task) -> Policy:
    rule = settings["rule"]
    if rule == "network":
        with np.load(path / WEIGHTS, allow_pickle=False) as stored:
            layers = range(settings["layers"])
            weights, biases = (tuple(stored[f"{name}{n}"] for n in layers) for name in ("weight", "bias"))
        stretch = float(settings.get("stretch", 1.0))
        network = Network(task, weights, biases, bool(settings["squash"]), stretch)
        network.act(np.zeros((1, *task.make(1).single_observation_space.shape), dtype=np.float32))
        return network
    if rule == "constant":
        return Constant(task, np.array(settings["dials"], dtype=task.dials.dtype))
    if rule not in task.rules():
        raise ValueError(f"rule: {rule!r} is none of network, constant, {', '.join(task.rules())}")
    return task.rules()[rule]


def _arrays(policy: Network) -> dict[str, Floats32]:
    arrays = {f"weight{n}": value for n, value in enumerate(policy.weights)}
    return arrays | {f"bias{n}": value for n, value in enumerate(policy.biases)}


def _weights_writer(policy: Network) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **_arrays(policy))

    return write


def write_network(path: Path, policy: Network) -> None:
    """A network alone (npz), without an artifact's manifest; the file is replaced at once."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as stream:
        np.savez(stream, squash=policy.squash, stretch=policy.stretch, **_arrays(policy))
    temporary.replace(path)


def read_network(path: Path, task: Task) -> Network:
    """What `write_network` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        layers = range(sum(name.startswith("weight") for name in stored.files))
        weights, biases = (tuple(stored[f"{name}{n}"] for n in layers) for name in ("weight", "bias"))
        return Network(task, weights, biases, bool(stored["squash"]), float(stored["stretch"]))
