"""`qiance train`: the effect model of a workspace, or a response or uplift model of a file of one's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from qiance.cli.options import ConfigOption
from qiance.cli.recommend import train as recommend
from qiance.cli.train_bandit import bandit
from qiance.cli.train_copy import copy
from qiance.cli.train_customers import customers
from qiance.cli.train_planning import planning
from qiance.cli.train_planning_offline import planning_log, planning_offline
from qiance.cli.train_planning_sweep import planning_sweep
from qiance.cli.train_proposer import proposer
from qiance.cli.train_uplift import uplift
from qiance.cli.train_writer import writer
from qiance.data.errors import DataError
from qiance.settings import DEFAULT_WORKSPACE

app = typer.Typer(
    help="Train the effect model of a workspace; the others learn from a log of your own, bandit and "
    "planning in a simulation.",
    invoke_without_command=True,
)
app.command("bandit")(bandit)
app.command("copy")(copy)
app.command("customers")(customers)
app.command("planning")(planning)
app.command("planning-log")(planning_log)
app.command("planning-offline")(planning_offline)
app.command("planning-sweep")(planning_sweep)
app.command("proposer")(proposer)


@app.callback()
def train(
    context: typer.Context,
    workspace: Annotated[Path | None, typer.Option("--workspace", "-w", help="Folder to train into.")] = None,
    config: ConfigOption = None,
    path: Annotated[Path | None, typer.Option(help="Your copy of the default data.")] = None,
) -> None:
    """Read the logs, build features and train the effect model, without serving anything.

    Inside a Ray job (RAY_ADDRESS is set) the cluster of the job is used.
    """
    if context.invoked_subcommand is not None:
        return
    if workspace is None:
        raise typer.BadParameter("missing: name the folder to train into", param_hint="--workspace")
    from qiance.cli.loop.conductor import run_training
    from qiance.settings import load_settings

    console = Console()
    settings = load_settings(config, os.environ, {"data": {} if path is None else {"path": path}})
    folder = run_training(settings, workspace, os.environ.get("RAY_ADDRESS"), console)
    console.print(f"Trained into [bold]{folder}[/]", highlight=False)


@app.command("effect")
def effect(
    data: Annotated[
        Path, typer.Option("--data", help="Response log: CSV, JSON lines or Parquet; may be gzipped.")
    ],
    mapping: Annotated[
        Path,
        typer.Option("--mapping", "-m", help="What its columns mean (`kind: responses`); see docs/data.md."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its figures.")],
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation that judges it.")] = 5,
    label: Annotated[
        str | None, typer.Option(help="Outcome to predict: conversion (default where mapped) or click.")
    ] = None,
    calibrate_by: Annotated[
        str | None,
        typer.Option(help="Categorical feature with a calibration of its own per value; default: arm."),
    ] = None,
    protected: Annotated[
        list[str] | None,
        typer.Option(
            help="Categorical feature that the model must not see, and is audited by; repeat for several."
        ),
    ] = None,
    max_gap: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Largest gap between predicted and observed rate of a protected group."
        ),
    ] = 0.05,
    max_exposure_gap: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Largest gap between its exposure and that of all rows; default: any."
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(metavar="FEATURE", help="Numeric feature with the depth of the offer, for the audit."),
    ] = None,
    max_depth_gap: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Largest gap between its offer depth and that of all; default: any. Needs --depth."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="With equal data, the same seed gives the same model.")] = 0,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Register it as challenger; see `qiance models`.")
    ] = None,
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="Folder whose registry takes it.")
    ] = DEFAULT_WORKSPACE,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Hyper-parameters (YAML), such as best.yaml of `qiance tune`."),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(help="Tracking URI of MLflow that the run is logged to; default: a SQLite file in OUT."),
    ] = None,
) -> None:
    """Train a calibrated model on a response log of your own, with intervals and explanations.

    Writes into OUT: the model, metrics.json (by cross-validation, beside baselines), segments.csv (predicted
    and observed rates by category, with 90 % intervals), explanations.json (SHAP and LIME) and fairness.json
    (error, calibration, exposure and offer depth by protected group), and an MLflow run with parameters,
    folds and learning curves. Where `converted_at` is mapped, conversions that are still to come are taken
    into account. `qiance predict` uses the model. Ends with 1 where a protected group is predicted too high
    or too low, or its exposure or offer depth is too far from that of all, beyond doubt.
    """
    from qiance.cli.contest import check_registration, register_response
    from qiance.cli.stages import Stages

    if max_depth_gap is not None and depth is None:
        raise typer.BadParameter("needs --depth: the feature that is compared", param_hint="--max-depth-gap")
    console = Console()
    stages = Stages(console)
    parameters = _parameters(config)
    if register is not None:
        check_registration(register, workspace)
    with stages.stage(f"reading {data.name}") as stage:
        _, responses = read_responses(data, mapping, out, stage)
    with stages.stage("training") as stage:
        from training.delay.train import train_delayed
        from training.response.config import apply_parameters
        from training.response.fairness import Thresholds
        from training.response.members import ResponseSettings
        from training.response.tracking import log_training

        trained = train_delayed(
            responses,
            out,
            folds=folds,
            label=label,
            segment=calibrate_by,
            protected=protected or (),
            thresholds=Thresholds(max_gap, max_exposure_gap, max_depth_gap),
            depth=depth,
            settings=apply_parameters(parameters, ResponseSettings.for_rows(len(responses), seed)),
            tell=stage.tell,
        )
        log_training(trained, mlflow or f"sqlite:///{(out / 'mlflow.db').resolve()}")
    for name in trained.metrics["left_out"]:
        console.print(f"[yellow]{name} has no value in any row and was left out[/]")
    if trained.metrics["intervals"]["doubt"] is not None:
        console.print(f"[yellow]{trained.metrics['intervals']['doubt']}[/]", highlight=False)
    console.print(_scores(trained.metrics))
    if "delay" in trained.metrics:
        console.print(_delay(trained.metrics["delay"]), highlight=False)
    console.print(_importance(trained.explanations))
    console.print(f"Model and figures: [bold]{out}[/]", highlight=False)
    if register is not None:
        number = register_response(trained, register, workspace)
        console.print(f"Registered as [bold]{register}[/] version {number}", highlight=False)
    for sentence in trained.fairness.broken:
        console.print(f"[red]unfair:[/] {escape(sentence)}", highlight=False)
    if trained.fairness.broken:
        raise typer.Exit(1)


app.command("uplift")(uplift)
app.command("writer")(writer)
app.command("recommend")(recommend)


def _parameters(config: Path | None) -> Any:
    """Hyper-parameters of the file; read before the log is, so that a mistake in it costs no time."""
    from training.response.config import ResponseParameters, load_parameters

    return ResponseParameters() if config is None else load_parameters(config)


def read_responses(data: Path, mapping: Path, out: Path, stage: Any) -> tuple[Any, Any]:
    """The mapping and the rows of a response log; `DataError` for a mapping of events or no such file."""
    from qiance.data.mapped import read_mapped
    from qiance.data.mapping import load_mapping
    from qiance.data.roles import MappingKind

    found = load_mapping(mapping)
    if found.kind is not MappingKind.RESPONSES:
        problem = f"maps {found.kind.value}, and a model of responses learns from those"
        raise DataError(mapping, problem, "map one row per contact with `kind: responses`")
    if not data.exists():
        raise DataError(data, "does not exist", "pass the path of your response log with --data")
    result = read_mapped(
        data, found, quarantine=out / "quarantine", progress=lambda what, done: stage.tell(done, what)
    )
    report = result.report
    stage.note(f"{report.rows_read:,} rows, {report.quarantined:,} in quarantine")
    if report.quarantined:
        stage.note(f"why: {report.quarantine}")
    return found, result.responses


def _scores(metrics: Mapping[str, Any]) -> Table:
    """The model beside the baselines, by cross-validation."""
    folds = metrics["cross_validation"]["folds"]
    heads = ("by cross-validation", "AUC", "log loss", "normalised entropy", "ECE")
    table = Table(
        *(Column(head, justify="left" if not n else "right") for n, head in enumerate(heads)), box=None
    )
    for name, scores in metrics["baselines"].items():
        table.add_row(name, *(f"{scores[key]:.4f}" for key in ("auc", "log_loss", "ne")), "")
    own = [f"{metrics[key]:.4f}" for key in ("auc", "log_loss", "ne")]
    ece = f"{metrics['ece']:.4f} (perfect: below {metrics['ece_floor']:.4f})"
    table.add_row("[bold]response model[/]", *own, ece)
    table.caption = f"{metrics['label']}: {metrics['rate']:.2%} of {metrics['rows']:,} rows; {folds} folds"
    return table


def _delay(found: Mapping[str, Any]) -> str:
    """What the log's cut hides."""
    return (
        f"Late conversions: {found['observed_rate']:.2%} had converted, {found['corrected_rate']:.2%} are "
        f"expected in the end; {found['share_still_expected']:.1%} of the conversions are still to come"
    )


def _importance(explanations: Mapping[str, Any]) -> Table:
    table = Table("what moves it", Column("mean |SHAP|", justify="right"), box=None)
    for name, value in list(explanations["mean_abs_shap"].items())[:8]:
        table.add_row(name, f"{value:.4f}")
    table.caption = explanations["unit"]
    return table
