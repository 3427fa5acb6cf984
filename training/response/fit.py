"""From a response log to a folder with a calibrated, judged and explained model."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qiance.artifacts import Artifact, export_program, write_artifact
from qiance.artifacts.explain import plain_value
from qiance.artifacts.json_file import write_json
from qiance.artifacts.response import (
    ENCODER,
    INFO,
    KIND,
    NETWORKS,
    VALUE,
    ResponseInfo,
    ResponseModel,
    trees_file,
    value_file,
)
from qiance.data.errors import DataError
from qiance.data.responses import ResponseTable
from training.response.fairness import Fairness, Thresholds, audit
from training.response.judge import Judged, cross_validate
from training.response.members import ResponseSettings
from training.response.rows import MIN_EVENTS, ResponseRows, response_rows
from training.response.stack import Stack, fit_stack
from training.response.value import why_no_value

METRICS, SEGMENTS, EXPLANATIONS = "metrics.json", "segments.csv", "explanations.json"
FAIRNESS = "fairness.json"
_TRAINING = 0.97  # share of the progress
_EXPLAINED = 12  # rows at random that `explanations.json` is made of
_MIN_SEGMENT = 100  # rows of a category that gets a line in `segments.csv`

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class TrainedResponse:
    """The artifact, how it was judged, and what metrics.json, explanations.json and fairness.json hold.

    curves: by network of the artifact, its history by epoch.
    """

    artifact: Artifact
    judged: Judged
    metrics: Mapping[str, Any]
    explanations: Mapping[str, Any]
    fairness: Fairness
    curves: tuple[list[dict[str, float]], ...]


def train_response(
    responses: ResponseTable,
    out: Path,
    *,
    folds: int = 5,
    label: str | None = None,
    segment: str | None = None,
    protected: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    depth: str | None = None,
    settings: ResponseSettings | None = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> TrainedResponse:
    """Judge by `folds`-fold cross-validation, fit on all rows, and write everything into `out`.

    label: click or conversion, by default conversion where it is mapped. segment: feature by whose values
    calibration differs, by default the arm. protected: categorical features that the model does not see, and
    by whose groups it is audited with `thresholds`, see `training.response.fairness`; depth: the numeric
    feature with the depth of a row's offer, for that audit. settings: by default those for so many rows, with
    `seed`. Raises DataError where there is too little to learn from.
    """
    told = tell or (lambda _share, _text: None)
    started = time.monotonic()
    if folds < 2:
        raise ValueError(f"folds: {folds} is below 2: no row could be held out")
    rows = response_rows(responses, label, segment, protected, depth)
    chosen = settings or ResponseSettings.for_rows(len(rows), seed)
    _check_enough(rows, folds, chosen.members)
    judging = _TRAINING * folds / (folds + 1.0)
    judged = cross_validate(rows, folds, chosen, lambda share, text: told(judging * share, text))
    rest = _TRAINING - judging
    stack = fit_stack(rows, chosen, lambda share, text: told(judging + rest * share, f"all rows: {text}"))
    fairness = audit(
        rows.target,
        judged.held_out,
        rows.protected,
        thresholds,
        units=rows.units,
        depth=rows.depth,
        seed=chosen.seed,
    )
    told(_TRAINING, "writing and explaining")
    out.mkdir(parents=True, exist_ok=True)
    artifact = write_response(rows, stack, judged.metrics, out)
    explanations = _write_figures(out, rows, stack, ResponseModel.load(artifact.path), fairness, chosen.seed)
    metrics = _report(rows, stack, judged, chosen, folds, artifact, time.monotonic() - started)
    write_json(out / METRICS, metrics, indent=2)  # last: it names what the folder holds
    told(1.0, f"response model {artifact.version} written")
    return TrainedResponse(artifact, judged, metrics, explanations, fairness, stack.curves)


def _write_figures(
    out: Path, rows: ResponseRows, stack: Stack, model: ResponseModel, fairness: Fairness, seed: int
) -> dict[str, Any]:
    """Everything beside artifact and metrics; returns the explanations."""
    explanations = _explanations(rows, model, seed)
    write_json(out / EXPLANATIONS, explanations, indent=2)
    _write_segments(out / SEGMENTS, rows, stack, model)
    write_json(out / FAIRNESS, asdict(fairness), indent=2)
    return explanations


def _check_enough(rows: ResponseRows, folds: int, members: int) -> None:
    """Before an hour is spent: the rows without a fold must still give every member its share."""
    rarer = int(min(rows.target.sum(), (1 - rows.target).sum()))
    needed = math.ceil(MIN_EVENTS * max(folds, members * folds / (folds - 1)))
    if rarer < needed:
        problem = f"has {rarer} rows of the rarer outcome of {rows.label}; {folds} folds need {needed}"
        raise DataError(rows.name, problem, "log more, or predict another label")


def write_response(rows: ResponseRows, stack: Stack, metrics: Mapping[str, float], out: Path) -> Artifact:
    """The artifact of kind `response-model`."""
    scorer = stack.scorer
    info = ResponseInfo(
        label=rows.label,
        weight=scorer.weight,
        members=len(scorer.trees),
        heads=len(scorer.trees[0]) - 1,
        calibrator=scorer.calibrator,
        segment=scorer.segment,
        width_scale=stack.width.scale,
        design=stack.design,
        rate=float(rows.target.mean()),
        background={name: [plain_value(v) for v in values] for name, values in scorer.background.items()},
        segment_scales=stack.width.segments,
        width_groups=stack.width.disjoint,
    )
    num, cat = scorer.encoder.encode(rows.take(np.arange(min(len(rows), 64))).columns)
    inputs = {"num": torch.from_numpy(num), "cat": torch.from_numpy(cat)}
    files: dict[str, Callable[[Path], None]] = {
        NETWORKS: lambda path: export_program(stack.networks, inputs, path),
        ENCODER: lambda path: write_json(path, scorer.encoder.to_dict()),
        INFO: lambda path: write_json(path, info.to_dict()),
    }
    for member, heads in enumerate(scorer.trees):
        for head, booster in enumerate(heads):
            files[trees_file(member, head)] = partial(_write_trees, booster)
    if stack.value is not None:
        files[VALUE] = partial(write_json, content=stack.value.to_dict())
        files |= {value_file(k): partial(_write_trees, one) for k, one in enumerate(stack.value.members)}
    return write_artifact(
        out,
        KIND,
        files,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        feature_service=rows.schema.service,
        schema_hash=rows.schema.hash,
        data_fingerprint=rows.fingerprint,
    )


def _write_trees(booster: Any, path: Path) -> None:
    path.write_text(booster.model_to_string(), encoding="utf-8")


def _explanations(rows: ResponseRows, model: ResponseModel, seed: int) -> dict[str, Any]:
    """Mean |SHAP| by feature over some rows, and the first of them in full by both methods."""
    some = np.random.default_rng(seed + 1).choice(len(rows), size=min(_EXPLAINED, len(rows)), replace=False)
    chosen = [rows.take(np.array([place])).columns for place in some]
    found = [model.explain(columns, "shap", seed) for columns in chosen]
    total = dict.fromkeys(model.schema.names, 0.0)
    for one in found:
        for part in one.contributions:
            total[part.feature] += abs(part.effect) / len(found)
    lime = [model.explain(columns, "lime", seed) for columns in chosen[:2]]
    return {
        "unit": f"probability of {rows.label}",
        "mean_abs_shap": dict(sorted(total.items(), key=lambda pair: -pair[1])),
        "rows": len(found),
        "examples": [asdict(one) for pair in zip(found, lime, strict=False) for one in pair],
    }


def _write_segments(path: Path, rows: ResponseRows, stack: Stack, model: ResponseModel) -> None:
    """Per category: rows, what was seen, what models that did not see it predicted, and the 90 % interval."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["feature", "value", "rows", "observed", "predicted", "low", "high"])
        for name in rows.schema.categorical:
            values = np.asarray(rows.columns[name]).astype(np.str_)
            for value, count in zip(*np.unique(values, return_counts=True), strict=True):
                if count < _MIN_SEGMENT:
                    continue
                here = values == value
                own = {feature: column[here] for feature, column in rows.columns.items()}
                interval = model.outcome_interval(stack.unseen[here], own)
                seen = float(rows.target[here].mean())
                figures = (seen, interval.value, interval.low, interval.high)
                writer.writerow([name, value, count, *(f"{figure:.6f}" for figure in figures)])


