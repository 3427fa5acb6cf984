"""`qiance train planning`: a policy for an environment, and whether it is worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from qiance.domain import Interval


class Environment(StrEnum):
    """What can be planned in."""

    PROMOTION = "promotion"
    SALES = "sales"


class Algorithm(StrEnum):
    """Of RLlib."""

    PPO = "ppo"
    SAC = "sac"


EnvironmentOption = Annotated[
    Environment,
    typer.Option(
        help="promotion: segments of the simulated market; sales: the users of NeoRL's SalesPromotion."
    ),
]
DataOption = Annotated[
    Path | None, typer.Option(help="sales: folder with NeoRL's users, see docs/planning.md.")
]
WorldOption = Annotated[
    Path | None, typer.Option(help="promotion: rl/world.npz of a run; default: a made-up population.")
]


def planning(
    environment: EnvironmentOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the policy and the checkpoint.")],
    data: DataOption = None,
    world: WorldOption = None,
    algorithm: Annotated[Algorithm, typer.Option(help="ppo starts from the best constant.")] = Algorithm.PPO,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Each lives ENVS episodes; default: 100, for sales 60.")
    ] = None,
    envs: Annotated[
        int | None, typer.Option(min=1, help="Episodes side by side; default: 256, for sales 2,000.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Artifact of a network that ppo goes on from, e.g. of planning-offline -a bc."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of training; what is held out does not depend on it.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in OUT, up to ITERATIONS.")
    ] = False,
) -> None:
    """Learn online by reinforcement, and keep what is best on episodes that nobody has learned from.

    Writes into OUT a policy that acts without chance: the learned one if it beats the best rule (a constant
    tuned on a grid, or the myopic allocator) beyond doubt, otherwise that rule. Stopped at any point,
    `--resume` goes on from the last checkpoint.
    """
    from qiance.cli.stages import Stages
    from serve.launch import LocalCluster

    console = Console()
    arguments = task_arguments(environment, data, world)
    with (
        Stages(console).stage(f"training {algorithm} in {environment}") as stage,
        LocalCluster(proxy="plain"),
    ):
        from rllib.plan_algorithms import DEFAULTS
        from rllib.planning import train_planning

        usual = DEFAULTS[environment]
        settings = replace(
            usual,
            algorithm=str(algorithm),
            seed=seed,
            iterations=iterations or usual.iterations,
            num_envs=envs or usual.num_envs,
        )
        trained = train_planning(
            arguments, out=out, settings=settings, resume=resume, start=start, progress=stage.tell
        )
    console.print(returns_table(trained.returns, trained.chosen))
    console.print(kept_sentence(trained.chosen, trained.best_rule, trained.gain), highlight=False)
    console.print(f"Policy: [bold]{trained.artifact.path}[/]", highlight=False)


def task_arguments(environment: Environment, data: Path | None, world: Path | None) -> dict[str, str]:
    """What `rllib.tasks.task_of` takes; BadParameter where an option lacks or belongs to another one."""
    if environment is Environment.SALES:
        if data is None:
            raise typer.BadParameter("missing: --environment sales needs it", param_hint="--data")
        if world is not None:
            raise typer.BadParameter("belongs to --environment promotion", param_hint="--world")
        return {"environment": "sales", "data": str(data.resolve())}
    if data is not None:
        raise typer.BadParameter("belongs to --environment sales", param_hint="--data")
    return {"environment": "promotion"} | ({} if world is None else {"world": str(world.resolve())})


def returns_table(returns: Mapping[str, Interval], chosen: str) -> Table:
    """Returns of the policies, the best first."""
    table = Table(
        "policy", *(Column(head, justify="right") for head in ("return", "90 % interval")), box=None
    )
    for name, found in sorted(returns.items(), key=lambda item: -item[1].value):
        style = "bold" if name == chosen else None
        table.add_row(name, f"{found.value:.4g}", f"[{found.low:.4g}, {found.high:.4g}]", style=style)
    table.caption = "mean return of held-out episodes"
    return table


def kept_sentence(chosen: str, best_rule: str, gain: Interval) -> str:
    """What was kept, and what the learned policy brings more than the best rule."""
    text = (
        f"Kept: {chosen}. Learned brings {gain.value:+.4g} [{gain.low:+.4g}, {gain.high:+.4g}] "
        f"against the best rule, {best_rule}, on the same episodes"
    )
    return text if chosen == "learned" else f"{text}: not enough to replace it"
