"""The effect model as every room runs it: one loader and one scorer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.manifest import Artifact, ArtifactError, Manifest, load_manifest
from qiance.artifacts.program import load_program
from qiance.artifacts.runner import Program, Runner, padded_size
from qiance.artifacts.width import WidthScale
from qiance.evaluate.calibration import Calibrator
from qiance.features.encoder import Encoder
from qiance.features.grid import GridColumns
from qiance.features.schema import Columns, FeatureSchema

if TYPE_CHECKING:
    import torch

KIND = "effect-model"
TASKS = ("click", "conversion", "sales", "margin")
PROGRAM, ENCODER, INFO = "program.pt2", "encoder.json", "effect.json"
# The same network over users × actions: what the actions give alone, and what they give with users.
ACTIONS, PAIRS = "actions.pt2", "pairs.pt2"
OTHER = "(other)"  # segment of values without a code of their own
# Rows per pass: few enough that what a pass writes (some hundred floats a row) stays near the core, enough
# that the calls themselves do not count.
_CHUNK = 2_048
# A GPU takes many more, bounded by its memory: joining the results of several passes in ordinary memory costs
# more than the kernels do.
_CUDA_CHUNK = 1_048_576

Draws = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EffectDraws:
    """Predictions for n rows by H bootstrap heads, each `[n, H]` float32; `[U, A, H]` of users × actions.

    click, conversion: probabilities within the outcome window.
    sales, margin: expected minor units per row (conversion included).
    A task that the model was not trained on is NaN throughout: it is unknown, not zero.
    """

    click: Draws
    conversion: Draws
    sales: Draws
    margin: Draws


@dataclass(frozen=True, slots=True)
class Calibration:
    """How probabilities were corrected on users that training did not see; the programs do it by themselves.

    segment: categorical feature by whose values it differs, None where it does not. tasks: per task the
    correction of its probability; its offsets are by value of `segment`, `OTHER` for values without a code.
    Of an entire space both factors are corrected: that of `conversion` is of P(conversion | click).
    """

    segment: str | None
    tasks: Mapping[str, Calibrator]

    def to_dict(self) -> dict[str, Any]:
        return {"segment": self.segment, "tasks": {task: c.to_dict() for task, c in self.tasks.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        tasks = {str(task): Calibrator.from_dict(found) for task, found in data["tasks"].items()}
        return cls(data["segment"], tasks)


@dataclass(frozen=True, slots=True)
class EffectInfo:
    """What the program of an effect model returns.

    tasks: trained tasks, in the order of the program's last axis.
    heads: H. hidden: sizes of the trunk.
    entire_space: conversion is P(click) · P(conversion | click), else a head of its own.
    grid: which columns of its input the programs for users × actions take apart, or None without them.
    width_scale: factor on the spread of the heads, so that 90 % intervals of group means cover over
        all tasks; width_scales: the factor that each task alone needs.
    calibration: None of models from before there was one.
    segment_scales: width_scale of segments of the calibration that have one of their own. width_groups: see
        `WidthScale`.
    """

    tasks: tuple[str, ...]
    heads: int
    hidden: tuple[int, ...]
    entire_space: bool
    width_scale: float
    width_scales: Mapping[str, float]
    grid: GridColumns | None = None
    calibration: Calibration | None = None
    segment_scales: Mapping[str, float] = field(default_factory=dict)
    width_groups: int | None = None

    @property
    def width(self) -> WidthScale:
        """Over all tasks."""
        return WidthScale(self.width_scale, self.segment_scales, self.width_groups)

    def to_dict(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "heads": self.heads,
            "hidden": list(self.hidden),
            "entire_space": self.entire_space,
            "width_scale": self.width_scale,
            "width_scales": dict(self.width_scales),
            "grid": None if self.grid is None else {"user": self.grid.user, "pair": self.grid.pair},
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "segment_scales": dict(self.segment_scales),
            "width_groups": self.width_groups,
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
            grid=_grid_columns(data.get("grid")),
            calibration=_calibration(data.get("calibration")),
            segment_scales={str(k): float(v) for k, v in data.get("segment_scales", {}).items()},
            width_groups=data.get("width_groups"),
        )


def _grid_columns(data: Mapping[str, Any] | None) -> GridColumns | None:
    """None of models from before there were programs for users × actions."""
    return None if data is None else GridColumns(tuple(data["user"]), tuple(data["pair"]))


def _calibration(data: Mapping[str, Any] | None) -> Calibration | None:
    return None if data is None else Calibration.from_dict(data)


def segments_of(encoder: Encoder, feature: str | None, cat: NDArray[np.int64]) -> NDArray[np.str_] | None:
    """`[n]` segment of each row, as the programs will tell it: by code, `OTHER` without one.

    feature: by whose values there are segments, None where there are none; cat: `[n, Dc]`.
    """
    if feature is None:
        return None
    place = encoder.schema.categorical.index(feature)
    return np.array([OTHER, *encoder.vocabularies[place]], dtype=np.str_)[cat[:, place]]


class EffectModel:
    """A loaded effect model; `predict` may be called from several threads."""

    def __init__(
        self,
        artifact: Artifact,
        encoder: Encoder,
        info: EffectInfo,
        runner: Runner,
        programs: Mapping[str, Program],
    ) -> None:
        self.artifact = artifact
        self.encoder = encoder
        self.info = info
        self._runner, self._programs = runner, programs

    @classmethod
    def load(
        cls,
        path: Path,
        expect: FeatureSchema | None = None,
        threads: int = 1,
        device: str = "cpu",
        dtype: str = "float32",
        cuda_graphs: bool = False,
    ) -> EffectModel:
        """Load and verify the artifact at `path`.

        expect: the schema that the caller will feed; a model of another one is refused.
        threads: torch threads of a prediction, in whichever thread it is asked for.
        device: cpu or cuda. dtype: float32, or bfloat16 for the products alone. cuda_graphs: replay recorded
        kernels, one recording per number of actions, and of users up to the next power of two; on cuda only.
        Raises ArtifactError for a damaged artifact, another kind, or another schema, saying which
        feature differs.
        """
        manifest = load_manifest(path, KIND, "qiance train")
        runner = Runner(threads, device, dtype, cuda_graphs)
        encoder = _read_encoder(path, manifest)
        if expect is not None:
            _check_schema(path, expect, encoder.schema)
        info = EffectInfo.from_dict(json.loads((path / INFO).read_text(encoding="utf-8")))
        names = (PROGRAM,) if info.grid is None else (PROGRAM, ACTIONS, PAIRS)
        programs = {name: runner.place(load_program(path / name), record=name == PAIRS) for name in names}
        return cls(Artifact(path, manifest), encoder, info, runner, programs)

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

    def scales_of(self, cat: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[n]` width scale of each row, by its segment; cat `[n, Dc]` as encoded."""
        feature = None if self.info.calibration is None else self.info.calibration.segment
        return self.info.width.of_rows(segments_of(self.encoder, feature, cat), len(cat))

    def predict(self, columns: Columns) -> EffectDraws:
        """Predictions for n rows (0 and 1 included).

        columns: feature name → `[n]`; further columns are ignored.
        Raises ValueError naming a missing column.
        """
        return self.predict_encoded(*self.encoder.encode(columns))

    def predict_encoded(self, num: NDArray[np.float32], cat: NDArray[np.int64]) -> EffectDraws:
        """The same for rows already encoded: num `[n, Dn]`, cat `[n, Dc]`."""
        parts = [
            self._runner.run(self._programs[PROGRAM], num[rows], cat[rows])[0].transpose(2, 1, 0)
            for rows in self._passes(len(num), 1)
        ]
        return self._draws([_joined(list(task), axis=1) for task in zip(*parts, strict=True)])

    def prepare(
        self, num: NDArray[np.float32], cat: NDArray[np.int64], columns: GridColumns
    ) -> PreparedActions | None:
        """What the model makes of A actions before it knows the user: num `[A, Dn]`, cat `[A, Dc]`.

        columns: those of num that hang on the user, and are not read here. None where the artifact has no
        programs for users × actions, or was exported for other columns: then `predict_encoded` has to do.
        """
        if columns != self.info.grid:
            return None
        tensors = self._runner.keep(self._programs[ACTIONS], num, cat)
        return PreparedActions(self, tensors, len(num))

    def predict_pairs(
        self, tensors: tuple[torch.Tensor, ...], user: NDArray[np.float32], pair: NDArray[np.float32]
    ) -> EffectDraws:
        """See `PreparedActions.predict`."""
        users, actions = pair.shape[1:]
        shape = (self.heads, -1, actions)
        parts = [
            [task.reshape(shape) for task in self._pair_pass(tensors, user[:, some], pair[:, some])]
            for some in self._passes(users, actions)
        ]
        return self._draws([_joined(list(task), axis=1) for task in zip(*parts, strict=True)])

    def _pair_pass(
        self, tensors: tuple[torch.Tensor, ...], user: NDArray[np.float32], pair: NDArray[np.float32]
    ) -> tuple[Draws, ...]:
        """`[H, U·A]` per task, from one pass; where passes are recorded, users of zeros fill it up."""
        users, actions = pair.shape[1:]
        program, size = self._programs[PAIRS], padded_size(users)
        if not self._runner.records or size == users:
            return self._runner.run(program, *tensors, user, pair)
        found = self._runner.keep(program, *tensors, _padded(user, size), _padded(pair, size))
        return self._runner.fetch(tuple(task[:, : users * actions] for task in found))

    def _passes(self, count: int, rows: int) -> list[slice]:
        """Of `count` things of `rows` rows each; one pass of nothing where there is nothing."""
        size = max(1, (_CHUNK if self._runner.device == "cpu" else _CUDA_CHUNK) // max(rows, 1))
        if self._runner.records:
            size = 1 << (size.bit_length() - 1)  # only the last pass needs padding
        return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]

    def _draws(self, outputs: Sequence[Draws]) -> EffectDraws:
        """From `[H, ...]` per trained task: heads come last."""
        last = (*range(1, outputs[0].ndim), 0)
        by_task = {task: own.transpose(last) for task, own in zip(self.tasks, outputs, strict=True)}
        if len(by_task) < len(TASKS):
            unknown = np.full(outputs[0].transpose(last).shape, np.nan, dtype=np.float32)
            by_task = dict.fromkeys(TASKS, unknown) | by_task
        return EffectDraws(*(by_task[task] for task in TASKS))


def _joined(parts: list[Draws], axis: int) -> Draws:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def _padded(values: NDArray[np.float32], users: int) -> NDArray[np.float32]:
    """`[D, U, ...]` with zeros up to `users`."""
    whole = np.zeros((len(values), users, *values.shape[2:]), dtype=values.dtype)
    whole[:, : values.shape[1]] = values
    return whole


class PreparedActions:
    """A actions as one model has them in memory, for users to be scored with."""

    def __init__(self, model: EffectModel, tensors: tuple[torch.Tensor, ...], count: int) -> None:
        self._model, self._tensors, self._count = model, tensors, count

    def __len__(self) -> int:
        return self._count

    def predict(self, user: NDArray[np.float32], pair: NDArray[np.float32]) -> EffectDraws:
        """Predictions `[U, A, H]` per task: user `[Du, U]`, pair `[Dp, U, A]`: see `GridColumns`."""
        return self._model.predict_pairs(self._tensors, user, pair)


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
