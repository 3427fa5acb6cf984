"""The proposer as an artifact: decoder and outcome model as safetensors, what they are about as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, ArtifactError, Manifest, load_manifest, write_artifact
from qiance.domain import Objective
from qiance.proposer.outcome import OutcomeModel, Regression
from qiance.proposer.proposer import Conditions, Drawn, Learned, Proposer
from qiance.proposer.vector import CHANNELS, COLUMNS, FORMS, NUMBERS, Space

KIND = "proposer-model"
ARRAYS, WORDS, CARD = "arrays.safetensors", "proposer.json", "card.json"
# Bounds of what the decoder gives, in training and here.
LEAST_LOG_DEVIATION, LEAST_CONCENTRATION = -3.5, 0.05
_NETWORK, _TARGET = "network.", "target."
_DECODER, _DEVIATION = "decoder.", "log_deviation"
_PARTS = (len(NUMBERS), FORMS, len(CHANNELS))

Arrays = Mapping[str, NDArray[np.float32]]


class Decoder:
    """p(x | z, c) of a conditional VAE: linear layers with SiLU between; strategies are drawn from it.

    weights: `decoder.K.weight` and `decoder.K.bias` of the layers in order of K, and `log_deviation` of the
    numbers, as `training.propose.network` names them. ValueError where they are not there or do not fit.
    """

    def __init__(self, weights: Arrays) -> None:
        self.weights = {k: v for k, v in weights.items() if k.startswith(_DECODER) or k == _DEVIATION}
        numbers = sorted({int(name.split(".")[1]) for name in self.weights if name != _DEVIATION})
        self._layers = [
            (self.weights[f"{_DECODER}{k}.weight"], self.weights[f"{_DECODER}{k}.bias"]) for k in numbers
        ]
        if not self._layers or self._layers[-1][0].shape[0] != sum(_PARTS):
            raise ValueError(f"decoder: does not end in {sum(_PARTS)} numbers")
        if self.weights[_DEVIATION].shape != (_PARTS[0],):
            raise ValueError(f"log_deviation: does not hold {_PARTS[0]} numbers")

    @property
    def inputs(self) -> int:
        """Width of z and the condition together."""
        return int(self._layers[0][0].shape[1])

    def sample(self, condition: NDArray[np.float32], seed: int) -> Drawn:
        """One record per row of `condition` `[n, C]`; the same for the same seed."""
        import torch
        from torch.distributions import Dirichlet
        from torch.nn import functional

        given = torch.from_numpy(condition)
        with _seeded(seed), torch.no_grad():
            x = torch.cat([torch.randn(len(given), self.inputs - given.shape[1]), given], dim=1)
            for place, (weight, bias) in enumerate(self._layers):
                x = functional.silu(x) if place else x
                x = functional.linear(x, torch.from_numpy(weight), torch.from_numpy(bias))
            mean, form, shares = torch.split(x, list(_PARTS), dim=1)
            deviation = torch.from_numpy(self.weights[_DEVIATION]).clamp(min=LEAST_LOG_DEVIATION).exp()
            numbers = mean + deviation * torch.randn_like(mean)
            drawn = torch.multinomial(form.softmax(dim=1), 1, replacement=True)[:, 0]
            mix = Dirichlet(functional.softplus(shares) + LEAST_CONCENTRATION).sample()
        return Drawn(drawn.numpy(), numbers.double().numpy(), mix.double().numpy())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's own random numbers from `seed` on one thread; its state is given back as it was."""
    import torch

    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.set_num_threads(1)
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def schema_hash(features: Sequence[str], goals: Sequence[Objective]) -> str:
    """SHA-256 of what goes in and comes out: columns of strategies, features of segments, goals."""
    words = json.dumps([list(COLUMNS), list(features), [goal.value for goal in goals]])
    return hashlib.sha256(words.encode()).hexdigest()


