"""The uplift model: what each arm adds to the outcome of a row over control, in units of the outcome.

A learner gives M candidate effects per row and arm (see `CANDIDATES`). The effect is τ = ATE + Σ w ·
(candidate − its mean): the mean effect is doubly robust, and a candidate moves rows away from it as far as it
has shown to on rows that it had not seen. K members, each fitted without one fold, are averaged; H halves,
each fitted on half of the units, give the spread that intervals come from. Shapes: N rows, A arms (control
included), F inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, stdtrit

from qiance.artifacts.explain import Explanation, Method, background_columns, explain
from qiance.artifacts.manifest import Artifact, load_manifest
from qiance.artifacts.trees import tree_inputs
from qiance.features.encoder import Encoder
from qiance.features.schema import Columns, FeatureSchema

KIND = "uplift"
ENCODER, INFO = "encoder.json", "uplift.json"
CANDIDATES = ("linear", "heads", "proportional", "doubly_robust")
_MOST_VALUES = 50  # of a category that have a column of their own in the linear model

Floats = NDArray[np.float64]


def linear_inputs(encoder: Encoder, num: NDArray[np.float32], cat: NDArray[np.int64]) -> Floats:
    """`[N, 1 + F]`: ones, the scaled numbers, and a column per frequent value of each category."""
    parts = [np.ones((len(num), 1)), num.astype(np.float64)]
    for place, count in enumerate(encoder.cardinalities):
        codes = np.arange(1, min(count, _MOST_VALUES + 1))
        parts.append((cat[:, place, None] == codes).astype(np.float64))
    return np.hstack(parts)


@dataclass(frozen=True)
class Inputs:
    """N rows as learners read them: `linear_inputs` and `tree_inputs`."""

    linear: Floats
    table: Floats

    @classmethod
    def of(cls, encoder: Encoder, columns: Columns) -> Inputs:
        """Raises ValueError naming a missing column."""
        num, cat = encoder.encode(columns)
        return cls(linear_inputs(encoder, num, cat), tree_inputs(encoder.schema, columns, cat))

    def __len__(self) -> int:
        return len(self.table)

    def take(self, rows: NDArray[Any]) -> Inputs:
        """Some of the rows."""
        return Inputs(self.linear[rows], self.table[rows])


@dataclass(frozen=True)
class Learner:
    """Fitted on some rows. control: number of that arm.

    Candidate effects are the differences in the chance of the outcome by `linear`, by `heads`, and by shared
    trees alone, which makes effects proportional in odds; and what `contrasts` say.

    linear: `[A, 1 + F]` log odds of the outcome under each arm. shared: trees that say how rows differ
    whatever the arm, on top of intercepts `[A]`; heads: `[A]` trees that say what the arm changes about it.
    contrasts: `[A]` trees of the effect over control, fitted on doubly robust pseudo-outcomes; that of
    control is None.
    """

    control: int
    linear: Floats
    intercepts: Floats
    shared: Any
    heads: Sequence[Any]
    contrasts: Sequence[Any]

    def chances(self, rows: Inputs) -> tuple[Floats, Floats]:
        """`[N, A]` probability of the outcome under each arm: by the linear model, and by the heads."""
        score = np.column_stack([_raw(head, rows.table) for head in self.heads])
        return _expit(rows.linear @ self.linear.T), _expit(
            score + self.intercepts + _raw(self.shared, rows.table)[:, None]
        )

    def candidates(self, rows: Inputs) -> Floats:
        """`[N, A, M]` effects over control, in the order of `CANDIDATES`; those of control are 0."""
        found = np.zeros((len(rows), len(self.heads), len(CANDIDATES)))
        alike = _expit(_raw(self.shared, rows.table)[:, None] + self.intercepts)
        for place, chance in enumerate((*self.chances(rows), alike)):
            found[:, :, place] = chance - chance[:, [self.control]]
        for arm, trees in enumerate(self.contrasts):
            if trees is not None:
                found[:, arm, -1] = _raw(trees, rows.table)
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "control": self.control,
            "linear": self.linear.tolist(),
            "intercepts": self.intercepts.tolist(),
            "shared": _text(self.shared),
            "heads": [_text(one) for one in self.heads],
            "contrasts": [None if one is None else _text(one) for one in self.contrasts],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Learner:
        contrasts = [None if text is None else _booster(text) for text in data["contrasts"]]
        return cls(
            int(data["control"]),
            np.asarray(data["linear"], dtype=np.float64),
            np.asarray(data["intercepts"], dtype=np.float64),
            _booster(data["shared"]),
            [_booster(text) for text in data["heads"]],
            contrasts,
        )


def _raw(trees: Any, table: Floats) -> Floats:
    return np.asarray(trees.predict(table, raw_score=True)) if len(table) else np.empty(0)


def _expit(score: Floats) -> Floats:
    return np.asarray(expit(score), dtype=np.float64)


def _text(trees: Any) -> str:
    return str(trees.model_to_string())


def _booster(text: str) -> Any:
    import lightgbm

    return lightgbm.Booster(model_str=text)


@dataclass(frozen=True)
class Anchor:
    """Where a learner's effects lie: ate `[A]`, and the means `[A, M]` that its candidates are taken from."""

    ate: Floats
    means: Floats

    def effects(self, candidates: Floats, weights: Floats) -> Floats:
        """`[N, A]` τ from candidates `[N, A, M]` and weights `[M]`."""
        return np.asarray(self.ate + (candidates - self.means) @ weights)

    def to_dict(self) -> dict[str, Any]:
        return {"ate": self.ate.tolist(), "means": self.means.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Anchor:
        return cls(np.asarray(data["ate"]), np.asarray(data["means"]))


@dataclass(frozen=True)
class UpliftInfo:
    """What an uplift model says about itself.

    label: the outcome. arms: A names; control: one of them. cost: by arm, in units of the outcome. weights:
    of the candidates; spread_weights: of those of the halves, which are not drawn to the mean. width_scale:
    factor on the spread of the halves, so that 90 % intervals cover the effect of 90 % of rows. rate: share
    of the outcome in the training rows. background: rows that explanations compare with, feature → values.
    """

    label: str
    arms: tuple[str, ...]
    control: str
    cost: Mapping[str, float]
    weights: tuple[float, ...]
    spread_weights: tuple[float, ...]
    width_scale: float
    rate: float
    background: Mapping[str, Sequence[Any]]

    @property
    def costs(self) -> Floats:
        """`[A]` in the order of `arms`."""
        return np.array([self.cost.get(arm, 0.0) for arm in self.arms])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UpliftInfo:
        tuples = {name: tuple(data[name]) for name in ("arms", "weights", "spread_weights")}
        return cls(**{**data, **tuples})


@dataclass(frozen=True)
class Effects:
    """Predicted for N rows: value `[N, A]` effects over control; draws `[N, A, H]` those of the halves.

    Effects of control are 0.
    """

    value: Floats
    draws: Floats
    scale: float

    def half_width(self, confidence: float = 0.9) -> Floats:
        """`[N, A]`: the effect of a row lies within value ± this with probability `confidence`."""
        return np.asarray(self._quantile(confidence) * self.scale * self.draws.std(axis=2, ddof=1))

    def mean(
        self, rows: NDArray[Any] | slice = slice(None), confidence: float = 0.9
    ) -> tuple[Floats, Floats]:
        """`[A]` mean effects of a group of rows, and the half widths of their intervals."""
        spread = self.draws[rows].mean(axis=0).std(axis=1, ddof=1)
        return self.value[rows].mean(axis=0), np.asarray(self._quantile(confidence) * self.scale * spread)

    def best(self, cost: Floats) -> NDArray[np.intp]:
        """`[N]` number of the arm with the largest effect net of cost `[A]`; at a loss everywhere, control.

        The control's own effect and cost are 0, so it wins only where no arm pays.
        """
        return np.asarray((self.value - cost).argmax(axis=1))

    def _quantile(self, confidence: float) -> float:
        return float(stdtrit(self.draws.shape[2] - 1, 0.5 + confidence / 2))


@dataclass(frozen=True)
class UpliftScorer:
    """Effects of fitted learners, the same in training and in serving."""

    encoder: Encoder
    members: Sequence[Learner]
    anchor: Anchor
    halves: Sequence[Learner]
    half_anchors: Sequence[Anchor]
    weights: Floats
    spread_weights: Floats
    scale: float

    def predict(self, columns: Columns) -> Effects:
        """Raises ValueError naming a missing column."""
        return self.score(self.inputs(columns))

    def inputs(self, columns: Columns) -> Inputs:
        """Rows as learners read them; raises as `predict`."""
        return Inputs.of(self.encoder, columns)

    def score(self, rows: Inputs) -> Effects:
        """As `predict`, of encoded rows."""
        return Effects(self.value(rows), self.draws(rows), self.scale)

    def value(self, rows: Inputs) -> Floats:
        """`[N, A]` effects, without the halves' work."""
        candidates = np.mean([one.candidates(rows) for one in self.members], axis=0)
        return self.anchor.effects(candidates, self.weights)

    def chances(self, rows: Inputs) -> Floats:
        """`[N, A]` probability of the outcome under each arm: mean of linear models and heads."""
        return np.asarray(np.mean([np.mean(one.chances(rows), axis=0) for one in self.members], axis=0))

    def draws(self, rows: Inputs) -> Floats:
        """`[N, A, H]` effects by half."""
        found = [
            anchor.effects(half.candidates(rows), self.spread_weights)
            for half, anchor in zip(self.halves, self.half_anchors, strict=True)
        ]
        return np.stack(found, axis=2)


class UpliftModel:
    """A loaded uplift model."""

    def __init__(self, artifact: Artifact, info: UpliftInfo, scorer: UpliftScorer) -> None:
        self.artifact, self.info, self._scorer = artifact, info, scorer

    @classmethod
    def load(cls, path: Path) -> UpliftModel:
        """Load and verify the artifact at `path`; ArtifactError for a damaged one or another kind."""
        manifest = load_manifest(path, KIND, "qiance train uplift")
        encoder, record = Encoder.from_dict(_read(path / ENCODER)), _read(path / INFO)
        info = UpliftInfo.from_dict(record["info"])
        members, halves = (
            [Learner.from_dict(_read(path / learner_file(part, k))) for k in range(record[part])]
            for part in ("members", "halves")
        )
        scorer = UpliftScorer(
            encoder,
            members,
            Anchor.from_dict(record["anchor"]),
            halves,
            [Anchor.from_dict(one) for one in record["half_anchors"]],
            np.array(info.weights),
            np.array(info.spread_weights),
            info.width_scale,
        )
        return cls(Artifact(path, manifest), info, scorer)

    @property
    def schema(self) -> FeatureSchema:
        return self._scorer.encoder.schema

    @property
    def version(self) -> str:
        return self.artifact.version

    def predict(self, columns: Columns) -> Effects:
        """columns: feature name → `[N]`; further ones are ignored. Arms are in the order of `info.arms`."""
        return self._scorer.predict(columns)

    def explain(self, columns: Columns, arm: str, method: Method = "shap", seed: int = 0) -> Explanation:
        """Why the effect of `arm` on the one row of `columns` is what it is, in units of the outcome."""
        place = self.info.arms.index(arm)
        return explain(
            lambda given: self._scorer.value(self._scorer.inputs(given))[:, place],
            columns,
            background_columns(self.info.background, self.schema),
            self.schema.names,
            method,
            seed,
        )


def learner_file(part: str, number: int) -> str:
    """Name of the file of a learner; part: members or halves."""
    return f"{part}-{number}.json"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
