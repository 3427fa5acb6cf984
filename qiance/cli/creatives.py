"""`qiance creatives`: the bank of words: see it, lint it again, approve and retire."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qiance.cli.options import ConfigOption
from qiance.cli.words import catalogue_of, guard_of
from qiance.domain import Catalogue, Channel, CreativeState, StrategyState
from qiance.guard import Guard
from qiance.guard.gate import bank_strategies, relint_creative
from qiance.ledger import BankEntry, Ledger
from qiance.settings import DEFAULT_WORKSPACE, load_settings

app = typer.Typer(help="See, lint, approve and retire the words that may be served.", no_args_is_help=True)
console = Console()

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the run whose ledger is meant.")
]
NameArgument = Annotated[str, typer.Argument(metavar="CREATIVE_ID", help="As `qiance creatives list` shows.")]
ByOption = Annotated[
    str, typer.Option(help="Who does it; goes to the audit log.", default_factory=getpass.getuser)
]
ReasonOption = Annotated[str, typer.Option(help="Why; goes to the audit log.")]


@contextmanager
def _bank(config: Path | None, workspace: Path) -> Iterator[tuple[Ledger, Guard, Catalogue | None]]:
    settings = load_settings(config, os.environ)
    ledger = Ledger.from_settings(settings, workspace.resolve())
    try:
        yield ledger, guard_of(settings), catalogue_of(workspace)
    finally:
        ledger.close()


@app.command("list")
def list_(
    state: Annotated[CreativeState | None, typer.Option(help="Only those in this state.")] = None,
    segment: Annotated[str | None, typer.Option(help="Only those for this audience.")] = None,
    channel: Annotated[Channel | None, typer.Option(help="Only those for this channel.")] = None,
    language: Annotated[str | None, typer.Option(help="Only those in this language.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Show the bank: words, state, who set it, and what the lint last said."""
    with _bank(config, workspace) as (ledger, guard, _):
        found = ledger.creatives(state, segment, channel, language)
    if as_json:
        for entry in found:
            print(json.dumps(_document(entry), ensure_ascii=False))
        return
    table = Table(title=f"{len(found)} creatives; rule set {guard.version}")
    table.add_column("creative", no_wrap=True)  # to be copied
    for column in ("version", "segment", "state", "by", "lint", "headline", "body"):
        table.add_column(column, overflow="fold")
    for entry in found:
        words = entry.subject.creative
        lint = entry.verdict.value + ("" if entry.rules == guard.version else " (older rules)")
        by = f"{entry.by}, {entry.changed_at:%Y-%m-%d}"
        row = (
            str(entry.version),
            entry.subject.segment,
            entry.state.value,
            by,
            lint,
            words.headline,
            words.body,
        )
        table.add_row(entry.creative_id, *row)
    console.print(table, markup=False)


def _document(entry: BankEntry) -> dict[str, object]:
    words = entry.subject.creative
    return {
        "creative_id": entry.creative_id,
        "version": entry.version,
        "segment": entry.subject.segment,
        "channel": words.channel.value,
        "language": words.language,
        "item_id": entry.subject.item_id,
        "headline": words.headline,
        "body": words.body,
        "call_to_action": words.call_to_action,
        "source": words.source,
        "state": entry.state.value,
        "by": entry.by,
        "changed_at": entry.changed_at.isoformat(),
        "verdict": entry.verdict.value,
        "rules": entry.rules,
        "findings": [dict(finding) for finding in entry.findings],
    }


@app.command()
def lint(
    by: ByOption,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Lint every creative again under the rules and facts of now, those of strategies not ended included.

    Approved words that do not pass any more become drafts and are not served. Ends with 1 if any is blocked.
    """
    with _bank(config, workspace) as (ledger, guard, catalogue):
        bank_strategies(
            ledger,
            guard,
            catalogue,
            [s for s in ledger.strategies() if s.state is not StrategyState.ENDED],
            by,
        )
        entries = [e for e in ledger.creatives() if e.state is not CreativeState.RETIRED]
        found = [relint_creative(ledger, guard, catalogue, entry.creative_id) for entry in entries]
        ledger.put_creatives(found, by)
    blocked = [each for each in found if each.result.blocked]
    for each in blocked:
        console.print(f"{each.creative_id} is blocked: {each.result.why()}", highlight=False, markup=False)
    console.print(
        f"{len(found)} creatives, {len(blocked)} blocked; rule set {guard.version}", highlight=False
    )
    if blocked:
        raise typer.Exit(1)


@app.command()
def approve(
    name: NameArgument,
    by: ByOption,
    reason: ReasonOption = "approved",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Approve a creative that passes the lint now; live strategies that use it may then serve it."""
    with _bank(config, workspace) as (ledger, guard, catalogue):
        ledger.approve_creative(relint_creative(ledger, guard, catalogue, name), by, reason)
    console.print(f"{name} is approved", highlight=False)


@app.command()
def retire(
    name: NameArgument,
    by: ByOption,
    reason: ReasonOption = "retired",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Take a creative out of service for good."""
    with _bank(config, workspace) as (ledger, _, _):
        ledger.retire_creative(name, by, reason)
    console.print(f"{name} is retired", highlight=False)
