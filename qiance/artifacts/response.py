"""The response model: how likely a contact is answered, from a response log of any columns.

K members, each trained without one fold of the rows: a network of H bootstrap heads, and boosted trees, once
on all of the member's rows and once on each of the same H bootstraps, which give the heads their spread.
Member k gives head h the log odds z = w · logit(network) + (1 − w) · logit(trees); their mean over the
members is turned into a probability and calibrated. Shapes: N rows, K members, H heads, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from qiance.artifacts.explain import Explanation, Method, background_columns, explain
from qiance.artifacts.manifest import Artifact, load_manifest
from qiance.artifacts.program import load_program
from qiance.artifacts.trees import tree_inputs
from qiance.artifacts.value import PurchaseValue, ValueModel
from qiance.artifacts.width import WidthScale
from qiance.domain import Interval
from qiance.domain.prediction import interval_of, intervals_of
from qiance.evaluate.calibration import Calibrator
from qiance.features.encoder import Encoder
from qiance.features.schema import Columns, FeatureSchema

KIND = "response-model"
NETWORKS, ENCODER, INFO, VALUE = "networks.pt2", "encoder.json", "response.json", "value.json"
_EDGE = 1e-6  # log odds are taken of probabilities this far from 0 and 1 at least

Floats = NDArray[np.float64]
Draws = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ResponseInfo:
    """What a response model says about itself.

    label: the outcome, click or conversion. weight: of the network's log odds, in [0, 1]. members, heads: K
    and H. segment: feature by which calibration differs, None where it does not. width_scale: factor on the
    spread of the heads, so that 90 % intervals of group means cover. design: how much more outcomes vary
    together than if the rows of a unit were independent. rate: share of the outcome in the training rows.
    background: rows of the training data that explanations compare with, feature → values. segment_scales:
    width_scale of the segments that have one of their own. width_groups: see `WidthScale`.
    """

    label: str
    weight: float
    members: int
    heads: int
    calibrator: Calibrator
    segment: str | None
    width_scale: float
    design: float
    rate: float
    background: Mapping[str, Sequence[Any]]
    segment_scales: Mapping[str, float] = field(default_factory=dict)
    width_groups: int | None = None

    @property
    def width(self) -> WidthScale:
        """Of the intervals."""
        return WidthScale(self.width_scale, self.segment_scales, self.width_groups)

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "weight": self.weight,
            "members": self.members,
            "heads": self.heads,
            "calibrator": self.calibrator.to_dict(),
            "segment": self.segment,
            "width_scale": self.width_scale,
            "design": self.design,
            "rate": self.rate,
            "background": {name: list(values) for name, values in self.background.items()},
            "segment_scales": dict(self.segment_scales),
            "width_groups": self.width_groups,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResponseInfo:
        return cls(**{**data, "calibrator": Calibrator.from_dict(data["calibrator"])})


def blend(networks: NDArray[np.floating], trees: NDArray[np.floating], weight: float) -> Draws:
    """Probabilities `[N, H]` before calibration: networks, trees `[N, K, H]` probabilities."""
    score = weight * _logit(networks) + (1 - weight) * _logit(trees)
    return np.asarray(expit(score.mean(axis=1)))


def run_trees(trees: Sequence[Sequence[Any]], table: Floats) -> Floats:
    """`[N, K, H]` probabilities of the trees for rows as `tree_inputs` gives them.

    trees: per member the booster on all of its rows, then H on bootstraps. A bootstrap sees fewer different
    rows and predicts worse, so heads lie around the first as the bootstraps lie around their own mean.
    """
    if not len(table):
        return np.empty((0, len(trees), len(trees[0]) - 1))
    by_member = [_logit(np.column_stack([one.predict(table) for one in boosters])) for boosters in trees]
    score = np.stack(by_member, axis=1)
    drawn = score[:, :, 1:]
    return np.asarray(expit(score[:, :, :1] + drawn - drawn.mean(axis=2, keepdims=True)))


def _logit(p: NDArray[np.floating]) -> Floats:
    return np.asarray(logit(np.clip(np.asarray(p, dtype=np.float64), _EDGE, 1 - _EDGE)))


@dataclass(frozen=True)
class ResponseScorer:
    """Predictions of fitted members, the same in training and in serving.

    networks: num `[N, Dn]`, cat `[N, Dc]` → `[N, K, H]` probabilities; trees: K × (1 + H) boosters.
    """

    encoder: Encoder
    networks: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.floating]]
    trees: Sequence[Sequence[Any]]
    weight: float
    calibrator: Calibrator
    segment: str | None
    background: Columns

    def predict(self, columns: Columns) -> Draws:
        """Calibrated probabilities by head, `[N, H]`; their mean is the prediction.

        A category that training has not seen is unknown, not average: each head takes another value for it
        from the background, so that the mean is that of the population and the spread is that between values.
        Raises ValueError naming a missing column.
        """
        draws = self._draws(columns)
        unknown = self.encoder.unseen(columns)
        rows = np.flatnonzero(np.any(list(unknown.values()), axis=0)) if unknown else np.empty(0, np.intp)
        for head in range(draws.shape[1] if rows.size else 0):
            draws[rows, head] = self._draws(self._filled(columns, unknown, rows, head))[:, head]
        return draws

    def _draws(self, columns: Columns) -> Draws:
        num, cat = self.encoder.encode(columns)
        table = tree_inputs(self.encoder.schema, columns, cat)
        blended = blend(self.networks(num, cat), run_trees(self.trees, table), self.weight)
        return self.calibrator.apply(blended, None if self.segment is None else columns[self.segment])

    def _filled(
        self, columns: Columns, unknown: Mapping[str, NDArray[np.bool_]], rows: NDArray[np.intp], head: int
    ) -> dict[str, NDArray[Any]]:
        filled = {name: np.array(columns[name])[rows] for name in self.encoder.schema.names}
        for number, (name, mask) in enumerate(unknown.items()):
            pool = np.asarray(self.background[name], dtype=object)
            # Steps without a common pattern, so that two unknown features do not come from the same row.
            places = (rows * 7 + head * 13 + number * 5) % len(pool)
            given = filled[name].astype(object)
            given[mask[rows]] = pool[places][mask[rows]]
            filled[name] = given
        return filled


class ResponseModel:
    """A loaded response model; `predict` may be called from several threads."""

    def __init__(
        self, artifact: Artifact, info: ResponseInfo, scorer: ResponseScorer, value: ValueModel | None = None
    ) -> None:
        self.artifact, self.info, self._scorer, self._value = artifact, info, scorer, value

    @classmethod
    def load(cls, path: Path) -> ResponseModel:
        """Load and verify the artifact at `path`; ArtifactError for a damaged one or another kind."""
        import lightgbm

        manifest = load_manifest(path, KIND, "qiance train effect")
        encoder = Encoder.from_dict(json.loads((path / ENCODER).read_text(encoding="utf-8")))
        info = ResponseInfo.from_dict(json.loads((path / INFO).read_text(encoding="utf-8")))
        trees = [
            [lightgbm.Booster(model_file=path / trees_file(k, h)) for h in range(info.heads + 1)]
            for k in range(info.members)
        ]
        networks, background = _program(path / NETWORKS), background_columns(info.background, encoder.schema)
        scorer = ResponseScorer(
            encoder, networks, trees, info.weight, info.calibrator, info.segment, background
        )
        return cls(Artifact(path, manifest), info, scorer, _value(path, encoder))

    @property
    def schema(self) -> FeatureSchema:
        return self._scorer.encoder.schema

    @property
    def version(self) -> str:
        return self.artifact.version

    def predict(self, columns: Columns) -> Draws:
        """See `ResponseScorer`. columns: feature name → `[N]`; further ones are ignored."""
        return self._scorer.predict(columns)

    def value(self, columns: Columns, confidence: float = 0.9) -> PurchaseValue | None:
        """What a purchase of each row would be worth; None where the model has not learned it."""
        return None if self._value is None else self._value.predict(columns, confidence)

    def sales(self, columns: Columns, draws: Draws) -> NDArray[np.float64] | None:
        """`[N]` expected sales of a contact, minor units: those who do not buy count as 0."""
        if self._value is None:
            return None
        return np.asarray(draws.mean(axis=1) * self._value.share * self._value.predict(columns).mean)

    def explain(self, columns: Columns, method: Method = "shap", seed: int = 0) -> Explanation:
        """Why the prediction of the one row of `columns` is what it is, in units of probability."""
        return explain(
            lambda given: self.predict(given).mean(axis=1),
            columns,
            self._scorer.background,
            self.schema.names,
            method,
            seed,
        )

    def mean_interval(
        self, draws: Draws, columns: Columns | None = None, confidence: float = 0.9
    ) -> Interval:
        """Of the mean probability over the rows of draws `[n, H]`, with what the model does not know.

        columns: of the same rows, so that a group of one segment gets the width of that. The luck of n rows
        comes on top; see `outcome_interval`.
        """
        return interval_of(draws.mean(axis=0), self._group_scale(columns), confidence, 0.0, 1.0)

    def row_intervals(
        self, draws: Draws, columns: Columns | None = None, confidence: float = 0.9
    ) -> tuple[Floats, Floats]:
        """`[n]` bounds of the probability of each row of draws `[n, H]`; columns: of the same rows.

        Their width is the one of groups: how often it holds for single rows cannot be seen in outcomes.
        """
        scale = self.info.width.of_rows(self._segments(columns), len(draws))
        return intervals_of(draws, scale, confidence, 0.0, 1.0)

    def outcome_interval(
        self, draws: Draws, columns: Columns | None = None, confidence: float = 0.9
    ) -> Interval:
        """Of the share of n rows that will answer: the interval of the mean, widened by their luck."""
        return outcome_interval(draws, self._group_scale(columns), self.info.design, confidence)

    def _segments(self, columns: Columns | None) -> NDArray[np.str_] | None:
        if columns is None or self.info.segment is None:
            return None
        return np.asarray(columns[self.info.segment]).astype(np.str_)

    def _group_scale(self, columns: Columns | None) -> float:
        return self.info.width.of_group(self._segments(columns))


def outcome_interval(draws: Draws, scale: float, design: float, confidence: float = 0.9) -> Interval:
    """Of the share of the n rows of draws `[n, H]` that will answer.

    The spread of the heads, widened by `scale`, and the luck of n answers, variance design · Σ p(1 − p) / n²,
    add as variances.
    """
    mean, chances = interval_of(draws.mean(axis=0), scale, confidence, 0.0, 1.0), draws.mean(axis=1)
    luck = design * float((chances * (1 - chances)).sum()) / len(chances) ** 2
    z = float(ndtri(0.5 + confidence / 2))
    half = float(np.hypot(mean.high - mean.value, z * np.sqrt(luck)))
    return Interval(mean.value, max(0.0, mean.value - half), min(1.0, mean.value + half))


def _program(path: Path) -> Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.floating]]:
    import torch

    program = load_program(path)

    def run(num: NDArray[np.float32], cat: NDArray[np.int64]) -> NDArray[np.floating]:
        with torch.inference_mode():
            found: NDArray[np.floating] = program(torch.from_numpy(num), torch.from_numpy(cat)).numpy()
        return found

    return run


def _value(path: Path, encoder: Encoder) -> ValueModel | None:
    import lightgbm

    if not (path / VALUE).exists():
        return None
    data = json.loads((path / VALUE).read_text(encoding="utf-8"))
    members = [lightgbm.Booster(model_file=path / value_file(k)) for k in range(data["members"])]
    return ValueModel.from_dict(data, encoder, members)


def value_file(member: int) -> str:
    """Name of the file of trees that predict the value of a purchase."""
    return f"value-{member}.txt"


def trees_file(member: int, head: int) -> str:
    """Name of a file of trees: those on all rows of the member are number 0, those of head h number h + 1."""
    return f"trees-{member}-{head}.txt"
