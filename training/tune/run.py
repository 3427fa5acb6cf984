"""`qiance tune`: run a sweep of the response model, and write what came of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from qiance.report.sweep import SweepPage, SweepTrialView, write_sweep_page
from training.response.config import write_parameters
from training.tune.engine import SweepResult, Tell, run_experiment
from training.tune.experiment import Experiment
from training.tune.record import replace_file
from training.tune.sweep import Sweep
from training.tune.work import BLOCK

BEST, SUMMARY, PAGE = "best.yaml", "sweep.json", "sweep.html"
UNITS = {"network": "epochs", "trees": f"blocks of {BLOCK} trees"}


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

    def finish(result: SweepResult, _tell: Tell) -> list[Path]:
        _write_best(out / BEST, sweep, result)
        write_sweep_page(out / PAGE, page_of(sweep, result))
        write_summary(out / SUMMARY, summary_of(sweep, result))
        return [out / name for name in (PAGE, BEST, SUMMARY)]

    inputs = sweep.inputs()
    return run_experiment(
        sweep.experiment(),
        inputs,
        out,
        name=sweep.rows.name,
        params={name: inputs[name] for name in ("data", "label", "metric", "folds", "seed", "config")},
        finish=finish,
        resume=resume,
        tracking_uri=tracking_uri,
        tell=tell,
    )


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """What came of a sweep, for programs."""
    replace_file(path, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())


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
    said = {"metric": sweep.settings.metric, "label": sweep.rows.label, "rows": len(sweep.rows)}
    return {**said, **figures_of(result)}


def figures_of(result: SweepResult) -> dict[str, Any]:
    """What the summary of any sweep has."""
    return {
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
    return page_of_sweep(
        sweep.experiment(),
        result,
        title=f"Sweep of {sweep.rows.name}",
        label=sweep.rows.label,
        judged_on=f"{len(sweep.rows)} rows, {sweep.settings.folds} held-out folds",
        held_out="rows",
        anew="qiance train effect --config best.yaml",
        units=UNITS,
    )


def page_of_sweep(experiment: Experiment, result: SweepResult, **said: Any) -> SweepPage:
    """The page of any sweep; said: title, label, judged_on, held_out, anew and units of it."""
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
        metric=experiment.metric,
        larger_is_better=experiment.mode == "max",
        logarithmic={
            f"{model}.{name}"
            for model, parameters in experiment.space.models.items()
            for name, one in parameters.items()
            if one.kind == "loguniform" or getattr(one, "log", False)
        },
        trials=tuple(views),
        importance={model: dict(shares) for model, shares in result.importance.items()},
        **said,
    )
