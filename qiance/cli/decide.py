"""`qiance decide`: decisions for a file of users."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from qiance.cli.loop.service import app_args
from qiance.cli.stages import Stages
from qiance.cli.up import past_campaign
from qiance.domain import StrategyState
from qiance.ledger import Ledger
from qiance.settings import Settings
from qiance.workspace import Workspace


def decide_file(
    users: Path,
    out: Path,
    campaign: str,
    surface: str,
    n: int,
    settings: Settings,
    workspace: Path,
    workers: int | None,
    replay: bool,
    console: Console,
) -> None:
    """Decides for every user in the file; see `serve.offline.decide_users`."""
    from serve.offline import Campaign, decide_users

    if not workspace.is_dir():
        raise ValueError(f"workspace: {workspace} does not exist; name the folder of a run")
    if n > settings.serve.max_n:
        raise ValueError(f"n: {n} is more than serve.max_n, {settings.serve.max_n}")
    place = Workspace(workspace.resolve())
    args = app_args(place, settings, clock="system")
    if replay:
        ledger = Ledger.from_settings(settings, place.root)
        offset = past_campaign(ledger.strategies(StrategyState.LIVE), datetime.now(UTC))
        ledger.close()
        args["clock_offset_s"] = offset.total_seconds()
    address = os.environ.get("RAY_ADDRESS")
    with Stages(Console(stderr=True)).stage("Decide") as stage:
        counts = decide_users(
            users,
            out,
            args,
            Campaign(campaign, surface, n),
            workers=(os.cpu_count() or 1) if workers is None else workers,
            address=address,
            progress=stage.tell,
        )
    console.print(
        f"{counts['users']:,} users: {counts['decisions']:,} decisions, {counts['contacts']:,} contacts, "
        f"{counts['problems']:,} problems; see {out}",
        highlight=False,
    )
