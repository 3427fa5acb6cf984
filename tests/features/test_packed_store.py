"""The online stores under Feast's own interface: what we rely on in Feast, pinned."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Float32, Float64, Int64, String

from feature_repo.packed_store import layout_of
from qiance.features.online import OnlineReader, Status
from serve.feature_store import _rows, _spec
from tests.features.redis_server import RedisServer

NOW = datetime.now(UTC).replace(microsecond=0)
STOCK = "  type: sqlite\n  path: online.db"
SQLITE = "  type: feature_repo.packed_store.PackedSqliteOnlineStore\n  path: online.db"
REDIS = "  type: feature_repo.packed_store.PackedRedisOnlineStore\n  connection_string: {}"
CONFIG = (
    "project: shop\nprovider: local\nregistry: registry.db\noffline_store:\n  type: file\n"
    "online_store:\n{}\nentity_key_serialization_version: 3\n"
)


def rows(size: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in range(size)],
            "spend": np.where(np.arange(size) % 5 == 0, np.nan, rng.normal(size=size)),
            "visits": rng.integers(0, 9, size),
            "city": [None if n % 4 == 0 else f"城{n}" for n in range(size)],
            "vector": [[float(n), 0.5] for n in range(size)],
            # The last users' rows are older than the TTL of a day.
            "event_timestamp": [NOW - timedelta(hours=30 if n >= size - 3 else 1) for n in range(size)],
            "created": NOW,
        }
    )


def pairs() -> pd.DataFrame:
    entries = [(f"u{n}", name) for n in range(4) for name in ("tea", "soup")]
    frame = pd.DataFrame(entries, columns=["user_id", "category"])
    return frame.assign(share=np.arange(8) / 10, event_timestamp=NOW - timedelta(hours=1), created=NOW)


def open_store(folder: Path, online: str) -> FeatureStore:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feature_store.yaml").write_text(CONFIG.format(online))
    rows().to_parquet(folder / "profile.parquet")
    pairs().to_parquet(folder / "pair.parquet")

    def source(name: str) -> FileSource:
        return FileSource(
            name=name,
            path=str(folder / f"{name}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )

    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    category = Entity(name="category", join_keys=["category"], value_type=ValueType.STRING)
    profile = FeatureView(
        name="profile",
        entities=[user],
        schema=[
            Field(name="user_id", dtype=String),
            Field(name="spend", dtype=Float64),
            Field(name="visits", dtype=Int64),
            Field(name="city", dtype=String),
            Field(name="vector", dtype=Array(Float32)),
        ],
        ttl=timedelta(days=1),
        source=PushSource(name="profiles", batch_source=source("profile")),
    )
    pair = FeatureView(
        name="pair",
        entities=[user, category],
        schema=[
            Field(name="user_id", dtype=String),
            Field(name="category", dtype=String),
            Field(name="share", dtype=Float64),
        ],
        ttl=timedelta(days=1),
        source=source("pair"),
    )
    store = FeatureStore(repo_path=str(folder))
    store.apply([user, category, profile, pair, FeatureService(name="all", features=[profile, pair])])
    return store


def materialised(store: FeatureStore) -> FeatureStore:
    store.materialize(NOW - timedelta(days=3), NOW)
    return store


def ask(store: FeatureStore, users: list[str]) -> dict[str, list[Any]]:
    entities = [{"user_id": user, "category": "tea"} for user in users]
    return store.get_online_features(store.get_feature_service("all"), entity_rows=entities).to_dict()


@pytest.fixture(params=["sqlite", "redis"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    if request.param == "sqlite":
        return materialised(open_store(tmp_path / "packed", SQLITE))
    server: RedisServer = request.getfixturevalue("redis_server")
    return materialised(open_store(tmp_path / "packed", REDIS.format(server.connection)))


def reader_of(store: FeatureStore) -> OnlineReader:
    folder = Path(store.repo_path)
    return OnlineReader(_rows(store.config, folder, 1.0), [_spec(v) for v in store.list_feature_views()])


def test_fresh_rows_are_those_of_feasts_own_store(packed: FeatureStore, tmp_path: Path) -> None:
    stock = materialised(open_store(tmp_path / "stock", STOCK))
    users = [f"u{n}" for n in (3, 0, 16, 4)] + ["nobody"]
    expected, found = ask(stock, users), ask(packed, users)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # A NaN in the frame is null to Feast's own store; both say that nothing is known.
        plain = [None if isinstance(v, float) and np.isnan(v) else v for v in values]
        ours = [None if isinstance(v, float) and np.isnan(v) else v for v in found[name]]
        assert ours == plain, name


def test_what_is_older_than_its_ttl_is_not_served_as_present(packed: FeatureStore, tmp_path: Path) -> None:
    stock = materialised(open_store(tmp_path / "stock", STOCK))
    assert ask(stock, ["u18"])["visits"] != [None], "Feast's own store serves it: feast issue 6821"
    assert ask(packed, ["u18"])["visits"] == [None]


def test_the_reader_tells_stale_from_missing(packed: FeatureStore) -> None:
    now_us = time.time_ns() // 1_000
    block = reader_of(packed).fetch("user_id", ["u1", "u18", "nobody"], now_us).block("profile")
    assert block.status.tolist() == [Status.PRESENT, Status.STALE, Status.MISSING]
    assert np.isnan(block.values["visits"][1:]).all()
    assert block.lists["vector"][1:] == [None, None]
    assert block.event_us[1] > 0, "when it was true is told, its value is not"


def test_the_reader_and_feast_agree(packed: FeatureStore) -> None:
    users = [f"u{n}" for n in range(17)]
    expected = ask(packed, users)
    fetched = reader_of(packed).fetch("user_id", users, time.time_ns() // 1_000)
    block = fetched.block("profile")
    for name in ("spend", "visits"):
        as_floats = [np.nan if v is None else float(v) for v in expected[name]]
        np.testing.assert_array_equal(block.values[name], as_floats)
    assert block.lists["city"] == expected["city"]
    assert [list(v) for v in block.lists["vector"]] == expected["vector"]  # type: ignore[arg-type]
    shares = fetched.matrix("pair", ["soup", "tea", "unknown"])
    np.testing.assert_array_equal(shares.values["share"][:, 1], np.array(expected["share"], dtype=float))
    assert shares.values["share"][2].tolist()[:2] == [0.5, 0.4]
    assert shares.status[:, 2].tolist() == [Status.MISSING] * 17


def test_a_push_is_read_at_once_and_an_older_one_changes_nothing(packed: FeatureStore) -> None:
    def push(visits: int, at: datetime) -> None:
        row = {"user_id": "u1", "spend": 1.0, "visits": visits, "city": "x", "vector": [0.0]}
        packed.push("profiles", pd.DataFrame([{**row, "event_timestamp": at, "created": at}]))

    push(77, NOW)
    assert ask(packed, ["u1"])["visits"] == [77]
    push(5, NOW - timedelta(minutes=5))
    assert ask(packed, ["u1"])["visits"] == [77]
    packed.materialize(NOW - timedelta(days=3), NOW)  # the table's row is an hour older than the push
    assert ask(packed, ["u1"])["visits"] == [77]


def test_a_deleted_view_is_forgotten(packed: FeatureStore) -> None:
    reader = reader_of(packed)
    view = packed.get_feature_view("pair")
    packed.apply(objects=[], objects_to_delete=[view, packed.get_feature_service("all")], partial=False)
    fetched = reader.fetch("user_id", ["u1"], time.time_ns() // 1_000)
    assert fetched.matrix("pair", ["tea"]).status.tolist() == [[Status.MISSING]]
    assert fetched.block("profile").status.tolist() == [Status.PRESENT]


def test_teardown_leaves_nothing(packed: FeatureStore) -> None:
    reader = reader_of(packed)
    packed.teardown()
    packed._get_provider().online_store.update(packed.config, [], [], [], [], False)
    fetched = reader.fetch("user_id", ["u1"], 0)
    assert fetched.block("profile").status.tolist() == [Status.MISSING]


def test_a_row_written_under_another_definition_is_missing(packed: FeatureStore) -> None:
    """Not read by position: a view that gains a field must not shift the others."""
    reader = reader_of(packed)
    spec = reader.views["profile"]
    changed = type(spec)(
        type(spec.layout).of("profile", [*spec.layout.fields, ("age", "Float64")]), spec.keys, spec.ttl_us
    )
    other = OnlineReader(reader._rows, [changed])
    block = other.fetch("user_id", ["u1"], time.time_ns() // 1_000).block("profile")
    assert block.status.tolist() == [Status.MISSING]


def test_the_first_key_of_the_schema_names_the_partition(packed: FeatureStore) -> None:
    view = packed.get_feature_view("pair")
    assert view.join_keys == ["user_id", "category"]
    assert layout_of(view).fields == (("share", "Float64"),)


def test_a_user_is_one_read_however_many_views(packed: FeatureStore) -> None:
    reader, calls = reader_of(packed), []
    get = reader._rows.get
    reader._rows.get = lambda partitions: (calls.append(1), get(partitions))[1]  # type: ignore[method-assign]
    fetched = reader.fetch("user_id", ["u1", "u2"], time.time_ns() // 1_000)
    fetched.block("profile")
    fetched.matrix("pair", ["tea", "soup"])
    assert len(calls) == 1
