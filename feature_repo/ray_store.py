"""Feast on a Ray cluster: an offline store whose join holds at any size, an engine that tells of lost writes.

Feast 0.67 has both for Ray, and neither can be trusted (`tests/features/test_ray_stock.py` shows how): its
join knows no TTL, cuts times to seconds (so it sees up to a second of the future), drops rows and, above
100 MB, nearly all values; its engine leaves out what is old by the wall clock and reports success where the
online store refused. Reading, starting Ray and jobs are Feast's; the join and the write are these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import Entity, FeatureView, FileSource
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.common.serde import SerializedArtifacts
from feast.infra.compute_engines.ray.compute import RayComputeEngine
from feast.infra.compute_engines.ray.config import RayComputeEngineConfig
from feast.infra.compute_engines.ray.job import RayMaterializationJob
from feast.infra.offline_stores.contrib.ray_offline_store.ray import (
    RayOfflineStore,
    RayOfflineStoreConfig,
    RayRetrievalJob,
)
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from feast.types import from_feast_to_pyarrow_type
from feast.utils import (
    _convert_arrow_to_proto,
    _get_column_names,
    _get_requested_feature_views_to_features_dict,
    _get_requested_on_demand_feature_views,
)
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from ray.data import Dataset, from_arrow, read_parquet

from feature_repo.ray_join import (
    MOMENT,
    PART,
    TIME,
    ViewPlan,
    join_part,
    marked,
    newest,
    rows_side,
    versions_side,
)

WRITE_ROWS = 10_000


class PointInTimeRayOfflineStoreConfig(RayOfflineStoreConfig):
    """Feast's keys for Ray. A shuffle has a part per `target_partition_size_mb`; those of Feast's own joins
    (broadcast threshold, window, parallelism) have no meaning here."""

    type: Literal["feature_repo.ray_store.PointInTimeRayOfflineStore"] = (
        "feature_repo.ray_store.PointInTimeRayOfflineStore"
    )


class PointInTimeRayOfflineStore(RayOfflineStore):
    """Historical features by a join on Ray Data that is partitioned by key.

    Every row of the entity frame comes back, in no particular order: with null where a key is null or
    unknown, or where the newest value is older than the view's TTL.
    """

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RayRetrievalJob:
        """A lazy job; ValueError for an entity frame without `event_timestamp`, or that is no frame."""
        rows = _entity_table(entity_df)
        on_demand = _get_requested_on_demand_feature_views(feature_refs, project, registry)
        wanted, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        plans = [
            _plan(view, _entities(view, registry, project), names, config, full_feature_names)
            for view, names in wanted.items()
        ]
        _start_ray(config)
        joined = _join_views(rows, plans, _part_bytes(config))
        job = RayRetrievalJob(joined, config.offline_store.storage_path, config.offline_store)
        # Feast's job has no constructor for these; its own store sets them in the same way.
        job._entity_df = entity_df
        job._feature_refs = feature_refs
        job._full_feature_names = full_feature_names
        job._on_demand_feature_views = on_demand
        job._feature_pa_types = {
            shown: plan.types.field(name).type for plan in plans for name, shown in plan.shown
        }
        return job

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: FileSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RayRetrievalJob:
        """The newest version of each key with a moment in [start, end]."""
        if not join_key_columns:
            raise ValueError(f"{data_source.name}: a view without an entity is not read; give it one")
        _start_ray(config)
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        names = [*join_key_columns, *feature_name_columns, *times] if feature_name_columns else None
        uri, period = _uri(data_source, config), (start_date, end_date)
        parts = 1 + _size(uri) // _part_bytes(config)
        mark = partial(marked, timestamp_field, join_key_columns, parts, period)
        versions = _read(uri, names).map_batches(mark, batch_format="pyarrow")
        latest = _by_part(versions, partial(newest, join_key_columns, times))
        return RayRetrievalJob(latest, config.offline_store.storage_path, config.offline_store)


def _plan(
    view: FeatureView,
    entities: Sequence[Entity],
    features: Sequence[str],
    config: RepoConfig,
    full_names: bool,
) -> ViewPlan:
    """ValueError for a source or a view that this store cannot read."""
    source = _file_source(view)
    fields = {field.name: from_feast_to_pyarrow_type(field.dtype) for field in view.features}
    types = {column.name: from_feast_to_pyarrow_type(column.dtype) for column in view.entity_columns}
    keys = [entity.join_key for entity in entities]
    if not keys:
        raise ValueError(f"{view.name}: a view without an entity is not read; give it one")
    created = source.created_timestamp_column or None
    schema = {key: types[key] for key in keys} | {name: fields[name] for name in features}
    schema |= {name: TIME for name in (source.timestamp_field, created) if name}
    prefix = f"{view.projection.name_to_use()}__" if full_names else ""
    return ViewPlan(
        uri=_uri(source, config),
        keys=tuple(keys),
        row_keys=tuple(view.projection.join_key_map.get(key, key) for key in keys),
        moment=source.timestamp_field,
        created=created,
        types=pa.schema(schema),
        shown=tuple((name, prefix + name) for name in features),
        ttl=view.ttl or None,
    )


def _entities(view: FeatureView, registry: BaseRegistry, project: str) -> list[Entity]:
    return [registry.get_entity(name, project) for name in view.entities]


def _file_source(view: FeatureView) -> FileSource:
    source = view.batch_source
    if not isinstance(source, FileSource):
        kind = type(source).__name__
        raise ValueError(f"{view.name}: its source is {kind}; the Ray store reads FileSource (Parquet) only")
    if source.field_mapping:
        raise ValueError(f"{view.name}: field_mapping is not read here; name the columns as the view does")
    return source


def _uri(source: FileSource, config: RepoConfig) -> str:
    return str(FileSource.get_uri_for_file_path(config.repo_path, source.path))


def _read(uri: str, columns: Sequence[str] | None) -> Dataset:
    data = read_parquet(uri)
    return data.select_columns(list(columns)) if columns else data


def _size(uri: str) -> int:
    """Bytes in memory of the Parquet file or folder at `uri`, roughly: Parquet is some four times smaller."""
    filesystem, path = FileSystem.from_uri(uri) if "://" in uri else (LocalFileSystem(), uri)
    info = filesystem.get_file_info(path)
    files = (
        filesystem.get_file_info(FileSelector(path, recursive=True))
        if info.type == FileType.Directory
        else [info]
    )
    return 4 * sum(file.size or 0 for file in files)


def _start_ray(config: RepoConfig) -> None:
    """As configured, unless one runs in this process already."""
    RayOfflineStore()._init_ray(config)


def _part_bytes(config: RepoConfig) -> int:
    return (config.offline_store.target_partition_size_mb or 64) * 2**20


def _entity_table(entity_df: pd.DataFrame | str | None) -> pa.Table:
    if not isinstance(entity_df, pd.DataFrame):
        kind = type(entity_df).__name__
        raise ValueError(f"entity_df: {kind} is not read by the Ray store; pass a pandas DataFrame")
    if MOMENT not in entity_df.columns:
        raise ValueError(f"entity_df: has no column {MOMENT!r}; name the time of each row so")
    table = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None)
    return table.set_column(table.column_names.index(MOMENT), MOMENT, table[MOMENT].cast(TIME))


def _join_views(rows: pa.Table, plans: Sequence[ViewPlan], part_bytes: int) -> Dataset:
    """One view after the other; lazy. ValueError for a name that would be there twice."""
    shown = [name for plan in plans for _, name in plan.shown]
    twice = sorted({name for name in shown if shown.count(name) > 1 or name in rows.column_names})
    if twice:
        raise ValueError(f"features: {twice[0]!r} would be there twice; ask with full_feature_names=True")
    schema, result = rows.schema, from_arrow(rows)
    first, last = pc.min(rows[MOMENT]).as_py(), pc.max(rows[MOMENT]).as_py()
    for plan in plans:
        versions = _read(plan.uri, plan.types.names)
        parts = 1 + (_size(plan.uri) + rows.nbytes) // part_bytes
        period = None if last is None else (first - plan.ttl if plan.ttl else None, last)
        ours = result.map_batches(partial(rows_side, plan, schema, parts), batch_format="pyarrow")
        theirs = versions.map_batches(
            partial(versions_side, plan, schema, parts, period), batch_format="pyarrow"
        )
        result = _by_part(ours.union(theirs), partial(join_part, plan, schema))
        schema = plan.schema_after(schema)
    return result


def _by_part(data: Dataset, function: Callable[[pa.Table], pa.Table]) -> Dataset:
    """`function` on each part whole, so that all versions of a key are seen together."""
    return data.groupby(PART).map_groups(function, batch_format="pyarrow")


class CheckedRayComputeEngineConfig(RayComputeEngineConfig):
    """Feast's keys for Ray."""

    type: Literal["feature_repo.ray_store.CheckedRayComputeEngine"] = (
        "feature_repo.ray_store.CheckedRayComputeEngine"
    )


