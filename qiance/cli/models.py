"""`qiance models`: what is registered, and which of it serves."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from qiance.cli.contest import SERVED, Contest, contest, crown, note
from qiance.cli.options import ConfigOption
from qiance.cli.place import Place, open_place
from qiance.settings import DEFAULT_WORKSPACE
from qiance.workspace import Workspace

app = typer.Typer(
    help="Show registered models, compare a challenger with the champion, promote it, roll back.",
    no_args_is_help=True,
)
console = Console()

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the run whose registry is meant.")
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Registered name; the service follows `effect`.")
]
VersionArgument = Annotated[
    str, typer.Argument(metavar="VERSION", help="Number, artifact version or alias of the challenger.")
]
ByOption = Annotated[
    str, typer.Option(help="Who does it; kept with the change.", default_factory=getpass.getuser)
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Response models: a log that neither was trained on.")
]
MappingOption = Annotated[Path | None, typer.Option("--mapping", "-m", help="What its columns mean.")]


def _place(config: Path | None, folder: Path) -> AbstractContextManager[Place]:
    return open_place(
        config, folder, "mlflow.db", "holds no registry (mlflow.db); train a model into it first"
    )


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only versions of this model.")] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show registered versions, the newest first, with their aliases."""
    from training.registry import versions

    with _place(config, workspace) as at:
        found = versions(at.workspace.tracking_url, name)
    if as_json:
        console.print_json(json.dumps([asdict(one) for one in found], default=str))
        return
    table = Table("model", "version", Column("artifact", no_wrap=True), "kind", "alias", "registered")
    for one in found:
        when = f"{one.at:%Y-%m-%d %H:%M}"
        table.add_row(one.name, one.version, one.artifact_version, one.kind, ", ".join(one.aliases), when)
    console.print(table)


