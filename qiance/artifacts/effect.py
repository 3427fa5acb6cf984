"""The effect model as every room runs it: one loader and one scorer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.manifest import Artifact, ArtifactError, Manifest, load_manifest
from qiance.artifacts.program import load_program
from qiance.features.schema import Columns, Encoder, FeatureSchema

if TYPE_CHECKING:
    import torch

KIND = "effect-model"
TASKS = ("click", "conversion", "sales", "margin")
PROGRAM, ENCODER, INFO = "program.pt2", "encoder.json", "effect.json"
# Rows per pass: bounds the memory of a pass over a large grid of users × actions.
_CHUNK = 16_384

Draws = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EffectDraws:
    """Predictions for n rows by H bootstrap heads, each `[n, H]` float32.

    click, conversion: probabilities within the outcome window.
    sales, margin: expected minor units per row (conversion included).
    A task that the model was not trained on is NaN throughout: it is unknown, not zero.
    """

    click: Draws
    conversion: Draws
    sales: Draws
    margin: Draws


@dataclass(frozen=True, slots=True)
class EffectInfo:
    """What the program of an effect model returns.

    tasks: trained tasks, in the order of the program's last axis.
    heads: H. hidden: sizes of the trunk.
    entire_space: conversion is P(click) · P(conversion | click), else a head of its own.
    width_scale: factor on the spread of the heads, so that 90 % intervals of group means cover over
        all tasks; width_scales: the factor that each task alone needs.
    """

    tasks: tuple[str, ...]
    heads: int
    hidden: tuple[int, ...]
    entire_space: bool
    width_scale: float
    width_scales: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "heads": self.heads,
            "hidden": list(self.hidden),
            "entire_space": self.entire_space,
            "width_scale": self.width_scale,
            "width_scales": dict(self.width_scales),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EffectInfo:
        return cls(
            tasks=tuple(data["tasks"]),
            heads=int(data["heads"]),
            hidden=tuple(int(size) for size in data["hidden"]),
            entire_space=bool(data["entire_space"]),
            width_scale=float(data["width_scale"]),
            width_scales={str(k): float(v) for k, v in data["width_scales"].items()},
        )


class EffectModel:
    """A loaded effect model; `predict` may be called from several threads."""

    def __init__(
        self, artifact: Artifact, encoder: Encoder, info: EffectInfo, program: torch.nn.Module, threads: int
    ) -> None:
        self.artifact = artifact
        self.encoder = encoder
        self.info = info
        self._program = program
        self._threads = threads

    @classmethod
    def load(cls, path: Path, expect: FeatureSchema | None = None, threads: int = 1) -> EffectModel:
        """Load and verify the artifact at `path`.

        expect: the schema that the caller will feed; a model of another one is refused.
        threads: torch threads of a prediction, a setting of the whole process.
        Raises ArtifactError for a damaged artifact, another kind, or another schema, saying which
        feature differs.
        """
        manifest = load_manifest(path)
        if manifest.kind != KIND:
            raise ArtifactError(f"{path}: is of kind {manifest.kind!r}; an effect model is {KIND!r}")
        if threads < 1:
            raise ValueError(f"threads: {threads} is not positive")
        encoder = _read_encoder(path, manifest)
        if expect is not None:
            _check_schema(path, expect, encoder.schema)
        info = EffectInfo.from_dict(json.loads((path / INFO).read_text(encoding="utf-8")))
        return cls(Artifact(path, manifest), encoder, info, load_program(path / PROGRAM), threads)

    @property
    def schema(self) -> FeatureSchema:
        return self.encoder.schema

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model was trained on."""
        return self.info.tasks

    @property
    def heads(self) -> int:
        return self.info.heads

    @property
    def width_scale(self) -> float:
        return self.info.width_scale

    @property
    def version(self) -> str:
        return self.artifact.version

    def predict(self, columns: Columns) -> EffectDraws:
        """Predictions for n rows (0 and 1 included).

        columns: feature name → `[n]`; further columns are ignored.
        Raises ValueError naming a missing column.
        """
        return self.predict_encoded(*self.encoder.encode(columns))

    def predict_encoded(self, num: NDArray[np.float32], cat: NDArray[np.int64]) -> EffectDraws:
        """The same for rows already encoded: num `[n, Dn]`, cat `[n, Dc]`."""
        n = len(num)
        starts = range(0, n, _CHUNK) or range(1)
        parts = [self._run(num[start : start + _CHUNK], cat[start : start + _CHUNK]) for start in starts]
        output = parts[0] if len(parts) == 1 else np.concatenate(parts)
        by_task = {task: output[:, :, place] for place, task in enumerate(self.tasks)}
        absent = np.full((n, self.heads), np.nan, dtype=np.float32)
        return EffectDraws(*(by_task.get(task, absent) for task in TASKS))

    def _run(self, num: NDArray[np.float32], cat: NDArray[np.int64]) -> Draws:
        """One pass: `[n, H, T]`."""
        import torch

        # OpenMP keeps this per calling thread, so it is looked at on every pass.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            output: torch.Tensor = self._program(torch.from_numpy(num), torch.from_numpy(cat))
        return output.numpy()


def _read_encoder(path: Path, manifest: Manifest) -> Encoder:
    encoder = Encoder.from_dict(json.loads((path / ENCODER).read_text(encoding="utf-8")))
    if encoder.schema.hash != manifest.schema_hash:
        raise ArtifactError(f"{path}: {ENCODER} has another schema than the manifest; train it again")
    return encoder


def _check_schema(path: Path, expect: FeatureSchema, found: FeatureSchema) -> None:
    differences = expect.diff(found)
    if differences:
        raise ArtifactError(
            f"{path}: was trained on other features: {'; '.join(differences)}; "
            "train it again or load the version that fits"
        )
