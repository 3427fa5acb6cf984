"""`qiance up`: serve the latest run until stopped."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from rich.console import Console

from qiance.cli.loop.service import app_args
from qiance.ledger import Ledger
from qiance.settings import Settings, require_keys_for
from qiance.workspace import Workspace


def trained(workspace: Workspace) -> bool:
    """Whether the run in `workspace` has a snapshot and a model that can be served."""
    return (workspace.snapshot / "catalogue.json").is_file() and any(
        workspace.artifacts.glob("effect-model-*/manifest.json")
    )


def serve_latest(settings: Settings, runs: Path, console: Console) -> None:
    """Serve `runs`/latest at the configured address; train first if there is nothing to serve."""
    latest = runs / "latest"
    if not trained(Workspace(latest)):
        from qiance.cli.loop.conductor import run_loop

        console.print("Nothing is trained yet: running the loop first.")
        run_loop(settings, runs, console)
    workspace = Workspace(latest.resolve())
    ledger = Ledger.from_settings(settings, workspace.root)
    require_keys_for(settings.serve.host, ledger.has_keys())
    versions = ledger.versions()
    ledger.close()
    _serve(workspace, settings, console, versions.model, versions.policy)


def _serve(workspace: Workspace, settings: Settings, console: Console, model: str, policy: str) -> None:
    from serve.launch import EMBEDDED, LocalCluster, free_port, read_config

    port = settings.serve.port or free_port(settings.serve.host)
    args = app_args(workspace, settings, clock=settings.serve.clock)
    config = read_config(EMBEDDED, settings.serve.host, port, args)
    stop = threading.Event()
    with LocalCluster(loopback=settings.serve.host in ("127.0.0.1", "localhost", "::1")) as cluster:
        with console.status("Starting the service") as status:
            url = cluster.serve(config, lambda what: status.update(f"Starting the service: {what}"))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        console.print(
            f"Serving run {workspace.root.name} at [bold]{url}[/] (try {url}/docs)", highlight=False
        )
        console.print(f"Model {model or 'none'}, policy {policy or 'none: control only'}. Ctrl-C stops.")
        stop.wait()
        console.print("Stopping.")
