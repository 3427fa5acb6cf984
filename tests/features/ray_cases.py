"""Random histories of the repository's views, staged for files and for Ray; the answer by a plain loop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from training.featurise import REPOSITORY, stage_repository

START = datetime(2017, 1, 1, tzinfo=UTC)
KEYS = {"user_profile": ("user_id",), "user_category": ("user_id", "category"), "user_session": ("user_id",)}
VIEWS = tuple(KEYS)
# Milliseconds: the same moment, within a second, within the hour that a session lives, past 120 days.
MOMENTS = (0, 1, 700, 1_000, 1_800_000, 3_600_000, 3_600_001, 60 * 86_400_000, 121 * 86_400_000)
# Feast's own: it gives back what was written, however old.
ONLINE = {"type": "sqlite", "path": "online.db"}
STOCK = {"offline_store": {"type": "ray", "storage_path": "staging"}, "batch_engine": {"type": "ray.engine"}}


def at(milliseconds: int) -> datetime:
    return START + timedelta(milliseconds=int(milliseconds))


def random_history(view: Any, keys: Sequence[str], rng: np.random.Generator, size: int = 60) -> pa.Table:
    """Versions of three keys (of each kind): late ones, same moments; no two were created together."""
    moments = rng.choice(MOMENTS, size)
    created = moments + rng.permutation(size) * 10_000
    data = {key: pa.array([f"{key}{n}" for n in rng.integers(0, 3, size)]) for key in keys}
    data |= {field.name: random_values(str(field.dtype), rng, size) for field in view.features}
    times = pa.timestamp("us", "UTC")
    data["event_timestamp"] = pa.array([at(moment) for moment in moments], times)
    data["created"] = pa.array([at(moment) for moment in created], times)
    return pa.table(data)


def random_values(dtype: str, rng: np.random.Generator, size: int) -> pa.Array:
    if dtype == "Float64":
        return pa.array(
            [None if rng.random() < 0.1 else float(rng.normal()) for _ in range(size)], pa.float64()
        )
    lists = [rng.integers(0, 99, rng.integers(0, 4)).tolist() for _ in range(size)]
    if "String" in dtype:
        return pa.array([[str(part) for part in values] for values in lists], pa.list_(pa.string()))
    return pa.array(lists, pa.list_(pa.int64()))


def stage(folder: Path, seed: int, tables: Mapping[str, pa.Table] | None = None) -> dict[str, pa.Table]:
    """The repository with the file store under `folder`/file; the histories of VIEWS."""
    from feast import FeatureStore

    stage_repository(folder / "file")
    config = yaml.safe_load((folder / "file" / "feature_store.yaml").read_text())
    (folder / "file" / "feature_store.yaml").write_text(yaml.safe_dump({**config, "online_store": ONLINE}))
    store = FeatureStore(repo_path=str(folder / "file"))
    store.apply([store.get_feature_view(name) for name in VIEWS])  # makes the tables of this online store
    rng = np.random.default_rng(seed)
    made = {name: random_history(store.get_feature_view(name), KEYS[name], rng) for name in VIEWS}
    made |= tables or {}
    (folder / "file" / "data").mkdir(exist_ok=True)
    for name, table in made.items():
        pq.write_table(table, folder / "file" / "data" / f"{name}.parquet")
    return made


def stage_ray(folder: Path, name: str, changes: Mapping[str, Any] | None = None) -> Path:
    """A copy of the staged folder under the cluster's configuration, with local registry and online store."""
    target = folder / name
    shutil.copytree(folder / "file", target)
    config = yaml.safe_load((REPOSITORY / "feature_store.ray.yaml").read_text())
    config |= {"registry": "registry.db", "online_store": ONLINE}
    config["offline_store"]["storage_path"] = str(folder / "staging")
    config["batch_engine"]["write_concurrency"] = 1  # SQLite is one file
    config |= changes or {}
    (target / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return target


def random_rows(rng: np.random.Generator, size: int = 40) -> pd.DataFrame:
    """Rows of known, unknown and missing keys, some of them twice."""
    users = rng.choice(["user_id0", "user_id1", "user_id2", "nobody", None], size)
    categories = rng.choice(["category0", "category1", "category2", None], size)
    times = pd.to_datetime([at(m) for m in rng.choice([-1, *MOMENTS, 1_001, 243 * 86_400_000], size)])
    return pd.DataFrame({"user_id": users, "category": categories, "event_timestamp": times})


def by_loop(
    table: pa.Table, keys: Sequence[str], rows: pd.DataFrame, ttl: timedelta, names: Sequence[str]
) -> list[dict[str, Any]]:
    """For each row the version with the largest (moment, created) of those known then and not expired."""
    versions = table.to_pylist()
    found = []
    for row in rows.to_dict("records"):
        seen = [
            version
            for version in versions
            if all(version[key] == row[key] for key in keys)
            and row["event_timestamp"] - ttl <= version["event_timestamp"] <= row["event_timestamp"]
        ]
        best = max(seen, key=lambda version: (version["event_timestamp"], version["created"]), default={})
        found.append({name: plain(best.get(name)) for name in names})
    return found


def plain(value: Any) -> Any:
    """A cell as Python has it; a number that is not there is None."""
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(part) for part in value]
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def cells(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    return [{name: plain(row[name]) for name in names} for row in frame.to_dict("records")]


@contextmanager
def small_cluster() -> Iterator[None]:
    """A Ray of two CPUs on loopback."""
    import logging
    import os
    import tempfile

    from serve.loopback import prepare

    prepare(os.environ)
    import ray

    folder = tempfile.mkdtemp(prefix="qiance-")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )
    try:
        yield
    finally:
        # Feast remembers that it found a Ray, and would not look again.
        from feast.infra.ray_initializer import shutdown_ray

        shutdown_ray()
        shutil.rmtree(folder, ignore_errors=True)
