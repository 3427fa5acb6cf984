"""The training of a response model as a run of MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.registry import experiment_of, log_run, tracking_client
from training.response.fit import TrainedResponse

EXPERIMENT = "qiance-response-model"


def log_training(trained: TrainedResponse, tracking_uri: str) -> str:
    """Parameters, metrics, what each fold gave, and the networks' learning curves; the id of the run.

    Metrics `fold/…` have the fold as their step, and `network_1/…` the epoch.
    """
    client = tracking_client(tracking_uri)
    experiment = experiment_of(client, tracking_uri, EXPERIMENT)
    run = str(client.create_run(experiment, run_name=trained.artifact.version).info.run_id)
    metrics = {**trained.judged.metrics, "seconds": float(trained.metrics["seconds"])}
    log_run(client, run, metrics, _params(trained.metrics), ())
    for number, fold in enumerate(trained.judged.folds, 1):
        log_run(client, run, {}, {}, [{"epoch": number, **_under("fold", fold)}])
    for number, curve in enumerate(trained.curves, 1):
        rows = [{"epoch": row["epoch"], **_under(f"network_{number}", row)} for row in curve]
        log_run(client, run, {}, {}, rows)
    client.set_terminated(run)
    return run


def _under(prefix: str, row: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in row.items() if name != "epoch"}


def _params(metrics: Mapping[str, Any]) -> dict[str, Any]:
    settings = metrics["settings"]
    flat = {
        f"{section}.{name}": v for section in ("network", "trees") for name, v in settings[section].items()
    }
    kept = {name: metrics[name] for name in ("label", "rows", "units", "model", "calibrated_by")}
    return {**kept, "members": settings["members"], "seed": settings["seed"], **flat}
