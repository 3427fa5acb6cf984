"""Bandits as artifacts: what was learned, what is pending, and the features and arms that it is about."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, ArtifactError, load_manifest, write_artifact
from qiance.bandits.agent import Bandit, BanditSettings
from qiance.bandits.choice import Rule
from qiance.bandits.network import Network
from qiance.bandits.pending import COLUMNS, Learn, Settled
from qiance.bandits.posterior import LinearPosterior, Prior

KIND = "bandit-policy"
SERVICE = "bandit-context"
INFO, STATE = "bandit.json", "state.npz"
_VECTORS = ("cost", "centre", "scale")


def write_bandit(
    root: Path,
    bandit: Bandit,
    *,
    metrics: Mapping[str, float],
    data_fingerprint: str,
    parents: Sequence[str] = (),
) -> Artifact:
    """Write a bandit below `root`: settings as JSON, arrays by numpy, nothing pickled.

    Ids and contexts of the decisions that are pending are in it, and of all that a network is refitted on.
    """
    told = {"features": bandit.features, "arms": bandit.arms, "settings": asdict(bandit.settings)}
    return write_artifact(
        root,
        KIND,
        {INFO: lambda path: write_json(path, told), STATE: lambda path: _write_arrays(path, _state(bandit))},
        metrics=metrics,
        parents=parents,
        feature_service=SERVICE,
        schema_hash=schema_hash(bandit.features, bandit.arms),
        data_fingerprint=data_fingerprint,
    )


def load_bandit(
    path: Path, features: Sequence[str] | None = None, arms: Sequence[str] | None = None
) -> Bandit:
    """Load and verify the artifact at `path`; it goes on where it was, with the decisions that were pending.

    features, arms: what the caller has, in order; None takes what the artifact says. Raises ArtifactError for
    a damaged artifact, another kind, and a feature or arm that differs, by name.
    """
    manifest = load_manifest(path, KIND, "qiance train bandit")
    try:
        told = json.loads((path / INFO).read_text(encoding="utf-8"))
        for name, given in (("feature", features), ("arm", arms)):
            _same(path, name, told[f"{name}s"], given)
        if manifest.schema_hash != schema_hash(told["features"], told["arms"]):
            raise ValueError("its features and arms are not those of the manifest")
        with np.load(path / STATE, allow_pickle=False) as stored:
            return _bandit(told, {name: stored[name] for name in stored.files})
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: cannot be used ({error}); write it again") from None


def schema_hash(features: Sequence[str], arms: Sequence[str]) -> str:
    """SHA-256 (hex) of the names of the features and of the arms, in order."""
    return hashlib.sha256(json.dumps([list(features), list(arms)]).encode()).hexdigest()


def _same(path: Path, name: str, stored: Sequence[str], given: Sequence[str] | None) -> None:
    if given is None or list(given) == list(stored):
        return
    pairs = zip([*given, None], [*stored, None], strict=False)
    place, (ours, theirs) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ArtifactError(f"{path}: {name} {place} is {theirs!r}, and here {ours!r}; train the bandit again")


def _state(bandit: Bandit) -> dict[str, NDArray[Any]]:
    parts: dict[str, Mapping[str, NDArray[Any]]] = {
        "posterior": bandit.posterior.state(),
        "pending": bandit.pending.state(),
        "log": {name: getattr(bandit.log, name) for name in COLUMNS},
        "network": {} if bandit.network is None else bandit.network.state(),
    }
    arrays = {f"{part}.{name}": array for part, found in parts.items() for name, array in found.items()}
    return arrays | {name: getattr(bandit, name) for name in _VECTORS}


def _bandit(told: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Bandit:
    def part(prefix: str) -> dict[str, NDArray[Any]]:
        return {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(prefix)}

    settings = dict(told["settings"])
    settings |= {
        "rule": Rule(settings["rule"]),
        "learn": Learn(settings["learn"]),
        "prior": Prior(**settings["prior"]),
    }
    network = part("network.")
    bandit = Bandit(
        told["features"],
        told["arms"],
        BanditSettings(**settings),
        **{name: arrays[name] for name in _VECTORS},
        network=Network.from_state(network) if network else None,
    )
    posterior = LinearPosterior.from_state(part("posterior."), bandit.settings.prior)
    if posterior.shape != bandit.posterior.shape:
        raise ValueError(f"posterior: is of shape {posterior.shape}; must be {bandit.posterior.shape}")
    bandit.posterior = posterior
    bandit.pending.restore(part("pending."))
    bandit.log = Settled(**part("log."))
    return bandit


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
