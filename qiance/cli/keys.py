"""`qiance keys`: make, list and revoke API keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qiance.cli.options import ConfigOption
from qiance.ledger import Ledger, LedgerUnavailableError, Scope
from qiance.settings import DEFAULT_WORKSPACE, load_settings

app = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke API keys. Without any key the API answers on loopback only.",
)

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the ledger and its secrets, unless set.")
]
NameArgument = Annotated[str, typer.Argument(help="Who or what uses the key, e.g. `web-shop`.")]
ScopeOption = Annotated[
    list[Scope], typer.Option("--scope", "-s", help="What it may do; repeat for several. `admin` is all.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Write the key to this new file, for the owner only.")
]


@app.command()
def create(
    name: NameArgument,
    scope: ScopeOption,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    out: OutOption = None,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    Example: qiance keys create web-shop --scope decide --scope outcomes
    """
    with _ledger(config, workspace) as ledger:
        _hand_over(ledger, name, scope, out)


@app.command("list")
def list_keys(config: ConfigOption = None, workspace: WorkspaceOption = DEFAULT_WORKSPACE) -> None:
    """Show every key: its name, scopes, age and whether it was revoked; never the key itself."""
    table = Table("name", "scopes", "created", "revoked")
    with _ledger(config, workspace) as ledger:
        listed = ledger.keys()
    for key in listed:
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "-"
        scopes = ", ".join(sorted(key.scopes))
        table.add_row(key.name, scopes, f"{key.created_at:%Y-%m-%d %H:%M}", revoked)
    Console().print(table if table.row_count else "No keys: the API answers on loopback only.")


@app.command()
def revoke(
    name: NameArgument, config: ConfigOption = None, workspace: WorkspaceOption = DEFAULT_WORKSPACE
) -> None:
    """End a key at once. Its line stays in the list; the name is free again."""
    with _ledger(config, workspace) as ledger:
        ledger.revoke_key(name, by="cli")
    typer.echo(f"revoked {name}", err=True)


@app.command()
def bootstrap(
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    name: Annotated[str, typer.Option(help="Name of the key.")] = "admin",
    out: OutOption = None,
) -> None:
    """Make the ledger, its secret and the first admin key of a new installation.

    Safe to repeat: where there is an active key already, nothing changes.
    """
    with _ledger(config, workspace) as ledger:
        if ledger.has_keys():
            typer.echo("there is an active key already; nothing changed", err=True)
        else:
            _hand_over(ledger, name, [Scope.ADMIN], out)


def _hand_over(ledger: Ledger, name: str, scopes: list[Scope], out: Path | None) -> None:
    """Makes a key and gives it to `out`, else to standard output with nothing around it."""
    if out is None:
        typer.echo(ledger.create_key(name, scopes, by="cli"))
        typer.echo(f"this is the key of {name}; it will not be shown again", err=True)
        return
    # The file first: a key that nobody can read would have to be revoked.
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(ledger.create_key(name, scopes, by="cli") + "\n")
    except BaseException:
        out.unlink()
        raise
    typer.echo(f"the key of {name} is in {out}", err=True)


@contextmanager
def _ledger(config: Path | None, workspace: Path) -> Iterator[Ledger]:
    """The configured ledger; what goes wrong becomes one line and exit code 1."""
    try:
        ledger = Ledger.from_settings(load_settings(config, os.environ), workspace)
        try:
            yield ledger
        finally:
            ledger.close()
    except (ValueError, LedgerUnavailableError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"error: {error.filename}: {error.strerror}; name another file", err=True)
        raise typer.Exit(1) from None
