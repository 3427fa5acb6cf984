"""`qiance train customers`, and what `qiance predict` does with its model."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from qiance.data.errors import DataError

if TYPE_CHECKING:
    from qiance.data.purchases import PurchaseLog


def customers(
    data: Annotated[
        Path, typer.Option("--data", help="Purchase log: CSV, JSON lines or Parquet; may be gzipped.")
    ],
    mapping: Annotated[
        Path,
        typer.Option(
            "--mapping", "-m", help="What its columns mean (`kind: purchases` or `events`); see docs/data.md."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the model, its figures and forecasts.")
    ],
    horizon: Annotated[int, typer.Option(min=7, help="Days ahead that are predicted.")] = 90,
    cutoff: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="First day of the period that judges the model; default: a horizon before the log ends.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="With equal data, the same seed gives the same model.")] = 0,
) -> None:
    """Predict for every customer: next purchase, churn, number of purchases and value over a horizon.

    Churn is buying nothing within the horizon. A model that knows nothing of the last HORIZON days is judged
    on them; then one is trained on everything. Writes into OUT: the model, metrics.json, customers.csv (a row
    per customer, from the end of the log) and holdout.csv (what was predicted and what came). `qiance
    predict` uses the model.
    """
    from qiance.cli.stages import Stages

    console = Console()
    stages = Stages(console)
    with stages.stage(f"reading {data.name}") as stage:
        log = read_purchases(data, mapping, out / "quarantine", stage)
        stage.note(f"{len(log.user_ids):,} customers, {len(log):,} days with a purchase")
    with stages.stage("training") as stage:
        from training.customers.settings import CustomerSettings
        from training.customers.train import train_customers

        trained = train_customers(
            log,
            out,
            horizon=horizon,
            cutoff=None if cutoff is None else _day(cutoff),
            settings=CustomerSettings(seed=seed),
            tell=stage.tell,
        )
    console.print(_scores(trained.metrics))
    console.print(_total(trained.forecast, log.currency), highlight=False)
    console.print(f"Model, figures and forecasts: [bold]{out}[/]", highlight=False)


def predict_customers(model: Path, data: Path, mapping: Path, out: Path, console: Console) -> None:
    """A row per customer of `data`, from the end of that log."""
    from qiance.artifacts.customers import CustomerModel
    from qiance.cli.stages import Stages
    from qiance.customers.table import write_forecast

    stages = Stages(console)
    with stages.stage(f"reading {data.name}") as stage:
        loaded = CustomerModel.load(model)
        log = read_purchases(data, mapping, out.parent / "quarantine", stage)
    with stages.stage("predicting"):
        forecast = loaded.predict(log)
        write_forecast(out, forecast, log.currency)
    console.print(_total(forecast, log.currency), highlight=False)
    console.print(f"By customer in [bold]{out}[/]", highlight=False)


def read_purchases(data: Path, mapping: Path, quarantine: Path, stage: Any) -> PurchaseLog:
    """The purchase log in `data`; DataError where it does not exist or the mapping is of something else."""
    from qiance.data.mapped import read_mapped
    from qiance.data.mapping import load_mapping
    from qiance.data.roles import MappingKind

    found = load_mapping(mapping)
    if found.kind is MappingKind.RESPONSES:
        problem = "maps responses, and a customer model learns from purchases"
        raise DataError(mapping, problem, "map one row per purchase with `kind: purchases` (or `events`)")
    if not data.exists():
        raise DataError(data, "does not exist", "pass the path of your purchase log with --data")
    result = read_mapped(
        data, found, quarantine=quarantine, progress=lambda what, done: stage.tell(done, what)
    )
    report = result.report
    stage.note(f"{report.rows_read:,} rows, {report.quarantined:,} in quarantine")
    if report.quarantined:
        stage.note(f"why: {report.quarantine}")
    if result.purchases is None or not len(result.purchases):
        raise DataError(data, "holds no purchase", "map the type of event that is a `purchase`")
    return result.purchases


def _day(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp()) // 86_400


def _scores(metrics: Mapping[str, Any]) -> Table:
    """The model beside the baselines, on the period that none of them learned from."""
    heads = ("on the held-out period", "churn AUC", "log loss", "purchases RMSE", "total", "value total")
    table = Table(*(Column(head, justify="right" if n else "left") for n, head in enumerate(heads)), box=None)
    names = ("churn_auc", "churn_log_loss", "count_rmse", "count_bias", "value_bias")
    rows = {**metrics["baselines"], "[bold]customer model[/]": metrics}
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[key]:.4f}" if key in figures else "" for key in names))
    held = metrics["holdout"]
    table.caption = (
        f"{held['customers']:,} customers, {held['from']} to {held['until']}, "
        f"{metrics['churn_rate']:.1%} bought nothing; ECE {metrics['churn_ece']:.4f} (perfect: below "
        f"{metrics['churn_ece_floor']:.4f}); total: sum predicted / sum actual"
    )
    return table


def _total(forecast: Any, currency: str) -> str:
    from qiance.domain.money import minor_exponent

    value, buyers = forecast.value.sum() / 10 ** minor_exponent(currency), (1 - forecast.churn).sum()
    return (
        f"Next {forecast.horizon} days: {buyers:,.0f} of {len(forecast):,} customers buy, "
        f"on {forecast.purchases.sum():,.0f} days, {value:,.0f} {currency}"
    )
