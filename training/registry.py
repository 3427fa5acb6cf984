"""Model registry on MLflow: which artifact is champion, which is challenger, and how each was trained.

MLflow holds runs, metrics and aliases; the artifact stays where it is. The registry keeps the hash of
its manifest, and no alias is set or followed without checking it. Who was made champion, by whom and why, is
kept as tags of the registered model, so that the one before can be put back.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from qiance.artifacts import Artifact, ArtifactError, load_manifest, manifest_hash

CHAMPION, CHALLENGER = "champion", "challenger"
_HASH_TAG, _VERSION_TAG = "qiance.manifest_sha256", "qiance.version"
KIND_TAG, SPLIT_TAG, TEST_TAG = "qiance.kind", "qiance.split", "qiance.promotion_test"
_CHANGE_TAG = "qiance.champion."
_LONGEST = 1_000  # characters of a reason; MLflow takes 5,000 in a tag
_SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered model whose files were found unchanged.

    version: the registry's number. artifact_version: the artifact's own, content-based. tags: as registered.
    """

    name: str
    version: str
    path: Path
    manifest_hash: str
    artifact_version: str
    kind: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Version:
    """A version as the registry has it; its files were not looked at."""

    name: str
    version: str
    artifact_version: str
    kind: str
    aliases: tuple[str, ...]
    at: datetime
    path: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the champion. override: it was made against the test. at: ISO 8601, UTC."""

    action: Literal["promote", "rollback"]
    version: str
    artifact_version: str
    by: str
    reason: str
    at: str
    override: bool = False


def register(
    artifact: Artifact,
    tracking_uri: str,
    name: str,
    *,
    metrics: Mapping[str, float],
    params: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, float]] = (),
    alias: str | None = CHALLENGER,
    split: str = "",
) -> str:
    """Log the run and register the artifact under `name`; returns the registry's version.

    tracking_uri: e.g. `sqlite:////srv/qiance/mlflow.db`; MLflow's own files go beside the database.
    history: one mapping per epoch, with `epoch`. Values that are not finite are left out: MLflow's
    database does not hold them. alias: set on the new version, None sets none; a champion is made by
    `make_champion`. split: how the rows that it was not trained on are told, see `training.promotion`.
    """
    if alias == CHAMPION:
        raise ValueError("alias: a champion is made by make_champion, which notes who and why")
    client = tracking_client(tracking_uri)
    experiment = experiment_of(client, tracking_uri, name)
    run_id = client.create_run(experiment, run_name=artifact.version).info.run_id
    log_run(client, run_id, metrics, params or {}, history)
    client.set_terminated(run_id)
    if not _has_model(client, name):
        client.create_registered_model(name)
    tags = {_HASH_TAG: artifact.hash, _VERSION_TAG: artifact.version, KIND_TAG: artifact.manifest.kind}
    tags |= {SPLIT_TAG: split} if split else {}
    source = artifact.path.resolve().as_uri()
    version = str(client.create_model_version(name, source, run_id, tags=tags).version)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version)
    return version


def make_champion(
    tracking_uri: str,
    found: Registered,
    *,
    by: str,
    reason: str,
    action: Literal["promote", "rollback"] = "promote",
    override: bool = False,
) -> None:
    """Give the alias `champion` to a verified version, and note who did it and why."""
    if not by.strip() or not reason.strip():
        raise ValueError("by and reason: must not be empty; they are kept with the change")
    client = tracking_client(tracking_uri)
    now = datetime.now(UTC)
    change = Change(
        action, found.version, found.artifact_version, by, reason[:_LONGEST], now.isoformat(), override
    )
    # The alias first: what is not noted is still known not to be the last one that is.
    client.set_registered_model_alias(found.name, CHAMPION, found.version)
    key = f"{_CHANGE_TAG}{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(2)}"
    client.set_registered_model_tag(found.name, key, json.dumps(asdict(change), ensure_ascii=False))


def changes(tracking_uri: str, name: str) -> list[Change]:
    """Every change of the champion, the oldest first. Raises ValueError for a name that is not registered."""
    tags = _model(tracking_client(tracking_uri), name).tags
    return [Change(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(_CHANGE_TAG)]


def previous_champion(tracking_uri: str, name: str) -> Registered:
    """What a rollback puts back, verified: the champion before the present one.

    Rolling back twice goes back two champions. Raises ValueError where there was none before, ArtifactError
    where its files are gone or changed.
    """
    line = list[str]()
    for change in changes(tracking_uri, name):
        if change.action == "rollback" and line:
            line.pop()
        if not line or line[-1] != change.version:
            line.append(change.version)
    now = current(tracking_uri, name)
    if now is None:
        raise ValueError(f"model {name!r}: has no champion, so there is none to go back from")
    if line and line[-1] == now.version:
        line.pop()
    if not line:
        raise ValueError(f"model {name!r}: version {now.version} is its first champion; there is none before")
    return find(tracking_uri, name, line[-1])


def find(tracking_uri: str, name: str, which: str) -> Registered:
    """A version by its number, by the artifact's own version, or by alias; its files are verified.

    Raises ValueError where it is not registered, ArtifactError where its files are gone or changed.
    """
    for version in versions(tracking_uri, name):
        if which in (version.version, version.artifact_version, *version.aliases):
            return _verified(tracking_client(tracking_uri).get_model_version(name, version.version))
    raise ValueError(
        f"model {name!r}: version {which!r} is not registered; `qiance models list` shows what is"
    )


def versions(tracking_uri: str, name: str | None = None) -> list[Version]:
    """What is registered under `name`, or under every name; the newest first."""
    client = tracking_client(tracking_uri)
    names = sorted(m.name for m in client.search_registered_models()) if name is None else [name]
    models = [_model(client, one) for one in names]
    return [_version(client, found, model.aliases) for model in models for found in _all(client, model.name)]


def tag_version(tracking_uri: str, found: Registered, key: str, value: str) -> None:
    """Keep a note of at most 5,000 characters with a version."""
    tracking_client(tracking_uri).set_model_version_tag(found.name, found.version, key, value[:5_000])


def _all(client: Any, name: str) -> list[Any]:
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: -int(version.version))


def _version(client: Any, found: Any, aliases: Mapping[str, str]) -> Version:
    return Version(
        name=found.name,
        version=str(found.version),
        artifact_version=found.tags.get(_VERSION_TAG, ""),
        kind=found.tags.get(KIND_TAG, ""),
        aliases=tuple(sorted(alias for alias, of in aliases.items() if str(of) == str(found.version))),
        at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        path=str(_local(found.source)),
        metrics=dict(client.get_run(found.run_id).data.metrics) if found.run_id else {},
        tags=dict(found.tags),
    )


def _model(client: Any, name: str) -> Any:
    if not _has_model(client, name):
        raise ValueError(f"model {name!r}: nothing is registered under this name")
    return client.get_registered_model(name)


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
    points = [
        Metric(_plain(key), float(value), now, step) for key, value, step in rows if math.isfinite(value)
    ]
    # MLflow takes at most 1,000 metrics and 100 params a batch.
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])
    entries = [Param(key, str(value)[:6000]) for key, value in params.items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run_id, params=entries[start : start + 100])


def _plain(name: str) -> str:
    """A metric's name with what MLflow does not admit in it replaced: segments are named by the shop."""
    return re.sub(r"[^\w\-. /]", "_", name)


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
    return Registered(
        found.name, str(found.version), path, actual, manifest.version, manifest.kind, dict(found.tags)
    )


def _local(source: str) -> Path:
    from urllib.parse import unquote, urlparse

    parts = urlparse(source)
    if parts.scheme not in ("", "file"):
        raise ArtifactError(f"source {source!r}: only artifacts on a mounted path can be loaded")
    return Path(unquote(parts.path))
