"""`qiance tune`: a sweep over hyper-parameters of the response model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from qiance.cli.sweep_options import MlflowOption, ResumeOption, SeedOption, WorkersOption

if TYPE_CHECKING:
    from training.tune.engine import SweepResult


def tune(
    data: Annotated[
        Path, typer.Option("--data", help="Response log: CSV, JSON lines or Parquet; may be gzipped.")
    ],
    mapping: Annotated[
        Path,
        typer.Option("--mapping", "-m", help="What its columns mean (`kind: responses`); see docs/data.md."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the sweep; it goes on where it was.")],
    space: Annotated[
        Path | None, typer.Option(help="Search space (YAML); see docs/tuning.md. Default: the packaged one.")
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials in all; more of them may be asked for later.")
    ] = 16,
    metric: Annotated[
        str, typer.Option(help="What is best: log_loss, ne or auc on held-out rows.")
    ] = "log_loss",
    label: Annotated[
        str | None, typer.Option(help="Outcome to predict: conversion (default where mapped) or click.")
    ] = None,
    protected: Annotated[
        list[str] | None,
        typer.Option(help="Categorical feature that the model must not see; repeat for several."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Hyper-parameters (YAML) that hold for every trial."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds that every trial is judged on.")] = 3,
    workers: WorkersOption = None,
    resume: ResumeOption = False,
    seed: SeedOption = 0,
    mlflow: MlflowOption = None,
) -> None:
    """Search hyper-parameters of the response model, stop bad trials early, and write the best.

    Writes into OUT: best.yaml (for `qiance train effect --config`), trials.csv, sweep.html, sweep.json and an
    MLflow run per trial. Stopped at any point, the same command goes on and loses no finished trial. Inside a
    Ray job (RAY_ADDRESS is set) the cluster of the job is used; it must see the same paths.
    """
    from qiance.cli.stages import Stages
    from qiance.cli.train import read_responses
    from serve.loopback import prepare

    prepare(os.environ)  # before Ray is imported
    from training.tune.response_space import load_space
    from training.tune.sweep import Sweep, SweepSettings

    settings = SweepSettings(trials, metric, folds, seed, workers, os.environ.get("RAY_ADDRESS"))
    searched, given = load_space(space), _given(config)
    stages = Stages(console := Console())
    with stages.stage(f"reading {data.name}") as stage:
        _, responses = read_responses(data, mapping, out, stage)
    with stages.stage("sweeping") as stage:
        from training.response.rows import response_rows
        from training.tune.run import run_sweep

        rows = response_rows(responses, label, None, protected or ())
        sweep = Sweep(rows, searched, settings, given, _digest(mapping))
        result = run_sweep(sweep, out, resume=resume, tracking_uri=mlflow, tell=stage.tell)
        if result.before:
            stage.note(f"{result.before} of {len(result.trials)} trials were there before")
    for model, one in result.best.items():
        console.print(trials_table(model, result, metric, larger_is_better=metric == "auc"))
        console.print(best_sentence(model, one, result, metric), highlight=False)
    console.print(
        f"Best configuration: [bold]{out / 'best.yaml'}[/]; page: {out / 'sweep.html'}", highlight=False
    )


def _given(config: Path | None) -> Any:
    from training.response.config import ResponseParameters, load_parameters

    return ResponseParameters() if config is None else load_parameters(config)


def _digest(mapping: Path) -> str:
    """Of what the mapping says, not of how it is written."""
    import hashlib

    from qiance.data.mapping import load_mapping

    return hashlib.sha256(load_mapping(mapping).model_dump_json().encode()).hexdigest()


def trials_table(
    model: str, result: SweepResult, metric: str, *, larger_is_better: bool, spec: str = ".4f"
) -> Table:
    """Trials of a model, the best first. spec: how values are written."""
    from qiance.report.sweep import parameter_text

    trials = [one for one in result.trials if one.model == model]
    best_first = sorted(trials, key=lambda one: _order(one.value, larger_is_better))
    columns = [Column(head, justify="right", no_wrap=True) for head in (metric, "steps", "seconds")]
    table = Table(Column("trial", no_wrap=True), "state", *columns, "parameters", box=None)
    for one in best_first:
        value = "–" if one.value is None else f"{one.value:{spec}}"
        said = ", ".join(f"{name} {parameter_text(found)}" for name, found in one.parameters.items())
        style = "bold" if result.best.get(model) == one else None
        table.add_row(
            one.name, one.state, value, str(one.steps), f"{one.seconds:.1f}", escape(said), style=style
        )
    table.caption = _important(result.importance.get(model, {}))
    return table


def _order(value: float | None, larger_is_better: bool) -> tuple[bool, float]:
    return (value is None, (-1 if larger_is_better else 1) * (value or 0.0))


def _important(shares: Any) -> str | None:
    if not shares:
        return None
    first: Sequence[tuple[str, float]] = list(shares.items())[:3]
    return "what mattered: " + ", ".join(f"{name} {share:.0%}" for name, share in first)


def best_sentence(model: str, best: Any, result: SweepResult, metric: str, spec: str = ".4f") -> str:
    """The best trial of a model, and what the defaults give."""
    default = result.default.get(model)
    text = f"{model}: {metric} {best.value:{spec}} by {best.name}"
    if default is not None and default.value is not None and default != best:
        text += f", where the defaults give {default.value:{spec}}"
    return text
