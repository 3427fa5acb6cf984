"""Feature tables from canonical data, staged beside a copy of the Feast repository and materialised."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.domain import Catalogue, UserTable
from qiance.features.session import SESSION_FEATURES, no_session
from qiance.features.transforms import (
    EventIndex,
    ItemTable,
    item_features,
    item_popularity_features,
    item_sums,
    market_sums,
    user_category_features,
    user_features,
)
from qiance.workspace import Snapshot
from training.preprocess.tables import (
    TABLES,
    TableWriter,
    after_one_another,
    instants,
    item_tables,
    known_at,
    moment,
    table_schema,
    user_tables,
)

SNAPSHOT_EVERY_DAYS = 28
# Feast's names of the types that our views have.
_ARROW_TYPES = {
    "Float64": pa.float64(),
    "Array(Int64)": pa.list_(pa.int64()),
    "Array(Float32)": pa.list_(pa.float32()),
    "Array(String)": pa.list_(pa.string()),
}
REPOSITORY = Path(__file__).resolve().parent.parent / "feature_repo"
Progress = Callable[[float, str], None]


def snapshot_at(
    events: EventIndex, catalogue: Catalogue, as_of: float, stock: Mapping[str, float] | None = None
) -> Snapshot:
    """All features at day `as_of` (days since the epoch); stock: units on hand then, by item id."""
    items = ItemTable.of(catalogue, stock)
    return Snapshot(
        catalogue=catalogue,
        users=UserTable(events.user_ids, user_features(events, as_of)),
        item=item_features(events, items, as_of) | item_popularity_features(events, as_of),
        user_category=user_category_features(events, as_of),
        categories=events.categories,
        as_of=moment(as_of),
    )


def write_feature_tables(
    events: EventIndex,
    catalogue: Catalogue,
    days: Sequence[float],
    folder: Path,
    progress: Progress | None = None,
    stock: Mapping[str, float] | None = None,
) -> None:
    """Feature tables with one snapshot per day in `days`, as Parquet under `folder`/data.

    stock: units on hand now, by item id; it is stamped on the last instant alone.
    """
    items = ItemTable.of(catalogue, stock)
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(TableWriter(folder / "data" / f"{name}.parquet", table_schema(name)))
            for name in TABLES
        }
        for number, (day, before) in enumerate(after_one_another(days)):
            sums = item_sums(events, day), market_sums(events, day)
            rows = user_tables(events, day, before) | item_tables(known_at(items, day, days[-1]), *sums, day)
            for name, table in rows.items():
                writers[name].write(table)
            if progress:
                progress((number + 1) / len(days), f"features of {moment(day):%Y-%m-%d}")


def stage_repository(folder: Path, config: str = "feature_store.yaml") -> None:
    """Copy the Feast repository into `folder` and apply its definitions to the registry there.

    config: which of the repository's configurations the folder gets as its feature_store.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    shutil.copy(REPOSITORY / config, folder / "feature_store.yaml")
    apply_definitions(folder)
    _make_missing_tables(folder)


def apply_definitions(folder: Path) -> None:
    """Make the registry in `folder` say what the folder's features.py says."""
    from feast import Entity, FeatureService, FeatureStore, FeatureView, OnDemandFeatureView

    definitions = _load_definitions(folder / "features.py")
    kinds = (Entity, FeatureView, OnDemandFeatureView, FeatureService)
    objects = [value for value in vars(definitions).values() if isinstance(value, kinds)]
    FeatureStore(repo_path=str(folder)).apply(objects)


def _make_missing_tables(folder: Path) -> None:
    """An empty table for each view that has none yet, so that a service over all of them can be joined."""
    from feast import FeatureStore

    (folder / "data").mkdir(exist_ok=True)
    for view in FeatureStore(repo_path=str(folder)).list_feature_views():
        table = folder / "data" / f"{view.name}.parquet"
        if not table.exists():
            fields = [(key, pa.string()) for key in view.join_keys]
            fields += [(field.name, _ARROW_TYPES[str(field.dtype)]) for field in view.features]
            fields += [(name, pa.timestamp("us", "UTC")) for name in ("event_timestamp", "created")]
            pq.write_table(pa.schema(fields).empty_table(), table)


def _load_definitions(path: Path) -> ModuleType:
    """Run the definitions under a name of their own: Feast's CLI would put the folder on sys.path."""
    spec = importlib.util.spec_from_file_location("qiance_feature_definitions", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"feature_repo: {path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def materialise(folder: Path, end: datetime, names: Sequence[str] | None = None) -> None:
    """Write to the online store what a point-in-time join at `end` finds: the newest row within its TTL.

    names: the views; all of them unless given. A view without a table (nobody has visited yet, no
    embeddings were made) is empty online too.
    """
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(folder))
    views = [view for view in store.list_feature_views() if _has_rows(folder, view.name)]
    views = [view for view in views if names is None or view.name in names]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for view in views:
            store.materialize(end - view.ttl, end, feature_views=[view.name])


