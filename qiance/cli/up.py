"""`qiance up`: serve the latest run until stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from qiance.cli.loop.service import app_args, check_briefs
from qiance.domain import Strategy, StrategyState
from qiance.ledger import Ledger
from qiance.settings import Settings, require_keys_for
from qiance.workspace import Workspace


def trained(workspace: Workspace) -> bool:
    """Whether the run in `workspace` has a snapshot and a model that can be served."""
    return (workspace.snapshot / "catalogue.json").is_file() and any(
        workspace.artifacts.glob("effect-model-*/manifest.json")
    )


def last_trained(runs: Path) -> Workspace | None:
    """`runs/latest` if it can be served, else the newest run that can (offline runs cannot), else None."""
    newest = sorted((path for path in runs.glob("2*") if path.is_dir()), reverse=True)
    for path in (runs / "latest", *newest):
        if trained(Workspace(path)):
            return Workspace(path.resolve())
    return None


def serve_latest(settings: Settings, runs: Path, console: Console, replay: bool = False) -> None:
    """Serve the last trained run at the configured address; train first if there is nothing to serve.

    replay: start the server's clock at the first day of the run's campaign, where that is over.
    """
    check_briefs(settings)
    workspace = last_trained(runs)
    if workspace is None:
        from qiance.cli.loop.conductor import run_loop

        console.print("Nothing is trained yet: running the loop first.")
        workspace = Workspace(run_loop(settings, runs, console))
    ledger = Ledger.from_settings(settings, workspace.root)
    require_keys_for(settings.serve.host, ledger.has_keys())
    versions = ledger.versions()
    offset = past_campaign(ledger.strategies(StrategyState.LIVE), datetime.now(UTC))
    ledger.close()
    if offset and not replay:
        console.print(
            "The campaign of this run lies in the past, so decisions will be control until new strategies "
            "are approved. Send a brief, or let the campaign run again with --replay.",
            highlight=False,
        )
        offset = timedelta(0)
    elif offset:
        first = datetime.now(UTC) + offset
        console.print(
            f"The campaign of this run lies in the past: the clock starts at {first:%Y-%m-%d %H:%M}.",
            highlight=False,
        )
    args = app_args(workspace, settings, clock=settings.serve.clock)
    args["clock_offset_s"] = offset.total_seconds()
    _serve(workspace, settings, console, args, f"Model {versions.model}, policy {versions.policy}.")


def past_campaign(live: Sequence[Strategy], now: datetime) -> timedelta:
    """How far to move the clock so that a campaign that is over begins now; nothing if one still runs."""
    if not live or any(strategy.ends > now for strategy in live):
        return timedelta(0)
    return min(strategy.starts for strategy in live) - now


def _serve(
    workspace: Workspace, settings: Settings, console: Console, args: Mapping[str, Any], serving: str
) -> None:
    from serve.launch import EMBEDDED, LocalCluster, free_port, read_config

    port = settings.serve.port or free_port(settings.serve.host)
    config = read_config(EMBEDDED, settings.serve.host, port, args)
    stop = threading.Event()
    with LocalCluster(proxy=settings.serve.proxy) as cluster:
        with console.status("Starting the service") as status:
            url = cluster.serve(config, lambda what: status.update(f"Starting the service: {what}"))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        console.print(
            f"Serving run {workspace.root.name} at [bold]{url}[/] (try {url}/docs)", highlight=False
        )
        console.print(f"{serving} Ctrl-C stops.", highlight=False)
        stop.wait()
        console.print("Stopping.")
