"""The cluster's configuration gives the answers of the embedded one, and no socket but on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from ray_cases import (
    KEYS,
    START,
    VIEWS,
    at,
    by_loop,
    cells,
    random_rows,
    small_cluster,
    stage,
    stage_ray,
)

from training.featurise import REPOSITORY, point_in_time_one

pytestmark = pytest.mark.timeout(900)  # the first test waits for Ray's workers
PERIOD = (START - timedelta(days=1), START + timedelta(days=365))


class Staged:
    """Both repositories over the same histories."""

    def __init__(self, folder: Path) -> None:
        from feast import FeatureStore

        self.tables = stage(folder, seed=0)
        self.ray_folder = stage_ray(folder, "ray")
        self.file = FeatureStore(repo_path=str(folder / "file"))
        self.ray = FeatureStore(repo_path=str(self.ray_folder))

    def names(self, view: str) -> list[str]:
        return [field.name for field in self.file.get_feature_view(view).features]

    def refs(self, *views: str) -> list[str]:
        return [f"{view}:{name}" for view in views for name in self.names(view)]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    with small_cluster():
        yield Staged(tmp_path_factory.mktemp("ray"))


@pytest.mark.slow
def test_all_views_at_once_give_what_was_known_then(staged: Staged) -> None:
    rows = random_rows(np.random.default_rng(1))
    numbered = rows.assign(number=range(len(rows)))
    job = staged.ray.get_historical_features(entity_df=numbered, features=staged.refs(*VIEWS))
    found = job.to_df().sort_values("number")
    assert found["number"].tolist() == list(range(len(rows))), "every row comes back once, twins too"
    for view, keys in KEYS.items():
        ttl = staged.file.get_feature_view(view).ttl
        names = staged.names(view)
        assert cells(found, names) == by_loop(staged.tables[view], keys, rows, ttl, names), view


@pytest.mark.slow
def test_the_answer_of_the_file_store_for_the_rows_that_it_keeps(staged: Staged) -> None:
    """Feast's file join drops twins and rows without a live value, and takes any of several versions of the
    same moment; on rows with neither it must say the same."""
    view, keys = "user_profile", ["user_id"]
    table = staged.tables[view].to_pandas()
    twice = table[table.duplicated(["user_id", "event_timestamp"], keep=False)]
    rows = random_rows(np.random.default_rng(2), 80)[["user_id", "event_timestamp"]]
    rows = rows.dropna().drop_duplicates().reset_index(drop=True)
    ours = staged.ray.get_historical_features(entity_df=rows, features=staged.refs(view)).to_df()
    theirs = staged.file.get_historical_features(entity_df=rows, features=staged.refs(view)).to_df()
    for frame in (ours, theirs):
        frame["event_timestamp"] = frame["event_timestamp"].dt.as_unit("ns")
    both = theirs.merge(ours, on=[*keys, "event_timestamp"], suffixes=("_file", ""))
    assert len(both) == len(theirs) > 0
    names, compared = staged.names(view), 0
    for row in both.to_dict("records"):
        if (
            (twice["user_id"] == row["user_id"]) & (twice["event_timestamp"] <= row["event_timestamp"])
        ).any():
            continue
        compared += 1
        assert [row[name] for name in names] == pytest.approx(
            [row[f"{name}_file"] for name in names], nan_ok=True
        )
    assert compared > 0


@pytest.mark.slow
def test_training_reads_through_ray_as_through_files(staged: Staged) -> None:
    rows = random_rows(np.random.default_rng(3))
    joined = point_in_time_one(staged.ray_folder, rows, "user_category_v1", ("user_id", "category"))
    names = staged.names("user_category")
    ttl = staged.file.get_feature_view("user_category").ttl
    expected = by_loop(staged.tables["user_category"], ("user_id", "category"), rows, ttl, names)
    assert cells(joined, names) == expected


@pytest.mark.slow
def test_on_demand_features_are_computed_on_top(staged: Staged) -> None:
    rows = pd.DataFrame({"user_id": ["user_id0", "nobody"], "event_timestamp": [at(1_800_000)] * 2})
    rows["now_us"] = rows["event_timestamp"].astype("int64") // 1_000
    service = staged.file.get_feature_service("session_v1")
    ours, theirs = (
        store.get_historical_features(entity_df=rows, features=service).to_df().set_index("user_id")
        for store in (staged.ray, staged.file)
    )
    names = [feature.name for view in service.feature_view_projections for feature in view.features]
    for user in theirs.index:
        assert cells(ours.loc[[user]], names) == cells(theirs.loc[[user]], names)


@pytest.mark.slow
def test_materialised_values_are_those_of_the_local_engine(staged: Staged) -> None:
    for store in (staged.ray, staged.file):
        store.materialize(*PERIOD, feature_views=list(VIEWS))
    users = [f"user_id{n}" for n in range(3)] + ["nobody"]
    for view, keys in KEYS.items():
        asked = [{"user_id": u, "category": f"category{c}"} for u in users for c in range(3)]
        asked = [{key: entity[key] for key in keys} for entity in asked]
        ours, theirs = stored(staged.ray, view, asked), stored(staged.file, view, asked)
        assert ours == theirs
        assert any(values for _, values in ours)


def stored(store: Any, view: str, entities: list[dict[str, str]]) -> list[Any]:
    """What the online store has, however old."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    keys = [
        EntityKey(join_keys=list(e), entity_values=[Value(string_val=value) for value in e.values()])
        for e in entities
    ]
    read = store._get_provider().online_store.online_read(store.config, store.get_feature_view(view), keys)
    return [(moment, None if values is None else dict(values)) for moment, values in read]


