"""Pacing policies as artifacts: a trained network or a rule, behind one loader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qiance.artifacts.manifest import Artifact, ArtifactError, load_manifest, write_artifact
from qiance.artifacts.program import load_program
from qiance.decide.pacing import (
    LIMIT,
    OBSERVATION,
    Constant,
    EvenPace,
    Observation,
    PacingPolicy,
    observation_hash,
)

if TYPE_CHECKING:
    import torch

KIND = "pacing-policy"
SERVICE = "pacing-observation"
POLICY, PROGRAM = "policy.json", "program.pt2"
Rule = Constant | EvenPace


class ExportedPolicy:
    """A loaded pacing policy, a network or a rule alike; `multiplier` may be called from several threads.

    rule: `program`, `even_pace` or `constant`.
    """

    def __init__(self, artifact: Artifact, rule: str, policy: PacingPolicy) -> None:
        self.artifact = artifact
        self.rule = rule
        self._policy = policy

    @classmethod
    def load(cls, path: Path) -> ExportedPolicy:
        """Load and verify the artifact at `path`.

        Raises ArtifactError for a damaged artifact, another kind, other observations than this code makes, an
        unknown rule, and a network that answers outside the range of multipliers.
        """
        manifest = load_manifest(path, KIND, "qiance run")
        if manifest.schema_hash != observation_hash():
            raise ArtifactError(
                f"{path}: was trained on other observations than {OBSERVATION}; train it again"
            )
        try:
            settings = json.loads((path / POLICY).read_text(encoding="utf-8"))
            policy = _policy(path, settings)
        except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise ArtifactError(
                f"{path}: {POLICY} cannot be used ({error}); export the policy again"
            ) from None
        loaded = cls(Artifact(path, manifest), str(settings["rule"]), policy)
        loaded.multiplier(np.zeros(len(OBSERVATION), dtype=np.float32))
        return loaded

    @property
    def version(self) -> str:
        return self.artifact.version

    def multiplier(self, observation: Observation) -> float:
        """Factor on λ₀ in [1/3, 3] for one observation `[6]`, see `qiance.decide.pacing.observe`."""
        seen = np.asarray(observation, dtype=np.float32)
        if seen.shape != (len(OBSERVATION),):
            raise ValueError(
                f"observation: shape is {list(seen.shape)}; must be [{len(OBSERVATION)}], see observe()"
            )
        if not np.isfinite(seen).all():
            raise ValueError(f"observation: {OBSERVATION[int((~np.isfinite(seen)).argmax())]} is not finite")
        value = self._policy.multiplier(seen)
        # The comparison is false for NaN too.
        if not 1 / LIMIT - 1e-4 <= value <= LIMIT + 1e-4:
            raise ArtifactError(f"{self.artifact.path}: answered {value}, outside [1/{LIMIT:g}, {LIMIT:g}]")
        return value


def write_rule(
    root: Path,
    rule: Rule,
    *,
    metrics: Mapping[str, float],
    data_fingerprint: str,
    parents: Sequence[str] = (),
) -> Artifact:
    """Write a rule as a pacing policy below `root`; the same rule on the same data gives the same version."""
    if isinstance(rule, EvenPace):
        settings: dict[str, Any] = {"rule": "even_pace", "gain": rule.gain}
    else:
        settings = {"rule": "constant", "value": rule.value}
    files = {POLICY: _json_writer(settings)}
    return _write(root, files, metrics, data_fingerprint, parents)


def write_program(
    root: Path,
    program: Callable[[Path], None],
    *,
    metrics: Mapping[str, float],
    data_fingerprint: str,
    parents: Sequence[str] = (),
) -> Artifact:
    """Write a network as a pacing policy below `root`.

    program: writes the exported program at the path it is given; it maps observations `[n, 6]` float32 to
    multipliers `[n]`, everything between them inside (see `qiance.artifacts.program.export_program`).
    """
    files = {POLICY: _json_writer({"rule": "program"}), PROGRAM: program}
    return _write(root, files, metrics, data_fingerprint, parents)


class _Program:
    """An exported network as a policy."""

    def __init__(self, program: torch.nn.Module) -> None:
        self._program = program

    def multiplier(self, observation: Observation) -> float:
        import torch

        with torch.inference_mode():
            output: torch.Tensor = self._program(torch.from_numpy(observation[None]))
        return float(output.numpy()[0])


def _policy(path: Path, settings: Mapping[str, Any]) -> PacingPolicy:
    rule = settings["rule"]
    if rule == "even_pace":
        return EvenPace(gain=float(settings["gain"]))
    if rule == "constant":
        return Constant(value=float(settings["value"]))
    if rule == "program":
        return _Program(load_program(path / PROGRAM))
    raise ValueError(f"rule: {rule!r} is none of program, even_pace, constant")


def _write(
    root: Path,
    files: Mapping[str, Callable[[Path], None]],
    metrics: Mapping[str, float],
    data_fingerprint: str,
    parents: Sequence[str],
) -> Artifact:
    return write_artifact(
        root,
        KIND,
        files,
        metrics=metrics,
        parents=parents,
        feature_service=SERVICE,
        schema_hash=observation_hash(),
        data_fingerprint=data_fingerprint,
    )


def _json_writer(settings: Mapping[str, Any]) -> Callable[[Path], None]:
    text = json.dumps(settings, sort_keys=True)

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    return write
