"""`qiance allocate`: who gets which offer, within budget and limits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from qiance.report.figures import number

if TYPE_CHECKING:
    from qiance.allocate.spec import AllocationSpec
    from qiance.cli.stages import Stages

SUFFIXES = (".parquet", ".pq", ".csv")


def allocate(
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="A row per user and offer with value and cost: CSV, JSON lines or Parquet."
        ),
    ],
    spec: Annotated[
        Path, typer.Option("--spec", "-s", help="Budget and limits (YAML); see docs/allocation.md.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet or CSV file to write, a row per user.")],
    report: Annotated[
        Path | None, typer.Option(help="JSON report; default: OUT with the suffix .json.")
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed", help="By Ray Data, for more than fits into memory; DATA may be a folder."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --distributed: CPUs of Ray; default: all.")
    ] = None,
) -> None:
    """Choose an offer for each user so that value is highest within the budget and every limit.

    Writes the choices into OUT, and a report that says what each limit costs. Ends with 1 where no plan keeps
    the limits, and says which; then nothing is written. With --distributed inside a Ray job (RAY_ADDRESS is
    set) the cluster of the job is used; it must see the same paths.
    """
    from qiance.allocate import InfeasibleError
    from qiance.allocate.report import shown_limits, summary, without_words
    from qiance.allocate.spec import load_spec
    from qiance.cli.stages import Stages

    console = Console()
    place = report or out.with_suffix(".json")
    _check_places(out, place, workers, distributed)
    asked, stages = load_spec(spec), Stages(console)
    run = _distributed if distributed else _in_memory
    try:
        found = run(data, asked, out, workers, stages)
    except InfeasibleError as error:
        console.print("[red]no plan keeps the limits[/]", highlight=False)
        console.print(str(error), highlight=False, markup=False)
        raise typer.Exit(1) from None
    text = json.dumps({"data": data.name, "spec": spec.name, **found}, indent=2, ensure_ascii=False)
    place.write_text(text + "\n", encoding="utf-8")
    console.print(_limits(shown_limits(found["limits"])))
    console.print(_offers(found))
    console.print(without_words(found), highlight=False)
    if "frequency_cap" in found:
        console.print(_cap(found["frequency_cap"]), highlight=False)
    console.print(summary(found), highlight=False)
    console.print(f"Choices: [bold]{out}[/]; report: {place}", highlight=False)


def _check_places(out: Path, report: Path, workers: int | None, distributed: bool) -> None:
    """Mistakes that would only show after the work."""
    if out.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(
            f"{out} ends in none of {', '.join(SUFFIXES)}; the format of the choices is told by it",
            param_hint="--out",
        )
    for name, place in (("--out", out), ("--report", report)):
        if place.is_dir():
            raise typer.BadParameter(f"{place} is a folder; name a file", param_hint=name)
        place.parent.mkdir(parents=True, exist_ok=True)
    if out.resolve() == report.resolve():
        raise typer.BadParameter(f"{report} is the file of the choices; name another", param_hint="--report")
    if workers is not None and not distributed:
        raise typer.BadParameter("belongs to --distributed", param_hint="--workers")


def _in_memory(
    data: Path, spec: AllocationSpec, out: Path, workers: int | None, stages: Stages
) -> dict[str, Any]:
    from qiance.allocate.ask import Tally, believed, check_named, chosen_rows, solve
    from qiance.allocate.offers import Catalogue, batch_of, read_rows, users_of
    from qiance.allocate.report import cap_use, report_of
    from qiance.allocate.writing import ChoiceWriter

    with stages.stage(f"reading {data.name}") as stage:
        table, users = read_rows(data, spec)
        catalogue = Catalogue.of(table, spec)
        check_named(spec, catalogue)
        batch = batch_of(table, spec, catalogue)
        batch = batch if spec.columns.spread is None else believed(batch)
        stage.note(f"{table.num_rows:,} rows: {len(batch['key']):,} × {len(catalogue.offers)} offers")
        del table
    with stages.stage("allocating") as stage:
        found = solve(spec, catalogue, batch, stage.tell)
    with stages.stage("writing"):
        chosen, tally = chosen_rows(catalogue, batch, found.choice, users_of(users)), Tally()
        tally.add(chosen)
        with ChoiceWriter(out) as writer:
            writer.write(chosen)
    most = spec.frequency_cap
    cap = None if most is None else cap_use(batch, found.choice, most.most)
    return report_of(spec, found, tally, cap)


def _distributed(
    data: Path, spec: AllocationSpec, out: Path, workers: int | None, stages: Stages
) -> dict[str, Any]:
    from qiance.allocate.report import report_of
    from serve.loopback import prepare

    prepare(os.environ)  # before Ray is imported
    from training.allocation_files import allocate_files

    with stages.stage("allocating on Ray Data") as stage:
        found, tally = allocate_files(
            data, spec, out, workers=workers, address=os.environ.get("RAY_ADDRESS"), tell=stage.tell
        )
        stage.note(f"{tally.rows:,} rows, {found.looks} passes to find the prices")
    return report_of(spec, found, tally, None)


def _limits(limits: list[dict[str, Any]]) -> Table:
    right = (Column(head, justify="right", no_wrap=True) for head in ("used", "limit", "share"))
    table = Table(Column("limit", max_width=24), *right, Column("what it means", min_width=24), box=None)
    for one in limits:
        limit = number(one["limit"], 6)
        table.add_row(
            one["name"],
            number(one["used"], 6),
            f"≥ {limit}" if one["least"] else limit,
            "–" if one["share"] is None else f"{one['share']:.1%}",
            one["meaning"],
            style="bold" if one["binds"] else None,
        )
    return table


def _offers(report: dict[str, Any]) -> Table:
    right = (Column(head, justify="right", no_wrap=True) for head in ("given", "value", "cost"))
    table = Table("offer", *right, box=None)
    for name, one in list(report["offers"].items())[:20]:
        table.add_row(name, f"{one['given']:,}", number(one["value"], 6), number(one["cost"], 6))
    others = len(report["offers"]) - 20
    if others > 0:
        table.caption = f"and {others} more in the report"
    return table


def _cap(cap: dict[str, int]) -> str:
    at, people = cap["at_the_cap"], cap["people"]
    return f"Frequency cap: {at:,} of {people:,} get {cap['most']} offers, the most they may"
