"""`qiance users`: consent, and erasure from everything."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qiance.cli.options import ConfigOption
from qiance.domain import Purpose
from qiance.ledger import Ledger, LedgerUnavailableError
from qiance.privacy import Eraser, ErasureReport, WorkspaceBusyError, online_eraser
from qiance.settings import DEFAULT_WORKSPACE, Settings, load_settings
from qiance.workspace import Workspace

app = typer.Typer(no_args_is_help=True, help="Record what users agree to, and erase them from everything.")
erasures = typer.Typer(no_args_is_help=True, help="See, finish, export and replay erasures.")
app.add_typer(erasures, name="erasures")
console = Console()

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the run that is meant; the latest unless given.")
]
UserArgument = Annotated[str, typer.Argument(metavar="USER_ID", help="Your id of the user.")]
ByOption = Annotated[str, typer.Option(help="Who does it; is kept with it.", default_factory=getpass.getuser)]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The list, as JSON.")]


@app.command()
def consent(
    user: UserArgument,
    by: ByOption,
    grant: Annotated[list[Purpose] | None, typer.Option(help="The user agrees to it.")] = None,
    deny: Annotated[list[Purpose] | None, typer.Option(help="The user does not agree to it.")] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Record what a user says about purposes; those that are not named stay as they are.

    Example: qiance users consent alice --grant personalisation --deny learning
    """
    granted, denied = grant or [], deny or []
    if set(granted) & set(denied) or not (granted or denied):
        raise typer.BadParameter("name each purpose once, with --grant or with --deny")
    said = dict.fromkeys(granted, True) | dict.fromkeys(denied, False)
    with _opened(config, workspace) as (settings, ledger):
        ledger.set_consent(user, said, by)
        _show(ledger, settings, user)


@app.command()
def show(
    user: UserArgument, config: ConfigOption = None, workspace: WorkspaceOption = DEFAULT_WORKSPACE
) -> None:
    """Show what a user agrees to, every change of it, and whether they were erased."""
    with _opened(config, workspace) as (settings, ledger):
        _show(ledger, settings, user)
        table = Table("said at", "purpose", "agrees", "recorded by")
        for change in ledger.consent_history(user):
            table.add_row(
                f"{change.at:%Y-%m-%d %H:%M}", change.purpose, "yes" if change.granted else "no", change.by
            )
        if table.row_count:
            console.print(table)
        for at in ledger.erased_before([user]).values():
            typer.echo(f"erased at {at:%Y-%m-%d %H:%M} UTC")


@app.command()
def erase(
    user: UserArgument,
    by: ByOption,
    reason: Annotated[str, typer.Option(help="Why; is kept, so it must not name the user.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Erase a user from ledger, online store and files; this cannot be undone.

    Ends with 1 where something is left to be done; then `qiance users erasures resume` goes on.
    """
    if not yes:
        typer.confirm(f"Erase {user} from everything? This cannot be undone", abort=True)
    with _opened(config, workspace) as (_, ledger):
        report = _eraser(ledger, workspace).erase(user, by, reason)
        _tell([report])


@app.command()
def prune(
    older_than_days: Annotated[int, typer.Option(min=1, help="Days since the event was received.")],
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Delete shop events that are older than your retention period."""
    with _opened(config, workspace) as (_, ledger):
        count = ledger.drop_events_before(datetime.now(UTC) - timedelta(days=older_than_days))
        typer.echo(f"{count} events deleted")


@erasures.command("list")
def list_(config: ConfigOption = None, workspace: WorkspaceOption = DEFAULT_WORKSPACE) -> None:
    """Show every erasure: when, by whom, why and how far it is; not whose."""
    table = Table("erasure", "at", "by", "reason", "state", "left to do")
    with _opened(config, workspace) as (_, ledger):
        for entry in ledger.erasures():
            at, state = f"{entry.erased_at:%Y-%m-%d %H:%M}", entry.state.value
            table.add_row(entry.erasure_id, at, entry.by, entry.reason, state, "; ".join(entry.problems))
    console.print(table if table.row_count else "No user was erased.")


@erasures.command()
def export(
    file: FileArgument, config: ConfigOption = None, workspace: WorkspaceOption = DEFAULT_WORKSPACE
) -> None:
    """Write the list of erasures, to be kept beside the backups: keyed hashes, no ids."""
    with _opened(config, workspace) as (_, ledger):
        exported = ledger.export_erasures()
        part = file.with_name(f".{file.name}.part")
        part.write_text(json.dumps(exported, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
        typer.echo(f"{len(exported['erasures'])} erasures written to {file}")


@erasures.command()
def replay(
    file: FileArgument,
    by: ByOption,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """After a restore, before anything is served: erase again whom the backup brought back."""
    with _opened(config, workspace) as (_, ledger):
        try:
            exported = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{file}: is no JSON; name what `qiance users erasures export` wrote") from None
        removed = _eraser(ledger, workspace).replay(exported, by)
        typer.echo(f"{removed.pop('users', 0)} users erased again")
        for name, count in removed.items():
            typer.echo(f"  {name}: {count} rows")


@erasures.command()
def resume(config: ConfigOption = None, workspace: WorkspaceOption = DEFAULT_WORKSPACE) -> None:
    """Finish erasures that something interrupted."""
    with _opened(config, workspace) as (_, ledger):
        reports = _eraser(ledger, workspace).resume()
        _tell(reports)
        if not reports:
            typer.echo("nothing is left to do")


def _eraser(ledger: Ledger, workspace: Path) -> Eraser:
    place = Workspace(workspace.resolve())
    return Eraser(ledger, place, online_eraser(place.features, os.environ))


def _show(ledger: Ledger, settings: Settings, user: str) -> None:
    agreed = ledger.consents([user], settings.privacy.unrecorded)[user]
    for purpose in Purpose:
        typer.echo(f"{purpose}: {'yes' if purpose in agreed else 'no'}")


def _tell(reports: list[ErasureReport]) -> None:
    for report in reports:
        typer.echo(f"erasure {report.erasure_id}: {report.state}")
        for name, count in report.removed.items():
            typer.echo(f"  {name}: {count} rows")
        for problem in report.problems:
            typer.echo(f"  not done: {problem}", err=True)
    if not all(report.is_done for report in reports):
        raise typer.Exit(1)


@contextmanager
def _opened(config: Path | None, workspace: Path) -> Iterator[tuple[Settings, Ledger]]:
    """Settings and ledger; what goes wrong becomes one line and exit code 1."""
    try:
        settings = load_settings(config, os.environ)
        if not workspace.is_dir() and settings.ledger.url is None:
            raise ValueError(f"workspace: {workspace} does not exist; name the folder of a run")
        ledger = Ledger.from_settings(settings, workspace.resolve())
        try:
            yield settings, ledger
        finally:
            ledger.close()
    except (ValueError, LedgerUnavailableError, WorkspaceBusyError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"error: {error.filename}: {error.strerror}; name another file", err=True)
        raise typer.Exit(1) from None