def write_proposer(
    root: Path,
    proposer: Proposer,
    metrics: Mapping[str, float],
    card: Mapping[str, Any],
    data_fingerprint: str,
) -> Artifact:
    """The artifact `root/proposer-model-VERSION`; TypeError for a network that is no `Decoder`."""
    from safetensors.numpy import save_file

    learned = proposer.fitted
    arrays = {name: np.ascontiguousarray(value) for name, value in _arrays(learned).items()}
    words = {
        "columns": COLUMNS,
        "features": proposer.names,
        "goals": [goal.value for goal in proposer.goals],
        "space": asdict(learned.space),
        "least_cost": learned.outcomes.least_cost,
        "intercepts": {name: own.intercept for name, own in learned.outcomes.targets.items()},
        "asked": proposer.asked,
        "segments": {name: own.tolist() for name, own in proposer.segments.items()},
    }
    files: dict[str, Callable[[Path], None]] = {
        ARRAYS: lambda path: save_file(arrays, path),
        WORDS: lambda path: write_json(path, words),
        CARD: lambda path: write_json(path, card),
    }
    return write_artifact(
        root,
        KIND,
        files,
        metrics=metrics,
        feature_service="segment_features",
        schema_hash=schema_hash(proposer.names, proposer.goals),
        data_fingerprint=data_fingerprint,
    )


def _arrays(learned: Learned) -> dict[str, NDArray[Any]]:
    if not isinstance(learned.network, Decoder):
        raise TypeError(f"network: a {type(learned.network).__name__} cannot be written; pass a Decoder")
    found: dict[str, NDArray[Any]] = {f"{_NETWORK}{k}": v for k, v in learned.network.weights.items()}
    found |= {"outcome_centre": learned.outcomes.centre, "outcome_scale": learned.outcomes.scale}
    found |= {
        f"condition_{name}": getattr(learned.conditions, name) for name in ("centre", "scale", "budgets")
    }
    for name, own in learned.outcomes.targets.items():
        parts = {"weight": own.weight, "covariance": own.covariance, "centre": own.centre}
        found |= {f"{_TARGET}{name}.{part}": value for part, value in parts.items()}
    return found


def load_proposer(path: Path) -> Proposer:
    """Read what `write_proposer` wrote; ArtifactError for damage, another kind or other columns."""
    manifest = load_manifest(path, KIND, "qiance train proposer")
    try:
        return _read(path, manifest)
    except ArtifactError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: cannot be read as a proposer ({error}); train it again") from None


def _read(path: Path, manifest: Manifest) -> Proposer:
    from safetensors.numpy import load_file

    arrays, words = load_file(path / ARRAYS), json.loads((path / WORDS).read_text(encoding="utf-8"))
    goals = tuple(Objective(goal) for goal in words["goals"])
    if manifest.schema_hash != schema_hash(words["features"], goals):
        other = sorted(set(words["columns"]) ^ set(COLUMNS)) or words["columns"]
        raise ArtifactError(f"{path}: proposes other columns ({', '.join(other)}); train it again")
    network = Decoder(
        {name.removeprefix(_NETWORK): value for name, value in arrays.items() if name.startswith(_NETWORK)}
    )
    targets = {
        name: Regression(
            intercept=intercept,
            **{part: arrays[f"{_TARGET}{name}.{part}"] for part in ("weight", "covariance", "centre")},
        )
        for name, intercept in words["intercepts"].items()
    }
    outcomes = OutcomeModel(arrays["outcome_centre"], arrays["outcome_scale"], words["least_cost"], targets)
    conditions = Conditions(goals, *(arrays[f"condition_{name}"] for name in ("centre", "scale", "budgets")))
    if network.inputs <= conditions.width:
        raise ValueError(
            f"decoder: takes {network.inputs} numbers, the condition alone has {conditions.width}"
        )
    learned = Learned(network, outcomes, conditions, Space(**words["space"]))
    segments = {name: np.array(own) for name, own in words["segments"].items()}
    return Proposer(learned, tuple(words["features"]), segments, words["asked"], manifest.version)
