"""Model registry on MLflow: which artifact is champion, which is challenger, and how each was trained.

MLflow holds runs, metrics and aliases; the artifact stays where it is. The registry keeps the hash of
its manifest, and no alias is set or followed without checking it.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiance.artifacts import Artifact, ArtifactError, load_manifest, manifest_hash

CHAMPION, CHALLENGER = "champion", "challenger"
_HASH_TAG, _VERSION_TAG = "qiance.manifest_sha256", "qiance.version"
_SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered model whose files were found unchanged.

    version: the registry's number. artifact_version: the artifact's own, content-based.
    """

    name: str
    version: str
    path: Path
    manifest_hash: str
    artifact_version: str


def register(
    artifact: Artifact,
    tracking_uri: str,
    name: str,
    *,
    metrics: Mapping[str, float],
    params: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, float]] = (),
    alias: str | None = CHALLENGER,
) -> str:
    """Log the run and register the artifact under `name`; returns the registry's version.

    tracking_uri: e.g. `sqlite:////srv/qiance/mlflow.db`; MLflow's own files go beside the database.
    history: one mapping per epoch, with `epoch`. Values that are not finite are left out: MLflow's
    database does not hold them. alias: set on the new version, None sets none.
    """
    client = tracking_client(tracking_uri)
    run_id = client.create_run(
        experiment_of(client, tracking_uri, name), run_name=artifact.version
    ).info.run_id
    log_run(client, run_id, metrics, params or {}, history)
    client.set_terminated(run_id)
    if not _has_model(client, name):
        client.create_registered_model(name)
    tags = {_HASH_TAG: artifact.hash, _VERSION_TAG: artifact.version}
    source = artifact.path.resolve().as_uri()
    version = str(client.create_model_version(name, source, run_id, tags=tags).version)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version)
    return version


def promote(tracking_uri: str, name: str, version: str, alias: str = CHAMPION) -> Registered:
    """Give `alias` to `version`, once its files are found unchanged.

    Raises ValueError where the version is not registered, ArtifactError where its files changed.
    """
    from mlflow.exceptions import MlflowException

    client = tracking_client(tracking_uri)
    try:
        found = client.get_model_version(name, version)
    except MlflowException as error:
        raise ValueError(f"model {name!r}: version {version!r} is not registered ({error})") from None
    registered = _verified(found)
    client.set_registered_model_alias(name, alias, version)
    return registered


def current(tracking_uri: str, name: str, alias: str = CHAMPION) -> Registered | None:
    """What `alias` names now, verified; None where nothing is registered or has that alias.

    Raises ArtifactError where the files are gone or differ from what was registered.
    """
    from mlflow.exceptions import MlflowException

    client = tracking_client(tracking_uri)
    try:
        return _verified(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def tracking_client(tracking_uri: str) -> Any:
    """MLflow's client, without telemetry; the folder of a SQLite database is made."""
    # MLflow reads this when it is imported; it would report its use over the network.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.tracking import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if tracking_uri.startswith(_SQLITE):
        Path(tracking_uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def experiment_of(client: Any, tracking_uri: str, name: str) -> str:
    """Id of the experiment `name`; made where there is none, with its files beside a SQLite database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if tracking_uri.startswith(_SQLITE):
        location = (Path(tracking_uri.removeprefix(_SQLITE)).resolve().parent / "mlflow").as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def log_run(
    client: Any,
    run_id: str,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Metrics, params and, by `epoch`, `history/…`; values that are not finite are left out."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    rows = [(key, value, 0) for key, value in metrics.items()]
    for place, epoch in enumerate(history):
        step = int(epoch.get("epoch", place))
        rows += [(f"history/{key}", value, step) for key, value in epoch.items() if key != "epoch"]
    points = [Metric(key, float(value), now, step) for key, value, step in rows if math.isfinite(value)]
    # MLflow takes at most 1,000 metrics and 100 params a batch.
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])
    entries = [Param(key, str(value)[:6000]) for key, value in params.items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run_id, params=entries[start : start + 100])


def _has_model(client: Any, name: str) -> bool:
    quoted = name.replace("'", "")
    if quoted != name:
        raise ValueError(f"model name {name!r}: must not hold quotes")
    return bool(client.search_registered_models(filter_string=f"name = '{name}'"))


def _verified(found: Any) -> Registered:
    path = _local(found.source)
    expected = found.tags.get(_HASH_TAG, "")
    manifest = load_manifest(path)
    actual = manifest_hash(path)
    if actual != expected:
        raise ArtifactError(
            f"{path}: manifest has SHA-256 {actual[:12]}… where version {found.version} of "
            f"{found.name!r} was registered with {expected[:12]}…; restore the artifact or promote another"
        )
    return Registered(found.name, str(found.version), path, actual, manifest.version)


def _local(source: str) -> Path:
    from urllib.parse import unquote, urlparse

    parts = urlparse(source)
    if parts.scheme not in ("", "file"):
        raise ArtifactError(f"source {source!r}: only artifacts on a mounted path can be loaded")
    return Path(unquote(parts.path))