def _report(
    rows: ResponseRows,
    stack: Stack,
    judged: Judged,
    settings: ResponseSettings,
    folds: int,
    artifact: Artifact,
    seconds: float,
) -> dict[str, Any]:
    return {
        **_known(judged.metrics),
        "label": rows.label,
        "rows": len(rows),
        "units": int(np.unique(rows.units).size),
        "rate": float(rows.target.mean()),
        "features": list(rows.schema.names),
        "left_out": list(rows.left_out),
        "calibrated_by": rows.segment,
        "intervals": _intervals(stack),
        "purchase_value": _purchase_value(rows, stack),
        "cross_validation": {"folds": folds, "by_fold": [_known(fold) for fold in judged.folds]},
        "baselines": dict(judged.baselines),
        "model": artifact.path.name,
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
    }


def _intervals(stack: Stack) -> dict[str, Any]:
    """What their width rests on; doubt: why they may not be called 90 % intervals, null where they may."""
    width = stack.width
    return {
        "width_scale": width.scale,
        "groups": width.disjoint,
        "doubt": width.served.doubt,
        "segment_scales": dict(width.segments),
    }


def _purchase_value(rows: ResponseRows, stack: Stack) -> dict[str, Any]:
    """How its model was made, or why there is none; how good it is stands among the metrics."""
    if stack.value is None:
        return {"left_out": why_no_value(rows)}
    return {name: getattr(stack.value, name) for name in ("purchases", "mean", "share", "weight")}


def _known(figures: Mapping[str, float]) -> dict[str, float | None]:
    """What could not be worked out is null: JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
