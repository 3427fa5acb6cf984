"""`qiance train bandit`: bandits side by side in the simulated market, and one of them kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from qiance.bandits.contest import Agent

if TYPE_CHECKING:
    from qiance.bandits.contest import Result
    from qiance.bandits.play import Player, Rows
    from qiance.bandits.shop import Shop


def bandit(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bandit and its log.")],
    agent: Annotated[Agent, typer.Option(help="The one that is kept; all are shown.")] = Agent.LIN_TS,
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", "-w", help="Run whose users and items are played; default: made up."),
    ] = None,
    days: Annotated[int, typer.Option(min=2, help="Days; each is one batch.")] = 60,
    per_day: Annotated[int, typer.Option(min=1, help="Decisions a day, of different users.")] = 1_000,
    delay: Annotated[float, typer.Option(min=1.0, help="Mean days from a decision to its purchase.")] = 2.0,
    window: Annotated[int, typer.Option(min=1, help="Days after which there was no purchase.")] = 7,
    epsilon: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least share of exploration, of every agent.")
    ] = 0.02,
    seeds: Annotated[int, typer.Option(min=1, help="Markets that all are played in.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="The first of them; its bandit is kept.")] = 0,
) -> None:
    """Play contextual bandits in the simulated market, with purchases that come days later, and keep one.

    Writes into OUT the bandit as an artifact, and its decisions with exact propensities: decisions.parquet,
    with decisions.map.yaml and a policy, uniform.parquet, for `qiance evaluate ope`. The market is simulated:
    the table says how bandits compare, not what they would bring in your shop.
    """
    from qiance.artifacts.bandit import write_bandit
    from qiance.bandits.agent import Bandit
    from qiance.bandits.contest import compare, contenders
    from qiance.bandits.decision_log import write_log
    from qiance.bandits.play import Schedule
    from qiance.cli.stages import Stages

    console = Console()
    stages, schedule = Stages(console), Schedule(days, per_day, delay, window)
    with stages.stage("opening the shop"):
        shop = _shop(workspace)
    kept: list[tuple[Bandit, Rows]] = []

    def keep(name: str, number: int, player: Player, rows: Rows) -> None:
        if isinstance(player, Bandit) and name == agent and number == seed:
            kept.append((player, rows))

    with stages.stage(f"playing {days} days") as stage:
        from training.bandit.fit import fit_network

        stage.tell(0.0, "looking for the best constant arm")
        found = contenders(shop, schedule, epsilon, fit_network)
        results = compare(shop, found, schedule, range(seed, seed + seeds), stage.tell, keep)
    console.print(_table(results, agent, seeds))
    console.print(_sentence(results, agent), highlight=False)
    ((player, rows),) = kept
    log = write_log(out, shop, rows)
    artifact = write_bandit(out, player, metrics=_metrics(results[agent]), data_fingerprint=_hash(log))
    console.print(f"Bandit: [bold]{artifact.path}[/]", highlight=False)
    console.print(f"Decisions: [bold]{log}[/]", highlight=False)


def _shop(workspace: Path | None) -> Shop:
    from qiance.bandits.shop import made_up_shop, shop_of
    from qiance.workspace import Snapshot, Workspace

    if workspace is None:
        return made_up_shop()
    try:
        return shop_of(Snapshot.load(Workspace(workspace).snapshot))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"--workspace: {workspace} holds no run; make one with `qiance run`") from None


def _hash(path: Path) -> str:
    from qiance.artifacts.manifest import file_hash

    return file_hash(path)


def _metrics(result: Result) -> dict[str, float]:
    return {name: float(getattr(result, name).mean()) for name in ("value", "regret", "late")}


def _table(results: Mapping[str, Result], agent: Agent, seeds: int) -> Table:
    from qiance.bandits.contest import CONFIDENCE, interval_of

    heads = ("value", f"{CONFIDENCE:.0%} interval", "last quarter", "regret")
    table = Table("agent", *(Column(head, justify="right") for head in heads), box=None)
    for name, result in sorted(results.items(), key=lambda item: -item[1].value.mean()):
        mean = interval_of(result.value)
        bounds = f"[{mean.low:,.0f}, {mean.high:,.0f}]" if seeds > 1 else "one seed"
        numbers = (f"{mean.value:,.0f}", bounds, f"{result.late.mean():,.0f}", f"{result.regret.mean():,.0f}")
        table.add_row(name, *numbers, style="bold" if name == agent else None)
    table.caption = "minor units per 1,000 decisions, over leaving everybody alone (simulated)"
    return table


def _sentence(results: Mapping[str, Result], agent: Agent) -> str:
    """Whether another one is better, on the same markets."""
    from qiance.bandits.contest import interval_of

    best = max(results, key=lambda name: float(results[name].value.mean()))
    if best == agent:
        return f"Kept: {agent}, the best of them"
    gains = results[best].value - results[agent].value
    gain = interval_of(gains)
    bounds = f" [{gain.low:+,.0f}, {gain.high:+,.0f}]" if gains.size > 1 else ""
    return (
        f"Kept: {agent}, as asked. {best} brought {gain.value:+,.0f}{bounds} more per 1,000 decisions on the "
        "same markets"
    )
