"""`qiance predict`: what a trained model says of rows whose outcome is not known yet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from qiance.artifacts.manifest import MANIFEST
from qiance.data.errors import DataError


def predict(
    model: Annotated[
        Path, typer.Argument(help="Folder that `qiance train effect`, `uplift` or `customers` wrote.")
    ],
    data: Annotated[Path, typer.Option("--data", help="Rows to predict: CSV, JSON lines or Parquet.")],
    mapping: Annotated[
        Path, typer.Option("--mapping", "-m", help="What their columns mean; labels are not read.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")],
    explain: Annotated[
        Literal["none", "shap", "lime"],
        typer.Option(help="Explain the first rows, into OUT.explanations.jsonl."),
    ] = "none",
    explain_rows: Annotated[int, typer.Option(min=1, help="How many rows are explained.")] = 20,
) -> None:
    """Predict the outcome of rows of your own, each with a 90 % interval, and of all of them together.

    With a response model, the interval of a row is of its probability, and that of all rows of the share of
    them that will answer. Where the training log had sales, each row also gets its expected sales and what a
    purchase would be worth, with a 90 % interval for that single purchase; all in minor units. With an uplift
    model: the effect of each arm on each row, and the arm that brings most net of its cost. With a customer
    model: a row per customer of the purchase log, from its end.
    """
    from qiance.artifacts.customers import KIND as CUSTOMERS
    from qiance.artifacts.manifest import load_manifest
    from qiance.artifacts.uplift import KIND as UPLIFT
    from qiance.cli.stages import Stages

    console, found = Console(), trained_model(model)
    kind, stages = load_manifest(found).kind, Stages(console)
    if kind == CUSTOMERS:
        from qiance.cli.train_customers import predict_customers

        predict_customers(found, data, mapping, out, console)
    elif kind == UPLIFT:
        from qiance.cli.predict_uplift import predict_uplift

        predict_uplift(found, data, mapping, out, explain, explain_rows, stages)
    else:
        _predict_response(found, data, mapping, out, explain, explain_rows, stages)


def _predict_response(
    artifact: Path, data: Path, mapping: Path, out: Path, explain: str, explain_rows: int, stages: Any
) -> None:
    from qiance.artifacts.response import ResponseModel
    from qiance.data.mapped import read_mapped
    from qiance.data.mapping import load_mapping

    with stages.stage(f"reading {data.name}") as stage:
        loaded = ResponseModel.load(artifact)
        if not data.exists():
            raise DataError(data, "does not exist", "pass the path of the rows to predict with --data")
        result = read_mapped(
            data, load_mapping(mapping), quarantine=out.parent / "quarantine", outcomes=False
        )
        if result.responses is None:
            raise DataError(
                mapping, "does not map responses", "use the mapping that the model was trained with"
            )
        stage.note(f"{result.report.rows_read:,} rows, {result.report.quarantined:,} in quarantine")
        columns = loaded.schema.columns(result.responses.table)
        ids = result.responses.table["row_id"].to_pylist()
    with stages.stage("predicting") as stage:
        draws = loaded.predict(columns)
        _write(out, ids, loaded, columns, draws)
        if explain != "none":
            _explain(out, ids, loaded, columns, explain, explain_rows, stage)
    total = loaded.outcome_interval(draws, columns)
    stages.console.print(
        f"{loaded.info.label}: {total.value:.2%} of {len(ids):,} rows, 90 % interval {total.low:.2%} to "
        f"{total.high:.2%}; by row in [bold]{out}[/]",
        highlight=False,
    )
    if loaded.info.width.doubt is not None:
        stages.console.print(f"[yellow]{loaded.info.width.doubt}[/]", highlight=False)


def trained_model(folder: Path) -> Path:
    """The model that the last training wrote into `folder`, or `folder` where it is an artifact itself."""
    if (folder / MANIFEST).exists():
        return folder
    try:
        return folder / str(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError):
        raise DataError(folder, "holds no trained model", "pass the --out folder of `qiance train`") from None


def _write(out: Path, ids: list[str], model: Any, columns: Any, draws: Any) -> None:
    """A line per row; with sales in the training log also what a purchase would be worth, minor units."""
    low, high = model.row_intervals(draws, columns)
    table = {"row_id": ids, "probability": draws.mean(axis=1), "low": low, "high": high}
    value = model.value(columns)
    if value is not None:
        table |= {"expected_sales": model.sales(columns, draws), "purchase_value": value.mean}
        table |= {"purchase_low": value.low, "purchase_high": value.high}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        for name, *values in zip(*table.values(), strict=True):
            writer.writerow([name, *(f"{number:.6f}" for number in values)])


def _explain(out: Path, ids: list[str], model: Any, columns: Any, method: Any, most: int, stage: Any) -> None:
    write_explanations(out, ids, columns, lambda row, _place: asdict(model.explain(row, method)), most, stage)


def write_explanations(
    out: Path,
    ids: list[str],
    columns: Any,
    explain_row: Callable[[Any, int], dict[str, Any]],
    most: int,
    stage: Any,
) -> None:
    """One JSON line for each of the first rows; explain_row gets the row's columns and its place."""
    count = min(most, len(ids))
    with out.with_name(out.name + ".explanations.jsonl").open("w", encoding="utf-8") as stream:
        for place in range(count):
            stage.tell(place / count, f"explaining row {place + 1} of {count}")
            row = {name: values[place : place + 1] for name, values in columns.items()}
            line = {"row_id": ids[place], **explain_row(row, place)}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
