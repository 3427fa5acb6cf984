"""`qiance strategies`: see what was proposed, approve it, start, pause and end it."""

from __future__ import annotations

import getpass
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
from qiance.domain import Money, Strategy, StrategyState
from qiance.guard.gate import move_strategy
from qiance.ledger import Ledger
from qiance.settings import DEFAULT_WORKSPACE, load_settings

app = typer.Typer(help="See, approve, start, pause and end proposed strategies.", no_args_is_help=True)
console = Console()

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the run whose ledger is meant.")
]
NameArgument = Annotated[
    str, typer.Argument(metavar="STRATEGY_ID", help="As `qiance strategies list` shows.")
]
ByOption = Annotated[
    str, typer.Option(help="Who does it; goes to the audit log.", default_factory=getpass.getuser)
]
ReasonOption = Annotated[str, typer.Option(help="Why; goes to the audit log.")]


@contextmanager
def _ledger(config: Path | None, workspace: Path) -> Iterator[Ledger]:
    settings = load_settings(config, os.environ)
    ledger = Ledger.from_settings(settings, workspace.resolve())
    try:
        yield ledger
    finally:
        ledger.close()


@app.command("list")
def list_(
    state: Annotated[StrategyState | None, typer.Option(help="Only those in this state.")] = None,
    brief: Annotated[str | None, typer.Option(help="Only those of this brief.")] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Show strategies with their state, audience and predicted incremental margin per contact."""
    with _ledger(config, workspace) as ledger:
        found = ledger.strategies(state, brief)
    table = Table(title=f"{len(found)} strategies")
    table.add_column("strategy", no_wrap=True)  # to be copied
    for column in ("kind", "state", "audience", "reach", "uplift per contact"):
        table.add_column(column)
    for strategy in found:
        table.add_row(
            strategy.strategy_id,
            strategy.kind.value,
            strategy.state.value,
            strategy.audience.describe(),
            f"{strategy.reach:,}",
            _uplift(strategy),
        )
    console.print(table)


def _uplift(strategy: Strategy) -> str:
    if strategy.effect is None:
        return "–"
    uplift = strategy.effect.uplift
    value, low, high = (Money(round(x)) for x in (uplift.value, uplift.low, uplift.high))
    return f"{value} [{low}, {high}]"


@app.command()
def approve(
    name: NameArgument,
    by: ByOption,
    reason: ReasonOption = "approved",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Approve a draft, and its words if they pass the lint; it does nothing until it is started."""
    _move(name, StrategyState.APPROVED, by, reason, config, workspace)


@app.command()
def start(
    name: NameArgument,
    by: ByOption,
    reason: ReasonOption = "started",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Make an approved or paused strategy live: decisions choose among live ones only."""
    _move(name, StrategyState.LIVE, by, reason, config, workspace)


@app.command()
def pause(
    name: NameArgument,
    by: ByOption,
    reason: ReasonOption = "paused",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Take a live strategy out of decisions; `start` brings it back."""
    _move(name, StrategyState.PAUSED, by, reason, config, workspace)


@app.command()
def end(
    name: NameArgument,
    by: ByOption,
    reason: ReasonOption = "ended",
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """End a strategy for good."""
    _move(name, StrategyState.ENDED, by, reason, config, workspace)


def _move(
    name: str, state: StrategyState, by: str, reason: str, config: Path | None, workspace: Path
) -> None:
    guard, catalogue = guard_of(load_settings(config, os.environ)), catalogue_of(workspace)
    with _ledger(config, workspace) as ledger:
        moved = move_strategy(ledger, guard, catalogue, name, state, by, reason)
    console.print(f"{moved.strategy_id} is {moved.state.value}", highlight=False)
