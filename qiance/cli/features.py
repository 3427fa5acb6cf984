"""`qiance features`: feature tables from the shop's raw event files."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qiance.cli.options import ConfigOption
from qiance.settings import DEFAULT_WORKSPACE, Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from training.preprocess.erased import ErasedInLedger
    from training.preprocess.report import PreprocessReport

app = typer.Typer(help="Feature tables from raw event files.", no_args_is_help=True)
SHOWN = 12


@app.callback()
def features() -> None:
    """Feature tables from raw event files, and from what happened while serving."""


@app.command()
def refresh(
    workspace: Annotated[
        Path,
        typer.Option("--workspace", "-w", help="Folder of the run that is meant; the latest unless given."),
    ] = DEFAULT_WORKSPACE,
    config: ConfigOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Bring all views online anew, as after the online store was lost.")
    ] = False,
    at: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"], help="Materialise as of then (UTC); default: now."
        ),
    ] = None,
) -> None:
    """Write sessions, contacts and results of campaigns from the ledger, and bring them online.

    For a schedule, such as every hour: the running service has the new values within seconds. Of users who
    agree to learning only.
    """
    from rich.console import Console

    from qiance.cli.loop.refresh import refresh_features
    from qiance.ledger import Ledger
    from qiance.workspace import Snapshot, Workspace

    settings, place = load_settings(config, os.environ), Workspace(workspace.resolve())
    if not (place.snapshot / "catalogue.json").is_file():
        raise ValueError(f"workspace: {workspace} has no features; name the folder of a run")
    console, ledger = Console(), Ledger.from_settings(settings, place.root)
    when = at.replace(tzinfo=UTC) if at else datetime.now(UTC)
    try:
        with console.status("Writing tables and materialising"):
            users = Snapshot.load(place.snapshot).users.user_ids
            rows = refresh_features(place, ledger, users, when, settings.privacy.unrecorded, everything)
    finally:
        ledger.close()
    for name, count in rows.items():
        console.print(f"{name}: {count:,} rows", highlight=False)
    console.print(f"Features are online as of {when:%Y-%m-%d %H:%M} UTC", highlight=False)


@app.command()
def build(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE_OR_FOLDER",
            help="Event file (CSV, JSONL or Parquet, each may be gzipped), or a folder of them.",
        ),
    ],
    mapping: Annotated[
        Path, typer.Option("--mapping", "-m", help="YAML that names the columns; docs/data.md has the keys.")
    ],
    items: Annotated[
        Path,
        typer.Option(
            help="CSV, JSONL or Parquet with item_id, and as far as known category, brand, price and "
            "unit_cost (minor units), stock (units on hand now)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for data/ (the tables), quarantine/ and manifest.json.")],
    every: Annotated[int, typer.Option(min=1, help="Days between the instants of the features.")] = 28,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="No instant before this day (UTC).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Pieces worked on at a time; default: one per CPU, 0: without Ray."),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            "-w",
            help="Run whose ledger says who was erased; default: that of ledger.url, else the latest run.",
        ),
    ] = None,
    config: ConfigOption = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Keep the checked events in OUT/.work, so that a file added later costs only its own "
            "check. They are the users' raw events.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check every row of the events and build the feature tables from the good ones, in bounded memory.

    Stopped at any point, the same command goes on with what is finished; with the same input again nothing
    changes. Bad rows go to OUT/quarantine with row, field, value and reason. Events of users who were
    erased are left out, as the ledger has it. Work is spread over one machine by Ray, or over the cluster
    at RAY_ADDRESS, which must see the same paths.

    Exit code 0: the tables are there. 2: a file or the mapping is refused, and the message says why.
    """
    from rich.console import Console

    from qiance.cli.stages import Stages
    from qiance.data import load_mapping
    from serve.loopback import prepare
    from training.preprocess.job import preprocess

    chosen = load_mapping(mapping)
    drop = _erased(load_settings(config, os.environ), workspace)
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        prepare(os.environ)
    with Stages(Console(stderr=True)).stage("Build feature tables") as stage:
        report = preprocess(
            source,
            chosen,
            items,
            out,
            every=every,
            since=since.replace(tzinfo=UTC) if since else None,
            drop=drop,
            workers=workers,
            address=address,
            keep=keep,
            progress=stage.tell,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=1, default=str))
    else:
        render(report, out, Console())


def _erased(settings: Settings, workspace: Path | None) -> ErasedInLedger | None:
    """Who was erased, by the ledger's list; None where there is no ledger yet, or nobody was."""
    from qiance.ledger import Ledger
    from training.preprocess.erased import ErasedInLedger

    place = (workspace or DEFAULT_WORKSPACE).resolve()
    if workspace is not None and not place.is_dir():
        raise ValueError(f"workspace: {workspace} does not exist; name the folder of a run")
    if settings.ledger.url is None and not (place / "ledger.db").is_file():
        return None
    ledger = Ledger.from_settings(settings, place)
    try:
        exported = ledger.export_erasures()
    finally:
        ledger.close()
    if not exported["erasures"]:
        return None
    return ErasedInLedger.of(exported, settings.key_file(place))


def render(report: PreprocessReport, out: Path, console: Console) -> None:
    """The summary that `qiance features build` prints."""
    from rich.table import Table
    from rich.text import Text

    from training.preprocess.tables import TABLES

    if report.unchanged:
        console.print("The same input was read before: nothing changed.")
    console.print(
        f"{report.rows_read:,} rows read, {report.accepted:,} accepted, {report.quarantined:,} quarantined"
        + (f", {report.erased:,} of erased users left out" if report.erased else "")
        + (f"; {report.resumed} pieces were finished before" if report.resumed else "")
    )
    counts: dict[tuple[str, str], int] = {}
    for file in (*report.files, report.items):
        for fault in file.faults:
            key = (fault.field, fault.reason)
            counts[key] = counts.get(key, 0) + fault.count
    if counts:
        reasons = Table("field", "reason", "values", title="Why", title_justify="left")
        for (name, reason), count in sorted(counts.items(), key=lambda pair: -pair[1])[:SHOWN]:
            reasons.add_row(Text(name), reason, f"{count:,}")
        console.print(reasons)
        console.print(Text(f"quarantined rows are in {out / 'quarantine'}"))
    first, last = report.instants[0], report.instants[-1]
    spread = "1 instant" if first == last else f"{len(report.instants)} instants"
    console.print(f"{spread} from {first:%Y-%m-%d} to {last:%Y-%m-%d}")
    tables = Table("table", "rows", title=str(out / "data"), title_justify="left")
    for name in TABLES:
        tables.add_row(name, f"{report.rows[name]:,}")
    console.print(tables)
