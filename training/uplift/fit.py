"""From a log with arms to a folder with an uplift model, judged by cross-fitting."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qiance.artifacts import Artifact, write_artifact
from qiance.artifacts.explain import plain_value
from qiance.artifacts.json_file import write_json
from qiance.artifacts.uplift import CANDIDATES, ENCODER, INFO, KIND, UpliftInfo, learner_file
from qiance.data.errors import DataError
from qiance.data.responses import ResponseTable
from training.response.stack import background_of
from training.uplift.judge import CONFIDENCE, cross_validate, curve, judge
from training.uplift.learner import UpliftSettings
from training.uplift.rows import UpliftRows, uplift_rows
from training.uplift.stack import Fitted, fit_uplift

METRICS, CURVE = "metrics.json", "curve.csv"
_JUDGING = 0.6  # share of the progress

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class TrainedUplift:
    """The artifact, and what metrics.json holds."""

    artifact: Artifact
    metrics: Mapping[str, Any]


def train_uplift(
    responses: ResponseTable,
    out: Path,
    *,
    folds: int = 5,
    label: str | None = None,
    control: str | None = None,
    cost: Mapping[str, float] | None = None,
    settings: UpliftSettings | None = None,
    tell: Tell | None = None,
) -> TrainedUplift:
    """Judge by `folds`-fold cross-fitting, fit on all rows, and write everything into `out`.

    label: click or conversion, by default conversion where it is mapped. control: by default the mapping's.
    cost: by arm, in units of the outcome per user; an arm that is not named costs nothing. Raises DataError
    where arms cannot be compared or there is too little to learn from.
    """
    chosen, told = settings or UpliftSettings(), tell or (lambda _share, _text: None)
    started = time.monotonic()
    if folds < 2:
        raise ValueError(f"folds: {folds} is below 2: no row could be held out")
    rows = uplift_rows(responses, label, control, chosen.seed)
    _check_folds(rows, folds)
    prices = check_cost(rows, cost or {})
    held = cross_validate(rows, folds, chosen, lambda share, text: told(_JUDGING * share, text))
    rest = 0.98 - _JUDGING
    fitted = fit_uplift(rows, chosen, lambda share, text: told(_JUDGING + rest * share, f"all rows: {text}"))
    told(0.98, "writing")
    amounts = np.array([prices[arm] for arm in rows.arms])
    figures = judge(rows, held, amounts)
    out.mkdir(parents=True, exist_ok=True)
    artifact = write_uplift(rows, fitted, prices, figures, out)
    _write_curve(out / CURVE, curve(rows, held, amounts))
    metrics = figures | _about(rows, fitted, prices, folds, chosen, artifact, time.monotonic() - started)
    write_json(out / METRICS, metrics, indent=2)  # last: it names what the folder holds
    told(1.0, f"uplift model {artifact.version} written")
    return TrainedUplift(artifact, metrics)


def _check_folds(rows: UpliftRows, folds: int) -> None:
    """Every fold needs both outcomes of every arm."""
    strata = np.bincount(rows.arm * 2 + rows.target.astype(np.int64), minlength=2 * len(rows.arms))
    if strata.min() < 2 * folds:
        name, found = rows.arms[int(strata.argmin()) // 2], int(strata.min())
        problem = f"has {found} rows of the rarer outcome of arm {name!r}; {folds} folds need {2 * folds}"
        raise DataError(rows.rows.name, problem, "use fewer folds, or log more")


def check_cost(rows: UpliftRows, cost: Mapping[str, float]) -> dict[str, float]:
    """By arm, 0 where not named; `DataError` for an arm that is not there, control, or no amount."""
    treatments = ", ".join(rows.arms[arm] for arm in rows.treatments)
    for name, amount in cost.items():
        if name not in rows.arms:
            raise DataError(rows.rows.name, f"has no arm {name!r} to cost {amount:g}", f"price: {treatments}")
        if rows.arms.index(name) == rows.control and amount:
            problem = f"has {name!r} as control, and costs are those over control"
            raise DataError(rows.rows.name, problem, f"price: {treatments}")
        if not (np.isfinite(amount) and amount >= 0):
            raise DataError(rows.rows.name, f"cannot have {name!r} cost {amount}", "use a number, 0 or more")
    return {name: float(cost.get(name, 0.0)) for name in rows.arms}


def write_uplift(
    rows: UpliftRows, fitted: Fitted, cost: Mapping[str, float], figures: Mapping[str, Any], out: Path
) -> Artifact:
    """The artifact of kind `uplift`."""
    scorer = fitted.scorer
    background = background_of(rows.rows, 0)
    info = UpliftInfo(
        label=rows.rows.label,
        arms=rows.arms,
        control=rows.arms[rows.control],
        cost=dict(cost),
        weights=tuple(scorer.weights.tolist()),
        spread_weights=tuple(scorer.spread_weights.tolist()),
        width_scale=scorer.scale,
        rate=float(rows.target.mean()),
        background={name: [plain_value(v) for v in values] for name, values in background.items()},
    )
    record = {
        "info": info.to_dict(),
        "anchor": scorer.anchor.to_dict(),
        "half_anchors": [one.to_dict() for one in scorer.half_anchors],
        "members": len(scorer.members),
        "halves": len(scorer.halves),
    }
    files: dict[str, Callable[[Path], None]] = {
        ENCODER: partial(write_json, content=scorer.encoder.to_dict()),
        INFO: partial(write_json, content=record),
    }
    for part, learners in (("members", scorer.members), ("halves", scorer.halves)):
        for number, learner in enumerate(learners):
            files[learner_file(part, number)] = partial(write_json, content=learner.to_dict())
    return write_artifact(
        out,
        KIND,
        files,
        metrics={f"rate:{arm}": one["value"] for arm, one in figures["rate"].items()},
        feature_service=rows.rows.schema.service,
        schema_hash=rows.rows.schema.hash,
        data_fingerprint=rows.rows.fingerprint,
    )


def _about(
    rows: UpliftRows,
    fitted: Fitted,
    cost: Mapping[str, float],
    folds: int,
    settings: UpliftSettings,
    artifact: Artifact,
    seconds: float,
) -> dict[str, Any]:
    """What was learned from what, beside the figures."""
    counts = np.bincount(rows.arm, minlength=len(rows.arms))
    rates = [float(rows.target[rows.arm == arm].mean()) for arm in range(len(rows.arms))]
    return {
        "label": rows.rows.label,
        "control": rows.arms[rows.control],
        "arms": {
            name: {"rows": int(counts[arm]), "rate": rates[arm], "cost": cost[name]}
            for arm, name in enumerate(rows.arms)
        },
        "rows": len(rows),
        "units": int(np.unique(rows.rows.units).size),
        "rate_of_outcome": float(rows.target.mean()),
        "confidence": CONFIDENCE,
        "propensity": rows.overlap.to_dict(),
        "features": list(rows.rows.schema.names),
        "left_out": list(rows.rows.left_out),
        "weights": dict(zip(CANDIDATES, fitted.scorer.weights.tolist(), strict=True)),
        "width_scale": fitted.scorer.scale,
        "cross_fitting": {"folds": folds},
        "model": artifact.path.name,
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
    }


def _write_curve(path: Path, lines: list[dict[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in line.items()} for line in lines)
