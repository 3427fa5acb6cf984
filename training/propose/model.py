"""The proposer as an artifact: network and outcome model as safetensors, what they are about as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, ArtifactError, load_manifest, write_artifact
from qiance.domain import Objective
from training.propose.fit import Conditions, FittedProposer, FittedVae
from training.propose.network import ConditionalVae, VaeConfig
from training.propose.outcome import OutcomeModel, Regression
from training.propose.propose import Proposer
from training.propose.vector import COLUMNS, Space

KIND = "proposer-model"
ARRAYS, WORDS, CARD = "arrays.safetensors", "proposer.json", "card.json"
_NETWORK, _TARGET = "network.", "target."


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
    """The artifact `root/proposer-model-VERSION`."""
    from safetensors.numpy import save_file

    fitted = proposer.fitted
    arrays = {name: np.ascontiguousarray(value) for name, value in _arrays(fitted).items()}
    words = {
        "columns": COLUMNS,
        "features": proposer.names,
        "goals": [goal.value for goal in proposer.goals],
        "network": asdict(fitted.vae.network.config),
        "space": asdict(fitted.space),
        "least_cost": fitted.outcomes.least_cost,
        "intercepts": {name: own.intercept for name, own in fitted.outcomes.targets.items()},
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


def _arrays(fitted: FittedProposer) -> dict[str, NDArray[np.generic]]:
    found = {f"{_NETWORK}{name}": value.numpy() for name, value in fitted.vae.network.state_dict().items()}
    found |= {"outcome_centre": fitted.outcomes.centre, "outcome_scale": fitted.outcomes.scale}
    found |= {
        f"condition_{name}": getattr(fitted.conditions, name) for name in ("centre", "scale", "budgets")
    }
    for name, own in fitted.outcomes.targets.items():
        parts = {"weight": own.weight, "covariance": own.covariance, "centre": own.centre}
        found |= {f"{_TARGET}{name}.{part}": value for part, value in parts.items()}
    return found


def load_proposer(path: Path) -> Proposer:
    """Read what `write_proposer` wrote; ArtifactError for damage, another kind or other columns."""
    from safetensors.numpy import load_file

    manifest = load_manifest(path)
    if manifest.kind != KIND:
        raise ArtifactError(
            f"{path}: is of kind {manifest.kind!r}; pass a {KIND!r} of `qiance train proposer`"
        )
    arrays, words = load_file(path / ARRAYS), json.loads((path / WORDS).read_text(encoding="utf-8"))
    goals = tuple(Objective(goal) for goal in words["goals"])
    if manifest.schema_hash != schema_hash(words["features"], goals):
        other = sorted(set(words["columns"]) ^ set(COLUMNS)) or words["columns"]
        raise ArtifactError(f"{path}: proposes other columns ({', '.join(other)}); train it again")
    network = ConditionalVae(VaeConfig(**words["network"]))
    state = {
        name.removeprefix(_NETWORK): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(_NETWORK)
    }
    network.load_state_dict(state)
    targets = {
        name: Regression(
            intercept=intercept,
            **{part: arrays[f"{_TARGET}{name}.{part}"] for part in ("weight", "covariance", "centre")},
        )
        for name, intercept in words["intercepts"].items()
    }
    outcomes = OutcomeModel(arrays["outcome_centre"], arrays["outcome_scale"], words["least_cost"], targets)
    conditions = Conditions(goals, *(arrays[f"condition_{name}"] for name in ("centre", "scale", "budgets")))
    fitted = FittedProposer(FittedVae(network.eval(), [], 0.0), outcomes, conditions, Space(**words["space"]))
    segments = {name: np.array(own) for name, own in words["segments"].items()}
    return Proposer(fitted, tuple(words["features"]), segments, words["asked"])
