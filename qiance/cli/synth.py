"""`qiance synth`: a cohort of synthetic users for sharing, unless it tells who it was made from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from qiance.ledger.records import Override

if TYPE_CHECKING:
    from training.synth.leakage import Leakage


class Method(StrEnum):
    """How the dependence of columns is learned."""

    COPULA = "copula"
    VAE = "vae"


def synth(
    data: Annotated[
        Path,
        typer.Option("--data", help="A row per user: CSV, JSON lines or Parquet. `user_id` is left out."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the users and the reports.")],
    count: Annotated[int, typer.Option("-n", min=50, help="Synthetic users.")] = 1_000,
    method: Annotated[Method, typer.Option(help="copula: a mixture of Gaussian copulas.")] = Method.COPULA,
    target: Annotated[
        str | None, typer.Option(help="Column that a model is trained on to compare. Default: the last.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of users that judge and are not learned from.")
    ] = 0.3,
    max_leakage: Annotated[
        float, typer.Option(help="Highest AUC of a membership attack with which users are written.")
    ] = 0.55,
    reason: Annotated[str | None, typer.Option(help="Why the limit is overridden.")] = None,
    override_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write whatever the attacks tell; needs --reason.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With equal data, the same seed gives the same users.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Draw synthetic users with the marginals and dependences of yours, and judge them.

    Writes into OUT users.parquet, and the reports fidelity.json and fidelity.md: distances of columns and
    correlations, a two-sample test, a model trained on synthetic users, and two membership attacks. Ends with
    1, and writes the reports only, where an attack is better than --max-leakage; --override-by NAME --reason
    TEXT writes all the same, and the report keeps both.
    """
    if override_by is None and reason is not None:
        raise typer.BadParameter("--reason goes with --override-by NAME", param_hint="--reason")
    override = None if override_by is None else Override(override_by, reason or "")
    from qiance.cli.stages import Stages

    console, talk = Console(), Console(stderr=True)
    stages = Stages(talk)
    with stages.stage(f"reading {data.name}") as stage:
        from training.synth.release import REPORT, SynthSettings, make_cohort, write_cohort
        from training.synth.table import read_users

        settings = SynthSettings(method.value, held_out, max_leakage, target, seed=seed)
        users = read_users(data)
        stage.note(f"{len(users):,} users, {users.shape[1]} columns")
    with stages.stage("learning, drawing and judging") as stage:
        cohort = make_cohort(users, count, settings, tell=stage.tell)
    written = write_cohort(cohort, out, override)
    if as_json:
        typer.echo((out / REPORT).read_text(encoding="utf-8"), nl=False)
    else:
        console.print(_table(cohort.leakage, max_leakage))
    if not written:
        talk.print(
            f"[red]not written[/]: {escape(cohort.refused)}; to write it all the same: "
            "--override-by NAME --reason TEXT",
            highlight=False,
        )
        raise typer.Exit(1)
    how = (
        f", by order of {escape(str(override_by))}, although {escape(cohort.refused)}"
        if cohort.refused
        else ""
    )
    talk.print(f"{count:,} users and the reports: [bold]{out}[/]{how}", highlight=False)


def _table(leaked: Leakage, allowed: float) -> Table:
    table = Table(
        "attack", Column("AUC", justify="right"), Column("95 % interval", justify="right"), box=None
    )
    for name, own in leaked.attacks.items():
        table.add_row(name, f"{own.value:.3f}", f"[{own.low:.3f}, {own.high:.3f}]".replace("[", "\\["))
    table.caption = f"members told from others; allowed {allowed:g}, a coin has 0.5"
    return table
