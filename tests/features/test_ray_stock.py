"""Why the cluster does not use Feast 0.67's own Ray parts. One that fails here tells what Feast mended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from ray_cases import START, STOCK, at, small_cluster, stage, stage_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
VIEW = "user_profile"
REFS = [f"{VIEW}:recency_days"]
# Anna has a value of each time; the last lies within the second after which she is asked for.
VALUES = {0: 1.0, 3_600_000: 2.0, 3_600_900: 3.0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with small_cluster():
        yield


def versions(view: Any, users: list[str], moments: list[datetime], values: list[float]) -> pa.Table:
    times = pa.array(moments, pa.timestamp("us", "UTC"))
    numbers = {field.name: pa.array(values) for field in view.features}
    return pa.table({"user_id": users, **numbers, "event_timestamp": times, "created": times})


def stores(folder: Path, table: Any, changes: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Feast's own Ray parts, and ours, over the same table of one view."""
    from feast import FeatureStore

    stage(folder, 0, {VIEW: table})
    stock = stage_ray(folder, "stock", changes or STOCK)
    return FeatureStore(repo_path=str(stock)), FeatureStore(repo_path=str(stage_ray(folder, "ours")))


def view_of(folder: Path) -> Any:
    from feast import FeatureStore

    stage(folder, 0)
    return FeatureStore(repo_path=str(folder / "file")).get_feature_view(VIEW)


def values_at(store: Any, users: list[str | None], moments: list[datetime]) -> list[float | None]:
    rows = pd.DataFrame(
        {"user_id": users, "event_timestamp": pd.to_datetime(moments), "n": range(len(users))}
    )
    frame = store.get_historical_features(entity_df=rows, features=REFS).to_df().set_index("n")
    found = [frame["recency_days"].get(number, "lost") for number in range(len(users))]
    return [None if isinstance(value, float) and np.isnan(value) else value for value in found]


def test_the_join_sees_the_future_and_the_expired_and_loses_rows(cluster: None, tmp_path: Path) -> None:
    view = view_of(tmp_path / "first")
    moments = [at(moment) for moment in VALUES]
    stock, ours = stores(tmp_path, versions(view, ["anna"] * 3, moments, list(VALUES.values())))
    users = ["anna", "anna", None, "nobody"]
    asked = [at(3_600_500), at(0) + view.ttl + timedelta(days=9), at(0), at(0)]
    assert values_at(ours, users, asked) == [2.0, None, None, None]
    assert values_at(stock, users, asked) == [3.0, 3.0, "lost", None]


def test_large_views_have_values_of_the_same_hour_only(cluster: None, tmp_path: Path) -> None:
    view = view_of(tmp_path / "first")
    users = [f"u{n}" for n in range(200_000)]
    values = [1.0] * 4 + np.random.default_rng(0).normal(size=len(users) - 4).tolist()
    table = versions(view, users, [START] * len(users), values)
    small = {"offline_store": {**STOCK["offline_store"], "broadcast_join_threshold_mb": 1}}
    stock, ours = stores(tmp_path, table, {**STOCK, **small})
    asked = ["u1", "u2", "u3"], [START + timedelta(days=1)] * 3
    assert values_at(ours, *asked) == [1.0, 1.0, 1.0]
    assert values_at(stock, *asked) == [None, None, None]


def test_the_engine_forgets_what_is_old_today_and_hides_failures(cluster: None, tmp_path: Path) -> None:
    view = view_of(tmp_path / "first")
    table = versions(view, ["anna"], [START], [1.0])
    stock, ours = stores(tmp_path, table)
    stock.materialize(START - timedelta(days=1), START + timedelta(days=1), feature_views=[VIEW])
    found = stock.get_online_features(REFS, [{"user_id": "anna"}]).to_dict()
    assert found["recency_days"] == [None], "120 days have passed since 2017, so nothing was written"
    ours.materialize(START - timedelta(days=1), START + timedelta(days=1), feature_views=[VIEW])
    found = ours.get_online_features(REFS, [{"user_id": "anna"}]).to_dict()
    assert found["recency_days"] == [1.0]

    (tmp_path / "refused").mkdir()
    now = datetime.now(UTC)
    nowhere = {"online_store": {"type": "redis", "connection_string": "127.0.0.1:1"}}
    stock, _ = stores(tmp_path / "refused", versions(view, ["anna"], [now], [1.0]), {**STOCK, **nowhere})
    stock.materialize(now - timedelta(days=1), now + timedelta(days=1), feature_views=[VIEW])
    assert stock.get_feature_view(VIEW).materialization_intervals, "told as done, with no Redis there"
