"""`qiance tune`: run a sweep, and write what came of it."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiance.report.sweep import SweepPage, SweepTrialView, write_sweep_page
from training.response.config import write_parameters
from training.tune.outcome import Outcome, best_of, importance, outcomes
from training.tune.record import Record, replace_file
from training.tune.sweep import Sweep, Tell, only_one, open_sweep, run_trials
from training.tune.work import BLOCK

TABLE, BEST, SUMMARY, PAGE, TRACKING = "trials.csv", "best.yaml", "sweep.json", "sweep.html", "mlflow.db"
UNITS = {"network": "epochs", "trees": f"blocks of {BLOCK} trees"}


@dataclass(frozen=True)
class SweepResult:
    """trials: all that were handed out. best: by model. importance: by model and parameter, shares of 1.

    before: trials that an earlier process
    had handed out. default: by model, the trial of the default configuration.
    """

    trials: tuple[Outcome, ...]
    best: Mapping[str, Outcome]
    default: Mapping[str, Outcome]
    importance: Mapping[str, Mapping[str, float]]
    before: int


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    resume: bool = False,
    tracking_uri: str | None = None,
    tell: Tell | None = None,
) -> SweepResult:
    """Run the trials that are missing and write table, best configuration, page and MLflow runs into `out`.

    tracking_uri: of MLflow, by default a SQLite file in `out`. `DataError` where `out` holds a sweep over
    something else; RuntimeError where no trial came to a value.
    """
    from mlflow.exceptions import MlflowException

    from training.tune.search import open_studies
    from training.tune.tracking import SweepRun

    told = tell or (lambda _share, _text: None)
    with only_one(out):
        sweep_id = open_sweep(sweep, out, resume)
        settings = sweep.settings
        studies = open_studies(out, sweep.space, settings.metric, settings.seed, settings.trials)
        uri = tracking_uri or f"sqlite:///{(out / TRACKING).resolve()}"
        before = len(outcomes(out, studies, sweep.space))
        runs = SweepRun(uri, sweep_id, f"{sweep.rows.name} {sweep_id[:8]}", _run_params(sweep))

        def log(model: str, number: int) -> None:
            found = outcomes(out, {model: studies[model]}, sweep.space)
            with suppress(MlflowException):  # a server that is away for a while: made up for at the end
                runs.log(next(one for one in found if one.number == number))

        run_trials(sweep, out, studies, log, lambda share, text: told(0.97 * share, text))
        told(0.97, "writing the results")
        found = tuple(outcomes(out, studies, sweep.space))
        result = SweepResult(
            found, best_of(found, settings.metric), _defaults(found, sweep), importance(studies), before
        )
        _write(sweep, result, out, runs)
    told(1.0, f"{len(found)} trials")
    return result


def _run_params(sweep: Sweep) -> dict[str, Any]:
    inputs = sweep.inputs()
    return {name: inputs[name] for name in ("data", "label", "metric", "folds", "seed", "config")}


def _defaults(found: Sequence[Outcome], sweep: Sweep) -> dict[str, Outcome]:
    """By model, the trial that the defaults began with."""
    return {one.model: one for one in found if one.number == 0 and sweep.space.defaults(one.model)}


def _write(sweep: Sweep, result: SweepResult, out: Path, runs: Any) -> None:
    over = [one for one in result.trials if one.is_over]
    if not result.best:
        reasons = [Record.of(out, one.model, one.number).error() for one in over]
        why = next((reason for reason in reasons if reason), "training diverged in all")
        raise RuntimeError(
            f"no trial of {len(over)} came to a value ({why}); change the space, use another --out"
        )
    _write_table(out / TABLE, result.trials)
    _write_best(out / BEST, sweep, result)
    write_sweep_page(out / PAGE, page_of(sweep, result))
    summary = summary_of(sweep, result)
    replace_file(out / SUMMARY, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())
    for one in over:
        runs.log(one)
        Record.of(out, one.model, one.number).forget_state()
    best = {f"best_{model}": one.value or 0.0 for model, one in result.best.items()}
    runs.finish(best, [out / name for name in (PAGE, TABLE, BEST, SUMMARY)])


def _write_table(path: Path, trials: Sequence[Outcome]) -> None:
    names = list(dict.fromkeys(f"{one.model}.{name}" for one in trials for name in one.parameters))
    heads = ["trial", "model", "state", "value", "steps", "seconds", *names]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, heads, restval="")
        writer.writeheader()
        for one in trials:
            row = {f"{one.model}.{name}": value for name, value in one.parameters.items()}
            value = "" if one.value is None else f"{one.value:.6f}"
            figures = {"value": value, "steps": one.steps, "seconds": f"{one.seconds:.2f}"}
            writer.writerow({"trial": one.name, "model": one.model, "state": one.state, **figures, **row})


def best_parameters(sweep: Sweep, result: SweepResult) -> dict[str, Any]:
    """What was given for all trials, and over it the best of each model."""
    nested: dict[str, Any] = sweep.given.model_dump(mode="json", exclude_none=True)
    for model, one in result.best.items():
        nested[model] = {**nested.get(model, {}), **one.parameters}
    return {name: part for name, part in nested.items() if part}


def _write_best(path: Path, sweep: Sweep, result: SweepResult) -> None:
    said = [
        f"{one.name}: {sweep.settings.metric} {one.value:.6f} on {sweep.settings.folds} held-out folds"
        for one in result.best.values()
    ]
    head = "\n".join(["Best of a sweep; for `qiance train effect --config`.", *said])
    write_parameters(path, best_parameters(sweep, result), head)


def summary_of(sweep: Sweep, result: SweepResult) -> dict[str, Any]:
    """What sweep.json holds."""
    return {
        "metric": sweep.settings.metric,
        "label": sweep.rows.label,
        "rows": len(sweep.rows),
        "trials": len(result.trials),
        "states": {
            state: sum(one.state == state for one in result.trials) for state in ("done", "stopped", "failed")
        },
        "seconds": round(sum(one.seconds for one in result.trials), 1),
        "best": {
            model: {"trial": one.name, "value": one.value, "parameters": dict(one.parameters)}
            for model, one in result.best.items()
        },
        "default": {model: {"trial": one.name, "value": one.value} for model, one in result.default.items()},
        "importance": {model: dict(shares) for model, shares in result.importance.items()},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def page_of(sweep: Sweep, result: SweepResult) -> SweepPage:
    """For `qiance.report.sweep`."""
    views = [
        SweepTrialView(
            name=one.name,
            model=one.model,
            state=one.state,
            value=one.value,
            seconds=one.seconds,
            ended=one.curve[-1].ended if one.curve else None,
            parameters=dict(one.parameters),
            curve=tuple((point.step, point.value) for point in one.curve if point.value is not None),
            best=result.best.get(one.model) == one,
            default=result.default.get(one.model) == one,
        )
        for one in result.trials
    ]
    return SweepPage(
        title=f"Sweep of {sweep.rows.name}",
        metric=sweep.settings.metric,
        larger_is_better=sweep.settings.metric == "auc",
        label=sweep.rows.label,
        rows=len(sweep.rows),
        folds=sweep.settings.folds,
        units=UNITS,
        logarithmic={
            f"{model}.{name}"
            for model, parameters in sweep.space.models.items()
            for name, one in parameters.items()
            if one.kind == "loguniform" or getattr(one, "log", False)
        },
        trials=tuple(views),
        importance={model: dict(shares) for model, shares in result.importance.items()},
    )
