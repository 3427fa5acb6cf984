"""The whole loop on the default data: one function is the whole path."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from qiance.artifacts.word_vectors import WordVectors
from qiance.cli.loop import learn as learning
from qiance.cli.loop.learn import Learned
from qiance.cli.loop.live import DayBreak, LiveLog, run_live, wait_for_policy
from qiance.cli.loop.measure import Measured, live_training_rows, measure
from qiance.cli.loop.optimise import optimise
from qiance.cli.loop.people import learnable
from qiance.cli.loop.prepare import Prepared, ingest, new_workspace, prepare, publish_latest
from qiance.cli.loop.refresh import refresh_features
from qiance.cli.loop.reporting import Finished, loop_report
from qiance.cli.loop.service import app_args, approve, brief_body, check_briefs, send_brief
from qiance.cli.loop.world import World, explore, seed_log
from qiance.cli.stages import Stage, Stages
from qiance.ledger import Ledger
from qiance.market.market import ActionTable
from qiance.privacy import workspace_lock
from qiance.report import summary_table, write_report
from qiance.settings import Settings
from qiance.workspace import Workspace

APPROVER = "qiance run"


@dataclass(frozen=True)
class Started:
    """What the loop has before anything is served: data, features, a log and its model."""

    prepared: Prepared
    world: World
    table: pa.Table
    first: Learned
    redemption: Sequence[Any]


def prepare_world(
    workspace: Workspace, settings: Settings, stages: Stages, ledger: Ledger
) -> tuple[Prepared, World]:
    """Steps 1 to 3: logs, features, and the log of past campaigns."""
    # 1. The shop's logs, checked row by row.
    with stages.stage("Read and check the shop's logs") as stage:
        report = ingest(workspace, settings, stage)
    # 2. Features at regular instants, offline and online.
    # Locked: an erasure rewrites the same files.
    with stages.stage("Build features") as stage, workspace_lock(workspace.root):
        prepared = prepare(workspace, report, settings, ledger, stage)
    world = World.open(prepared.snapshot, settings.seed, WordVectors(ledger))
    # 3. The shop's past campaigns, simulated: a log with known propensities.
    with stages.stage("Collect the log of past campaigns (simulated market)") as stage:
        seed_log(world, settings.market, settings.seed, stage)
    return prepared, world


def train_models(
    workspace: Workspace, settings: Settings, stages: Stages, prepared: Prepared, world: World, ledger: Ledger
) -> Started:
    """Step 4, inside a running Ray: what does an action do to a user? The champion goes to the ledger."""
    with stages.stage("Train the effect model on Ray Train") as stage:
        table = learning.log_table(workspace, world, *world.logs[0][1:])
        table = learnable(ledger, table, settings.privacy.unrecorded)
        first = learning.learn(workspace, table, settings, stage)
        first = learning.promote(workspace, first, ledger, settings, APPROVER, stage)
    with stages.stage("Train on the shop's real coupon redemptions") as stage:
        redemption = learning.learn_redemption(workspace, prepared, settings, stage)
    return Started(prepared, world, table, first, redemption)


def run_training(settings: Settings, root: Path, address: str | None, console: Console) -> Path:
    """Steps 1 to 4 into the folder `root`, on the Ray cluster at `address` or on one of our own."""
    from serve.launch import LocalCluster

    root.mkdir(parents=True, exist_ok=True)
    workspace, stages = Workspace(root.resolve()), Stages(console)
    ledger = Ledger.from_settings(settings, workspace.root)
    prepared, world = prepare_world(workspace, settings, stages, ledger)
    with LocalCluster(address=address):
        train_models(workspace, settings, stages, prepared, world, ledger)
    ledger.close()
    return workspace.root


def run_loop(settings: Settings, runs: Path, console: Console) -> Path:
    """Run every step of the loop; the folder of the run, with report.html and report.json in it."""
    from serve.launch import EMBEDDED, LocalCluster, free_port, read_config

    check_briefs(settings)
    workspace, stages = new_workspace(runs), Stages(console)
    ledger = Ledger.from_settings(settings, workspace.root)
    prepared, world = prepare_world(workspace, settings, stages, ledger)
    with LocalCluster(proxy=settings.serve.proxy) as cluster:
        started = train_models(workspace, settings, stages, prepared, world, ledger)
        first = started.first
        # 5. The service, then strategies from a brief.
        with stages.stage("Start the service") as stage:
            port = settings.serve.port if settings.serve.port != DEFAULT_PORT else free_port()
            args = app_args(workspace, settings, clock="request")
            config = read_config(EMBEDDED, settings.serve.host, port, args)
            url = cluster.serve(config, lambda what: stage.tell(0.5, what))
            stage.note(f"{url}/docs")
        with stages.stage("Propose strategies from a brief") as stage:
            starts = world.now + timedelta(days=settings.market.explore_days)
            ends = starts + timedelta(days=settings.market.live_days)
            brief_id, said = send_brief(url, brief_body(settings, starts, ends), stage)
            strategies = approve(ledger, brief_id, APPROVER, settings, world.snapshot.catalogue, stage)
            stage.note(said)
        # 6. Randomise over them, then choose the policy and estimate it before it acts.
        with stages.stage("Explore the approved strategies (simulated market)") as stage:
            explored = explore(world, strategies, settings.market, stage)
        with stages.stage("Optimise under the budget, estimate off-policy, gate") as stage:
            now = ledger.versions().policy
            optimised = optimise(workspace, world, explored, first.model, brief_id, settings, stage, now)
        if optimised.gate.passed:
            price = optimised.plan.shadow_price
            ledger.launch_policy(
                optimised.policy_version, shadow_price=price, by=APPROVER, verdict=optimised.gate
            )
        # 7. Live: decisions and outcomes over HTTP, then what they did.
        with stages.stage("Serve live users over HTTP") as stage:
            actions, _, admits = explored
            if optimised.gate.passed:
                asyncio.run(wait_for_policy(url, optimised.policy_version))
            day_break = DayBreak(ledger, optimised.plan.horizon_days if optimised.gate.passed else 0)
            live = asyncio.run(run_live(url, world, actions, admits, settings, stage, day_break))
            rate = len(live.user) / live.seconds
            stage.note(f"{len(live.user):,} decisions, {live.events:,} outcomes, {rate:.0f} decisions/s")
        with stages.stage("Measure against holdout, prediction and oracle") as stage:
            measured = measure(ledger, live, actions, optimised, settings)
        cluster.stop_serving()
        # 8. The outcomes go back into training.
        with stages.stage("Train the second round on the outcomes") as stage:
            table = second_round_table(
                workspace, world, started.table, measured, live, ledger, actions, stage
            )
            table = learnable(ledger, table, settings.privacy.unrecorded)
            second = learning.learn(
                workspace, table, settings, stage, parents=(first.version,), baselines=False
            )
            second = learning.promote(workspace, second, ledger, settings, APPROVER, stage)
    with stages.stage("Refresh features from the ledger") as stage:
        users, unrecorded = world.snapshot.users.user_ids, settings.privacy.unrecorded
        rows = refresh_features(workspace, ledger, users, world.now, unrecorded)
        stage.note(", ".join(f"{count:,} rows of {name}" for name, count in rows.items()))
    finished = Finished(
        prepared,
        world,
        first,
        started.redemption,
        second,
        strategies,
        optimised,
        live,
        measured,
        said,
        actions,
    )
    document = loop_report(finished, settings, stages, ledger)
    ledger.close()
    write_report(document, workspace.root)
    publish_latest(runs, workspace)
    console.print(summary_table(document))
    return workspace.root


DEFAULT_PORT = 8000  # `qiance up` serves there; a run takes a free port so that both can be up


def second_round_table(
    workspace: Workspace,
    world: World,
    seed: pa.Table,
    measured: Measured,
    live: LiveLog,
    ledger: Ledger,
    actions: ActionTable,
    stage: Stage,
) -> pa.Table:
    """All rows of the first round, the exploring log, and the decisions served over HTTP."""
    from training.dataset import training_table

    explored = learning.log_table(workspace, world, *world.logs[1][1:])
    rows = live_training_rows(measured, live, ledger, world.snapshot.users.user_ids)
    catalogue = world.snapshot.catalogue
    served = training_table(workspace.features, catalogue, actions.actions, **rows, vectors=world.words)
    stage.note(f"{served.num_rows:,} served decisions join {seed.num_rows + explored.num_rows:,} older rows")
    return pa.concat_tables([seed, explored, served]).combine_chunks()
