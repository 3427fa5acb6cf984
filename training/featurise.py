"""Feature tables from canonical data, staged beside a copy of the Feast repository and materialised."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.domain import Catalogue, UserTable
from qiance.features.transforms import (
    DAY_US,
    EventIndex,
    item_features,
    user_category_features,
    user_features,
)
from qiance.workspace import Snapshot

SNAPSHOT_EVERY_DAYS = 28
REPOSITORY = Path(__file__).resolve().parent.parent / "feature_repo"
Progress = Callable[[float, str], None]


def snapshot_at(events: EventIndex, catalogue: Catalogue, as_of: float) -> Snapshot:
    """All features at day `as_of` (days since the epoch)."""
    return Snapshot(
        catalogue=catalogue,
        users=UserTable(events.user_ids, user_features(events, as_of)),
        item=item_features(events, catalogue, as_of),
        user_category=user_category_features(events, as_of),
        categories=events.categories,
        as_of=_moment(as_of),
    )


def write_feature_tables(
    events: EventIndex,
    catalogue: Catalogue,
    days: list[float],
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Feature tables with one snapshot per day in `days`, as Parquet under `folder`/data."""
    parts: dict[str, list[pa.Table]] = {"user_profile": [], "item_state": [], "user_category": []}
    for number, day in enumerate(days):
        frame = snapshot_at(events, catalogue, day)
        for name, table in _tables(frame, catalogue).items():
            parts[name].append(table)
        if progress:
            progress((number + 1) / len(days), f"features of {frame.as_of:%Y-%m-%d}")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, tables in parts.items():
        pq.write_table(pa.concat_tables(tables), folder / "data" / f"{name}.parquet")


def _tables(frame: Snapshot, catalogue: Catalogue) -> dict[str, pa.Table]:
    bought = frame.user_category["category_baskets_90d"] > 0
    user, category = np.nonzero(bought)
    known = ~np.isnan(frame.users.columns["recency_days"])
    return {
        "user_profile": _stamped(
            {"user_id": np.array(frame.users.user_ids, dtype=object)[known]},
            {name: values[known] for name, values in frame.users.columns.items()},
            frame.as_of,
        ),
        "item_state": _stamped({"item_id": [i.item_id for i in catalogue]}, frame.item, frame.as_of),
        "user_category": _stamped(
            {
                "user_id": np.array(frame.users.user_ids, dtype=object)[user],
                "category": np.array(frame.categories, dtype=object)[category],
            },
            {name: values[user, category] for name, values in frame.user_category.items()},
            frame.as_of,
        ),
    }


def _stamped(keys: Mapping[str, Any], columns: Mapping[str, np.ndarray], at: datetime) -> pa.Table:
    data = {name: pa.array(values, pa.string()) for name, values in keys.items()}
    data |= {name: pa.array(values, pa.float64()) for name, values in columns.items()}
    size = len(next(iter(data.values())))
    stamp = pa.array([at] * size, pa.timestamp("us", "UTC"))
    return pa.table({**data, "event_timestamp": stamp, "created": stamp})


def stage_repository(folder: Path) -> None:
    """Copy the Feast repository into `folder` and apply its definitions to the registry there."""
    from feast import Entity, FeatureService, FeatureStore, FeatureView

    folder.mkdir(parents=True, exist_ok=True)
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    definitions = _load_definitions(folder / "features.py")
    kinds = (Entity, FeatureView, FeatureService)
    objects = [value for value in vars(definitions).values() if isinstance(value, kinds)]
    FeatureStore(repo_path=str(folder)).apply(objects)


def _load_definitions(path: Path) -> ModuleType:
    """Run the definitions under a name of their own: Feast's CLI would put the folder on sys.path."""
    spec = importlib.util.spec_from_file_location("qiance_feature_definitions", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"feature_repo: {path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def materialise(folder: Path, start: datetime, end: datetime) -> None:
    """Write the latest values in [start, end] to the online store."""
    from feast import FeatureStore

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        FeatureStore(repo_path=str(folder)).materialize(start, end)


# The service that reads each view alone, with the view's join keys.
SERVICES = {
    "user_v1": ("user_id",),
    "item_v1": ("item_id",),
    "user_category_v1": ("user_id", "category"),
}


def point_in_time(folder: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Join feature values as of `event_timestamp` to `rows` (user_id, item_id, category, event_timestamp).

    Rows stay in the order given; values that did not exist then are NaN. Each view is joined alone on its
    distinct keys: Feast's file join keeps one row per (keys of a view, timestamp), so a user's second
    decision at the same instant would be lost if all views were joined at once.
    """
    joined = rows.reset_index(drop=True)
    for service, keys in SERVICES.items():
        joined = point_in_time_one(folder, joined, service, keys)
    return joined


def point_in_time_one(folder: Path, rows: pd.DataFrame, service: str, keys: Sequence[str]) -> pd.DataFrame:
    """`rows` with the features of one service as of `event_timestamp`; NaN where a key is missing."""
    from feast import FeatureStore

    on = [*keys, "event_timestamp"]
    distinct = rows.loc[rows[list(keys)].notna().all(axis=1), on].drop_duplicates()
    store = FeatureStore(repo_path=str(folder))
    features = store.get_feature_service(service)
    values = store.get_historical_features(entity_df=distinct, features=features).to_df()
    return rows.merge(values, on=on, how="left", validate="many_to_one")


def snapshot_days(events: EventIndex, every: int = SNAPSHOT_EVERY_DAYS) -> list[float]:
    """Snapshot days that end at the midnight after the last event, oldest first."""
    last = float(np.floor(events.day[-1])) + 1.0
    first = float(np.floor(events.day[0])) + every
    return sorted(np.arange(last, first, -every).tolist())


def _moment(day: float) -> datetime:
    return datetime.fromtimestamp(day * DAY_US / 1e6, tz=UTC)