class CheckedRayComputeEngine(RayComputeEngine):
    """Materialises on Ray Data: the newest version of each key, written in parallel, errors raised."""

    def _materialize_one(
        self,
        registry: BaseRegistry,
        task: MaterializationTask,
        from_offline_store: bool = False,
        **kwargs: Any,
    ) -> RayMaterializationJob:
        """A job that failed holds the error, which Feast raises: nothing is then marked as materialised."""
        name = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            self._write(registry, task)
        except Exception as error:
            return RayMaterializationJob(name, MaterializationJobStatus.ERROR, error=error)
        return RayMaterializationJob(name, MaterializationJobStatus.SUCCEEDED)

    def _write(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        view, config = task.feature_view, self.repo_config
        if getattr(view, "feature_transformation", None) or getattr(view, "aggregations", None):
            raise ValueError(
                f"{view.name}: this engine writes what the source has; compute it in a batch job before"
            )
        columns = _get_column_names(view, _entities(view, registry, task.project))
        job = self.offline_store.pull_latest_from_table_or_query(
            config, _file_source(view), *columns, task.start_time, task.end_time
        )
        _dataset(job).map_batches(
            partial(_write_batch, SerializedArtifacts.serialize(view, config)),
            batch_format="pyarrow",
            batch_size=config.materialization_config.online_write_batch_size or WRITE_ROWS,
            concurrency=self.config.write_concurrency or 1,
        ).materialize()


def _dataset(job: RetrievalJob) -> Dataset:
    return job.to_ray_dataset() if isinstance(job, RayRetrievalJob) else from_arrow(job.to_arrow())


def _write_batch(artifacts: SerializedArtifacts, batch: pa.Table) -> pa.Table:
    """Write one batch in a worker; what the online store raises ends the job."""
    if batch.num_rows:
        view, online_store, _, config = artifacts.unserialize()
        types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        # Combined, because Feast converts the first chunk of a table and forgets the others.
        rows = _convert_arrow_to_proto(batch.combine_chunks(), view, types)
        online_store.online_write_batch(config, view, rows, progress=lambda written: None)
    return pa.table({"written": pa.array([batch.num_rows], pa.int64())})