@app.command()
def show(
    name: NameArgument = SERVED,
    version: VersionArgument = "champion",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a version with its metrics, its files checked, and every change of the champion."""
    from training.registry import changes, find, versions

    with _place(config, workspace) as at:
        found = find(at.workspace.tracking_url, name, version)
        (about,) = (one for one in versions(at.workspace.tracking_url, name) if one.version == found.version)
        log = changes(at.workspace.tracking_url, name)
    if as_json:
        document = {
            **asdict(about),
            "manifest_sha256": found.manifest_hash,
            "champions": list(map(asdict, log)),
        }
        console.print_json(json.dumps(document, default=str))
        return
    aliases = f" ({', '.join(about.aliases)})" if about.aliases else ""
    console.print(f"{name} version {about.version}{aliases}: {about.kind} {about.artifact_version}")
    console.print(f"files unchanged: {about.path}", highlight=False, soft_wrap=True)
    table = Table("metric", Column("value", justify="right"), box=None)
    for metric, value in sorted(about.metrics.items()):
        if not metric.startswith("history/"):
            table.add_row(metric, f"{value:.4f}")
    console.print(table)
    for change in log:
        how = "overrode the test: " if change.override else ""
        console.print(
            f"{change.at[:16]} {change.by}: {change.action} version {change.version} "
            f"({change.artifact_version}): {how}{change.reason}",
            highlight=False,
            markup=False,
        )


@app.command()
def compare(
    name: NameArgument = SERVED,
    version: VersionArgument = "challenger",
    against: Annotated[str, typer.Option(help="Version to compare with.")] = "champion",
    data: DataOption = None,
    mapping: MappingOption = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test a challenger against the champion on rows that neither was trained on; changes nothing.

    Ends with 1 where it would not be promoted.
    """
    from training.registry import find

    with _place(config, workspace) as at:
        champion = find(at.workspace.tracking_url, name, against)
        challenger = find(at.workspace.tracking_url, name, version)
        found = contest(
            at.workspace, at.settings, at.ledger, champion, challenger, _log(data, mapping, at.workspace)
        )
    if as_json:
        console.print_json(found.report.read_text(encoding="utf-8"))
    else:
        _print(found)
    if not found.test.passed:
        raise typer.Exit(1)


@app.command()
def promote(
    by: ByOption,
    name: NameArgument = SERVED,
    version: VersionArgument = "challenger",
    reason: Annotated[str | None, typer.Option(help="Why; default: what the test said.")] = None,
    override_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Promote whatever the test says; needs --reason.")
    ] = None,
    data: DataOption = None,
    mapping: MappingOption = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Make a challenger the champion, if it is not worse than the present one and fair.

    A running service of the workspace changes to a promoted `effect` within a second. Ends with 1 where the
    test fails; --override-by NAME --reason TEXT promotes all the same, and both are kept.
    """
    from training.registry import current, find

    if override_by is not None and not (reason or "").strip():
        raise typer.BadParameter("--override-by needs the reason: --reason TEXT", param_hint="--reason")
    with _place(config, workspace) as at:
        challenger = find(at.workspace.tracking_url, name, version)
        if override_by is not None:
            crown(at.workspace, at.ledger, challenger, by=override_by, reason=str(reason), override=True)
            console.print(
                f"{name} version {challenger.version} is champion, by {override_by}, without the test"
            )
            return
        found = contest(
            at.workspace,
            at.settings,
            at.ledger,
            current(at.workspace.tracking_url, name),
            challenger,
            _log(data, mapping, at.workspace),
        )
        note(at.workspace, found)
        _print(found)
        if not found.test.passed:
            console.print(
                "[red]not promoted[/]; to promote it all the same: --override-by NAME --reason TEXT",
                highlight=False,
            )
            raise typer.Exit(1)
        crown(at.workspace, at.ledger, challenger, by=by, reason=reason or found.test.reason)
    console.print(f"{name} version {challenger.version} is champion")


@app.command()
def rollback(
    by: ByOption,
    name: NameArgument = SERVED,
    reason: Annotated[str, typer.Option(help="Why; kept with the change.")] = "rolled back",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Put the champion before the present one back; its files are checked by their hash.

    A running service of the workspace changes back within a second. Once more goes back one further.
    """
    from training.registry import previous_champion

    with _place(config, workspace) as at:
        found = previous_champion(at.workspace.tracking_url, name)
        crown(at.workspace, at.ledger, found, by=by, reason=reason, action="rollback")
    console.print(f"{name} version {found.version} ({found.artifact_version}) is champion again")


def _log(data: Path | None, mapping: Path | None, workspace: Workspace) -> Callable[[], Any] | None:
    if data is None and mapping is None:
        return None
    if data is None or mapping is None:
        raise typer.BadParameter("--data and --mapping go together", param_hint="--data")

    def read() -> Any:
        from qiance.data.errors import DataError
        from qiance.data.mapped import read_mapped
        from qiance.data.mapping import load_mapping

        if not data.exists():
            raise DataError(data, "does not exist", "pass the path of your response log with --data")
        kept = workspace.root / "promotion" / "quarantine"
        result = read_mapped(data, load_mapping(mapping), quarantine=kept)
        if result.responses is None:
            raise DataError(mapping, "does not map responses", "map one row per contact, `kind: responses`")
        return result.responses

    return read


def _print(found: Contest) -> None:
    test = found.test
    table = Table("outcome", "measure", "champion", "challenger", "difference", "allowed", "", box=None)
    for one in test.differences:
        table.add_row(
            one.outcome,
            one.measure,
            f"{one.champion:.4f}",
            f"{one.challenger:.4f}",
            f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]",
            f"+{one.margin:.4f}",
            "[green]not worse[/]" if one.not_worse else "[red]may be worse[/]",
        )
    table.caption = f"{test.rows:,} held-out rows of {test.units:,} users; {test.confidence:.0%} intervals"
    console.print(table)
    for sentence in found.notes:
        console.print(f"[yellow]{escape(sentence)}[/]", highlight=False)
    colour = "green" if test.passed else "red"
    console.print(f"[{colour}]{'passed' if test.passed else 'failed'}[/]: ", end="")
    console.print(test.reason, highlight=False, markup=False)
    console.print(f"report: {found.report}", highlight=False, soft_wrap=True)