def _has_rows(folder: Path, view: str) -> bool:
    table = folder / "data" / f"{view}.parquet"
    return table.is_file() and pq.read_metadata(table).num_rows > 0


# The service that reads each view alone, with the view's join keys.
SERVICES = {
    "user_v1": ("user_id",),
    "item_v1": ("item_id",),
    "item_popularity_v1": ("item_id",),
    "user_category_v1": ("user_id", "category"),
    "user_brand_v1": ("user_id", "brand"),
    "market_v1": ("market_id",),
}
# What a row of `effect_v1` is made of.
EFFECT_SERVICES = ("user_v1", "item_v1", "item_popularity_v1", "user_category_v1")


def point_in_time(
    folder: Path, rows: pd.DataFrame, services: Sequence[str] = EFFECT_SERVICES
) -> pd.DataFrame:
    """Join feature values as of `event_timestamp` to `rows` (user_id, item_id, category, event_timestamp).

    Rows stay in the order given; values that did not exist then are NaN. Each view is joined alone on its
    distinct keys: Feast's file join keeps one row per (keys of a view, timestamp), so a user's second
    decision at the same instant would be lost if all views were joined at once.
    """
    joined = rows.reset_index(drop=True)
    for service in services:
        joined = point_in_time_one(folder, joined, service, SERVICES[service])
    return joined


def point_in_time_one(folder: Path, rows: pd.DataFrame, service: str, keys: Sequence[str]) -> pd.DataFrame:
    """`rows` with the features of one service as of `event_timestamp`; NaN where a key is missing.

    Rows keep their order and index, whatever columns they have; a feature column that is there already is
    refused, for it would be joined under another name.
    """
    from feast import FeatureStore

    on = [*keys, "event_timestamp"]
    absent = [name for name in on if name not in rows.columns]
    if absent:
        raise ValueError(f"rows: column {absent[0]!r} is missing; {service} is joined by {', '.join(on)}")
    store = FeatureStore(repo_path=str(folder))
    features = store.get_feature_service(service)
    names = [f.name for view in features.feature_view_projections for f in view.features]
    twice = [name for name in names if name in rows.columns]
    if twice:
        raise ValueError(f"rows: column {twice[0]!r} is a feature of {service}; drop it before the join")
    stamped = rows.assign(event_timestamp=pd.to_datetime(rows["event_timestamp"], utc=True).dt.as_unit("us"))
    distinct = stamped.loc[stamped[list(keys)].notna().all(axis=1), on].drop_duplicates()
    if distinct.empty:  # Feast cannot join no rows
        return rows.assign(**dict.fromkeys(names, np.nan))
    values = store.get_historical_features(entity_df=distinct, features=features).to_df()
    values["event_timestamp"] = pd.to_datetime(values["event_timestamp"], utc=True).dt.as_unit("us")
    found = stamped[on].merge(values[[*on, *names]], on=on, how="left", validate="many_to_one")
    return rows.assign(**{name: found[name].to_numpy(dtype=np.float64) for name in names})


def sessions_at(folder: Path, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """`[n]` per session feature for `rows` (user_id, event_timestamp), as a decision then read it."""
    from feast import FeatureStore

    if not _has_rows(folder, "user_session"):
        return no_session(len(rows))
    store = FeatureStore(repo_path=str(folder))
    stamped = rows[["user_id"]].assign(
        event_timestamp=pd.to_datetime(rows["event_timestamp"], utc=True).dt.as_unit("us")
    )
    distinct = stamped.drop_duplicates()
    asked = distinct.assign(now_us=distinct["event_timestamp"].astype("int64"))
    service = store.get_feature_service("session_v1")
    values = store.get_historical_features(entity_df=asked, features=service).to_df()
    values["event_timestamp"] = pd.to_datetime(values["event_timestamp"], utc=True).dt.as_unit("us")
    on = ["user_id", "event_timestamp"]
    found = stamped.merge(values[[*on, *SESSION_FEATURES]], on=on, how="left", validate="many_to_one")
    # Feast's file join leaves out rows without a live value: nobody was on the site.
    return {
        name: found[name].fillna(float(absent[0])).to_numpy(dtype=np.float64)
        for name, absent in no_session(1).items()
    }


def snapshot_days(events: EventIndex, every: int = SNAPSHOT_EVERY_DAYS) -> list[float]:
    """Snapshot days that end at the midnight after the last event, oldest first."""
    return instants(float(events.day[0]), float(events.day[-1]), every)
