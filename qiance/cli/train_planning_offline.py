"""`qiance train planning-log`, `planning-offline`: learn from what a running policy did, and judge by it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from qiance.cli.train_planning import DataOption, EnvironmentOption, WorldOption, task_arguments

if TYPE_CHECKING:
    from rllib.model_plan import Promise
    from rllib.offline import OfflineTrained

_WORDS = {"dr": "doubly robust", "pdis": "per-decision importance sampling", "dm": "value model alone"}


class OfflineAlgorithm(StrEnum):
    """Of RLlib, but for `model`."""

    BC = "bc"
    MARWIL = "marwil"
    IQL = "iql"
    CQL = "cql"
    MODEL = "model"


def planning_log(
    log: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    environment: EnvironmentOption,
    data: DataOption = None,
    world: WorldOption = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Artifact of a policy that runs; default: a cautious rule of the environment."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Campaigns or users, 30 days each.")] = 4_000,
    explore: Annotated[
        float | None,
        typer.Option(
            help="promotion: standard deviation of the dials, default 0.3; sales: share of days with a "
            "random offer, default 0.2."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the episodes and of the exploration.")] = 0,
) -> None:
    """Let a policy run in a simulated environment, with exploration, and log what it did.

    The log has what planning-offline needs of a real one: a row per episode and day, and the propensity of
    what was done.
    """
    from qiance.cli.stages import Stages
    from rllib.explore import EXPLORE, Exploring, record
    from rllib.plan_log import write_log
    from rllib.policies import Network, load_policy
    from rllib.tasks import Constant, task_of

    task = task_of(task_arguments(environment, data, world))
    running = task.cautious() if policy is None else load_policy(policy, task)
    if not isinstance(running, Constant | Network):
        raise typer.BadParameter(
            "holds no network or constant, so it has no dials to explore", param_hint="--policy"
        )
    console = Console()
    with Stages(console).stage(f"living {episodes:,} episodes of {environment}") as stage:
        wide = EXPLORE[task.name] if explore is None else explore
        found = record(Exploring(task, running, wide), episodes, seed, stage.tell)
        write_log(log, found, task)
    mean = found.reward.sum(axis=1).mean()
    console.print(f"Log: [bold]{log}[/], mean return {mean:.4g}, explored with {wide:g}", highlight=False)


def planning_offline(
    log: Annotated[Path, typer.Argument(help="Parquet file or folder; docs/planning.md has its columns.")],
    environment: EnvironmentOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the policy and the checkpoint.")],
    data: DataOption = None,
    world: WorldOption = None,
    algorithm: Annotated[
        OfflineAlgorithm,
        typer.Option(
            "--algorithm",
            "-a",
            help="bc: imitate, to start `train planning` from; marwil: imitate what turned out better more; "
            "in promotion also iql, cql: learn what each day's dials are worth; model: plan in models of "
            "the log.",
        ),
    ] = OfflineAlgorithm.MARWIL,
    beta: Annotated[
        float | None, typer.Option(help="marwil, iql: how far to go from what ran; default: 1, iql 2.")
    ] = None,
    penalty: Annotated[
        float | None,
        typer.Option(
            help="model: what a day loses per standard deviation that models disagree by; default: 2."
        ),
    ] = None,
    effective: Annotated[
        float | None,
        typer.Option(
            help="model: so many held-out episodes are to stay effective for the policy; the fewer, the "
            "further it goes from the running one; default: 100."
        ),
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Of 100 steps each; default: 10.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the episodes that judge only.")] = 0.5,
    explore: Annotated[
        float | None,
        typer.Option(help="Exploration with which the policy is to run; default: that of the log."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of training; what is held out does not depend on it.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in OUT, up to ITERATIONS.")
    ] = False,
) -> None:
    """Learn from the log of a running policy, and judge by held-out episodes before anybody acts.

    Writes a policy into OUT if the lower end of the 90 % interval of what it brings more than the running one
    is above 0, from enough effective episodes; an imitation (bc) in any case. Ends with 1 if nothing is kept.
    """
    from contextlib import nullcontext
    from dataclasses import replace

    from qiance.cli.stages import Stages
    from rllib.plan_log import read_log
    from rllib.tasks import task_of
    from serve.launch import LocalCluster

    for name, value in (("--penalty", penalty), ("--effective", effective)):
        if value is not None and algorithm is not OfflineAlgorithm.MODEL:
            raise typer.BadParameter("belongs to --algorithm model", param_hint=name)
    console = Console()
    stages, task = Stages(console), task_of(task_arguments(environment, data, world))
    with stages.stage(f"reading {log.name}") as stage:
        read = read_log(log, task)
        stage.note(f"{len(read):,} episodes, {int(read.length.sum()):,} days")
    planned = algorithm is OfflineAlgorithm.MODEL  # which needs no Ray
    cluster = nullcontext() if planned else LocalCluster(proxy="plain")
    with stages.stage(f"learning by {algorithm} in {environment}") as stage, cluster:
        from rllib.model_settings import ModelSettings
        from rllib.offline import train_offline
        from rllib.offline_algorithms import OfflineSettings

        usual = ModelSettings()
        settings = OfflineSettings(
            algorithm=str(algorithm),
            seed=seed,
            beta=beta,
            held_out=held_out,
            explore=explore,
            model=ModelSettings(
                penalty=usual.penalty if penalty is None else penalty,
                effective=usual.effective if effective is None else effective,
            ),
        )
        settings = replace(settings, iterations=iterations or settings.iterations)
        trained = train_offline(read, task, out=out, settings=settings, resume=resume, progress=stage.tell)
    if trained.promise is not None:
        console.print(_members(trained.promise))
        console.print(_promised(trained.promise), highlight=False)
    console.print(_table(trained))
    console.print(_sentence(trained), highlight=False)
    if trained.artifact is None:
        raise typer.Exit(1)
    console.print(f"Policy: [bold]{trained.artifact.path}[/]", highlight=False)


def _members(promise: Promise) -> Table:
    heads = ("R² of rewards", "of what follows, median", "least", "promised gain")
    table = Table("member", *(Column(head, justify="right") for head in heads), box=None)
    for number, (r2, gain) in enumerate(zip(promise.r2, promise.members, strict=True), 1):
        shares = (f"{value:.3f}" for value in (r2[0], median(r2[1:]), min(r2[1:])))
        table.add_row(str(number), *shares, f"{gain:+.4g}")
    table.caption = "models of the log, on episodes that they were not fitted to"
    return table


def _promised(promise: Promise) -> str:
    return (
        f"In the model: the running policy returns {promise.running:.4g} (in the log: {promise.logged:.4g}), "
        f"the learned one {promise.gain:+.4g}; with the penalty taken off both, "
        f"{promise.gain_penalised:+.4g}. What the log says of it:"
    )


def _table(trained: OfflineTrained) -> Table:
    table = Table(
        "estimate", *(Column(head, justify="right") for head in ("return", "gain", "90 % interval")), box=None
    )
    for name, found in trained.judged.improvements.items():
        value = found.value + (found.baseline_value or 0.0)
        interval = f"\\[{found.low:+.4g}, {found.high:+.4g}]"
        table.add_row(_WORDS[name], f"{value:.4g}", f"{found.value:+.4g}", interval)
    found = trained.judged.improvements["dr"]
    table.caption = (
        f"held-out episodes: {trained.episodes[1]:,}, effective for this policy: "
        f"{found.diagnostics.effective_sample_size:,.0f}; the running one returned {found.baseline_value:.4g}"
    )
    return table


def _sentence(trained: OfflineTrained) -> str:
    reason = trained.judged.gate.reason
    if trained.judged.gate.passed:
        return f"Kept: {reason}"
    if trained.kept:
        return (
            "Kept as an imitation of the running policy: go on from it with `qiance train planning --start`"
        )
    return f"Not kept, the running policy stays: {reason}"