@pytest.mark.slow
def test_a_store_that_refuses_ends_the_materialisation(staged: Staged, tmp_path: Path) -> None:
    from feast import FeatureStore

    stage(tmp_path, seed=0)
    nowhere = {"type": "redis", "connection_string": "127.0.0.1:1"}
    folder = stage_ray(tmp_path, "refused", {"online_store": nowhere})
    store = FeatureStore(repo_path=str(folder))
    with pytest.raises(Exception, match="onnect"):
        store.materialize(*PERIOD, feature_views=["user_profile"])
    assert store.get_feature_view("user_profile").materialization_intervals == []


@pytest.mark.slow
def test_every_socket_is_on_loopback(staged: Staged) -> None:
    this = psutil.Process(os.getpid())
    tree = [this, *this.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in tree
        if process.is_running()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize(
    ("rows", "features", "message"),
    [
        ("SELECT 1", ["user_profile:recency_days"], "entity_df: str is not read by the Ray store; pass"),
        (
            pd.DataFrame({"user_id": ["a"], "at": [START]}),
            ["user_profile:recency_days"],
            "entity_df: has no column 'event_timestamp'",
        ),
    ],
)
def test_what_the_ray_store_refuses(rows: Any, features: list[str], message: str, tmp_path: Path) -> None:
    from feast import FeatureStore

    stage(tmp_path, seed=0)
    store = FeatureStore(repo_path=str(stage_ray(tmp_path, "ray")))
    with pytest.raises(ValueError, match=message):
        store.get_historical_features(entity_df=rows, features=features)


def test_the_shipped_configuration_is_read_with_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from feast.repo_config import load_repo_config

    monkeypatch.setenv("QIANCE_REGISTRY", "postgresql+psycopg://user@db/features")
    monkeypatch.setenv("QIANCE_REDIS", "redis:6379")
    monkeypatch.setenv("QIANCE_STAGING", "s3://bucket/staging")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    config = load_repo_config(REPOSITORY, REPOSITORY / "feature_store.ray.yaml")
    assert config.registry.registry_type == "sql"
    assert config.registry.path == "postgresql+psycopg://user@db/features"
    assert config.offline_store.storage_path == "s3://bucket/staging"
    assert config.online_store.connection_string == "redis:6379"
    assert config.offline_store.ray_address == config.batch_engine.ray_address == "head:6379"
    assert config.batch_engine.write_concurrency == 8
    assert config.materialization_config.online_write_batch_size == 10_000


@pytest.fixture
def postgresql(postgres: Callable[[], str]) -> str:
    """A SQLAlchemy URL, in the form that QIANCE_REGISTRY takes."""
    return postgres().replace("postgresql://", "postgresql+psycopg://", 1)


@pytest.mark.slow
def test_definitions_live_in_a_registry_in_postgresql(tmp_path: Path, postgresql: str) -> None:
    from feast import FeatureStore

    stage(tmp_path, seed=0)
    registry = {"registry_type": "sql", "path": postgresql}
    # Applying starts the engine, and Ray with it; this test is of the registry.
    folder = stage_ray(tmp_path, "sql", {"registry": registry, "batch_engine": {"type": "local"}})
    local = FeatureStore(repo_path=str(tmp_path / "file"))
    store = FeatureStore(repo_path=str(folder))
    store.apply([*local.list_entities(), *(local.get_feature_view(name) for name in VIEWS)])
    again = FeatureStore(repo_path=str(folder))
    for name in VIEWS:
        assert again.get_feature_view(name) == local.get_feature_view(name)


def test_parts_are_the_same_everywhere_and_keep_keys_together() -> None:
    from feature_repo.ray_join import part_of

    keys = pa.chunked_array([pa.array(["a", "b", None, "a", "c"])])
    other = pa.chunked_array([pa.array([1, 2, 3, 1, 3])])
    parts = part_of([keys, other], 5, 4)
    assert parts[0] == parts[3]
    assert ((parts >= 0) & (parts < 4)).all()
    # Pinned: workers of another process must agree.
    many = part_of([pa.chunked_array([pa.array([f"u{n}" for n in range(1_000)])])], 1_000, 8)
    assert np.bincount(many, minlength=8).min() > 80, "spread over all parts"
