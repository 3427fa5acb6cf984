"""`qiance policies`: what a policy would have earned, how it does in shadow, and what makes it live."""

from __future__ import annotations

import getpass
import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from qiance.cli.options import ConfigOption
from qiance.cli.place import Place, open_place
from qiance.cli.policy_words import evaluation_table, plain_evaluation, shadow_table
from qiance.cli.stages import Stages
from qiance.ledger import NO_VERSION, Override
from qiance.settings import DEFAULT_WORKSPACE

if TYPE_CHECKING:
    from qiance.launch import Evaluation, PolicyDesk

app = typer.Typer(
    help="List policies, make a challenger, judge it by the log, watch it in shadow, make it live.",
    no_args_is_help=True,
)
console = Console()

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder of the run whose policies are meant.")
]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="As `qiance policies list` shows.")]
ByOption = Annotated[
    str, typer.Option(help="Who does it; goes to the audit log.", default_factory=getpass.getuser)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _place(config: Path | None, folder: Path) -> AbstractContextManager[Place]:
    return open_place(config, folder, "artifacts", "holds no artifacts; name the folder of a run")


def _desk(at: Place) -> PolicyDesk:
    from qiance.launch import GateSetup, PolicyDesk

    simulated = at.ledger.clock() if at.settings.serve.clock == "request" else None
    setup = GateSetup.of(at.settings)
    if simulated is not None:
        return PolicyDesk(at.workspace, at.ledger, setup, lambda: simulated)
    return PolicyDesk(at.workspace, at.ledger, setup)


@app.command("list")
def list_(
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    as_json: JsonOption = False,
) -> None:
    """Show the policies of the workspace, the newest first, and which of them is live."""
    from qiance.launch import plans

    with _place(config, workspace) as at:
        live, found = at.ledger.versions().policy, list(plans(at.workspace))
    if as_json:
        rows = [
            {"version": m.version, "live": m.version == live, "created_at": m.created_at, **asdict(plan)}
            for m, plan in found
        ]
        typer.echo(json.dumps(rows, default=str))
        return
    names = (Column(name, no_wrap=True) for name in ("policy", "", "campaign", "price", "effect model"))
    table = Table(*names, "made")
    for manifest, plan in found:
        table.add_row(
            manifest.version,
            "live" if manifest.version == live else "",
            plan.budget_id,
            f"{plan.shadow_price:.4g}",
            plan.effect_model,
            manifest.created_at[:16],
        )
    console.print(table)


@app.command()
def create(
    base: Annotated[str | None, typer.Option(help="Policy to start from; default: the live one.")] = None,
    shadow_price: Annotated[
        float | None, typer.Option(help="λ₀: margin that a minor unit of budget has to bring.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Artifact version of the effect model; default: the one that serves.")
    ] = None,
    starts: Annotated[
        datetime | None, typer.Option(help="First instant of pacing's day 0, UTC.", formats=["%Y-%m-%d"])
    ] = None,
    horizon_days: Annotated[int | None, typer.Option(help="Days over which pacing spends.")] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Make a challenger: a policy like another but for what is given. It does nothing until it is live."""
    from datetime import UTC

    from qiance.launch import derive_plan, read_plan

    with _place(config, workspace) as at:
        serving = at.ledger.versions()
        chosen = base or serving.policy
        if chosen == NO_VERSION:
            raise ValueError("--base: no policy is live; name one, as `qiance policies list` shows")
        version = derive_plan(
            at.workspace,
            read_plan(at.workspace, chosen),
            shadow_price=shadow_price,
            effect_model=model or (serving.model if chosen == serving.policy else None),
            starts=None if starts is None else starts.replace(tzinfo=UTC),
            horizon_days=horizon_days,
        )
    typer.echo(version)
    typer.echo(f"made from {chosen}; watch it with `qiance policies shadow {version}`", err=True)


@app.command()
def evaluate(
    version: VersionArgument,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a policy would have earned against the live one; changes nothing.

    By the decisions and outcomes in the ledger, with the propensities that they were drawn with. Ends with 1
    where the gate would be closed.
    """
    with _place(config, workspace) as at, Stages(Console(stderr=True)).stage("judging by the log") as stage:
        found = _desk(at).evaluate(version, stage.tell)
    _show(found, as_json)
    if not found.verdict.passed:
        raise typer.Exit(1)


@app.command()
def shadow(
    version: VersionArgument,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    as_json: JsonOption = False,
) -> None:
    """Show how the estimate of a policy developed, day by day; the policy decides, and nothing acts.

    Its choices are worked out for the logged decisions, from their candidates and features. The interval by
    day holds on all days at once, so one may look every day and stop at any.
    """
    with _place(config, workspace) as at, Stages(Console(stderr=True)).stage("judging by the log") as stage:
        found, days = _desk(at).shadow(version, stage.tell)
    if as_json:
        document = {**plain_evaluation(found), "days": [asdict(day) for day in days]}
        typer.echo(json.dumps(document, default=str, ensure_ascii=False))
        return
    console.print(shadow_table(days))
    _show(found, False)


@app.command()
def promote(
    version: VersionArgument,
    by: ByOption,
    reason: Annotated[str | None, typer.Option(help="Why the gate is overridden.")] = None,
    override_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go live whatever the gate says; needs --reason.")
    ] = None,
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Make a policy live, if it is shown to be better in every campaign that is live.

    A running service of the workspace changes to it, and to the effect model it was judged with, within a
    second. Ends with 1 where the gate is closed; --override-by NAME --reason TEXT goes live all the same.
    The audit log has the verdict, and who overrode it why.
    """
    if override_by is None and reason is not None:
        raise typer.BadParameter("--reason goes with --override-by NAME", param_hint="--reason")
    override = None if override_by is None else Override(override_by, reason or "")
    with _place(config, workspace) as at, Stages(Console(stderr=True)).stage("judging by the log") as stage:
        before = at.ledger.versions()
        done = _desk(at).promote(version, by, override, stage.tell)
        if done.versions is not None and done.versions.model != before.model:
            _follow(at, done.versions.model, version, override.by if override else by)
    if done.evaluation is not None:
        _show(done.evaluation, False)
    if done.versions is None:
        console.print(
            "[red]not live[/]; to make it live all the same: --override-by NAME --reason TEXT",
            highlight=False,
        )
        raise typer.Exit(1)
    how = f", by {escape(override_by or '')}, whatever the gate says" if done.overridden else ""
    console.print(f"{version} is live{how}", highlight=False)


@app.command()
def stop(
    by: ByOption,
    reason: Annotated[str, typer.Option(help="Why; goes to the audit log.")],
    config: ConfigOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
) -> None:
    """Take the live policy off: `control` for everybody until another goes live. Needs no gate."""
    with _place(config, workspace) as at:
        before = at.ledger.versions().policy
        at.ledger.stop_policy(by, reason)
    console.print(f"{before} is not live any more: everybody gets control", highlight=False)


def _follow(at: Place, model: str, policy: str, by: str) -> None:
    """The registry's champion is the model that serves, where it knows that model."""
    from qiance.cli.contest import SERVED, crown

    if not (at.workspace.root / "mlflow.db").exists():
        return
    from training.registry import find

    try:
        found = find(at.workspace.tracking_url, SERVED, model)
    except ValueError as unknown:
        console.print(f"the registry keeps its champion: {escape(str(unknown))}", highlight=False)
        return
    crown(at.workspace, at.ledger, found, by=by, reason=f"the policy {policy} decides by it")


def _show(found: Evaluation, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(plain_evaluation(found), default=str, ensure_ascii=False))
        return
    for part in evaluation_table(found):
        console.print(part, highlight=False)
