"""Feast online stores that keep a row of a view as one value, beside all other rows of the same entity.

Feast's own stores keep a value per feature, each a protobuf message, and do not look at the TTL. Here a row
is one value (`qiance.features.packed`), all rows of a user lie together, and what is older than its TTL is
not found. Feast writes and reads as ever, by `materialize`, `push` and `get_online_features`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel

from qiance.features.packed import RowLayout
from qiance.features.partition import Partition
from qiance.features.rows import RedisRows, Row, SqliteRows, field_of, partition_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
WriteRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
ReadRow = tuple[datetime | None, dict[str, Value] | None]

# Feast's type → the field of its protobuf message; arrays have their numbers in `.val`.
_MESSAGE_FIELDS = {
    "Float64": "double_val",
    "Float32": "float_val",
    "Int64": "int64_val",
    "Int32": "int32_val",
    "Bool": "bool_val",
    "String": "string_val",
    "Array(Float64)": "double_list_val",
    "Array(Float32)": "float_list_val",
    "Array(Int64)": "int64_list_val",
    "Array(Int32)": "int32_list_val",
    "Array(String)": "string_list_val",
}


def layout_of(view: FeatureView) -> RowLayout:
    """How rows of `view` are packed."""
    return RowLayout.of(view.name, [(field.name, str(field.dtype)) for field in view.features])


class PackedOnlineStore(OnlineStore):
    """What both stores share: between Feast's messages and packed rows."""

    _rows: SqliteRows | RedisRows | None = None

    def rows(self, config: RepoConfig) -> SqliteRows | RedisRows:
        """The store of rows, opened at first use."""
        if self._rows is None:
            self._rows = self._open(config)
        return self._rows

    @abstractmethod
    def _open(self, config: RepoConfig) -> SqliteRows | RedisRows:
        """The store that the configuration names."""

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; one that is older than what is stored changes nothing."""
        layout = layout_of(table)
        packed = [_packed(layout, table, *row) for row in data]
        self.rows(config).put(packed)
        if progress:
            progress(len(packed))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Rows of the entities, (None, None) where there is none that is within the view's TTL."""
        layout = layout_of(table)
        places = [_place(table, key) for key in entity_keys]
        partitions = list(dict.fromkeys(partition for partition, _ in places))
        found = dict(zip(partitions, map(Partition, self.rows(config).get(partitions)), strict=True))
        oldest = 0 if not table.ttl else time.time_ns() // 1_000 - table.ttl // _MICROSECOND
        rows = (found[partition].get(field) for partition, field in places)
        return [_messages(layout, row, oldest, requested_features) for row in rows]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make what is needed, and forget the views that were deleted."""
        rows = self.rows(config)
        if isinstance(rows, SqliteRows):
            rows.create()
        for view in tables_to_delete:
            rows.delete_view(view.name)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove everything of the project."""
        self.rows(config).drop()


class PackedSqliteOnlineStoreConfig(FeastConfigBaseModel):
    """path: the file, relative to the folder of feature_store.yaml."""

    type: Literal["feature_repo.packed_store.PackedSqliteOnlineStore"] = (
        "feature_repo.packed_store.PackedSqliteOnlineStore"
    )
    path: str = "online.db"


class PackedSqliteOnlineStore(PackedOnlineStore):
    """Packed rows in one SQLite file: the embedded default."""

    def _open(self, config: RepoConfig) -> SqliteRows:
        path = Path(config.online_store.path)
        return SqliteRows(
            path if path.is_absolute() else Path(config.repo_path or ".") / path, config.project
        )


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):
    """connection_string: `host:port,password=…,ssl=true`; timeout_s bounds each wait of a write."""

    type: Literal["feature_repo.packed_store.PackedRedisOnlineStore"] = (
        "feature_repo.packed_store.PackedRedisOnlineStore"
    )
    connection_string: str = "localhost:6379"
    timeout_s: float = 5.0


class PackedRedisOnlineStore(PackedOnlineStore):
    """Packed rows in Redis, a hash per entity: for many replicas."""

    def _open(self, config: RepoConfig) -> RedisRows:
        return RedisRows(config.online_store.connection_string, config.project, config.online_store.timeout_s)


def _place(view: FeatureView, key: EntityKey) -> tuple[str, str]:
    """(partition, field) of an entity key; the view's first key names the partition."""
    values = {name: _plain(value) for name, value in zip(key.join_keys, key.entity_values, strict=True)}
    first, *others = view.join_keys
    return partition_of(first, values[first]), field_of(view.name, [(name, values[name]) for name in others])


def _packed(
    layout: RowLayout,
    view: FeatureView,
    key: EntityKey,
    values: dict[str, Value],
    event: datetime,
    created: datetime | None,
) -> Row:
    partition, field = _place(view, key)
    plain = {name: _unwrap(values[name], kind) for name, kind in layout.fields if name in values}
    return Row(partition, field, layout.pack(_micros(event), _micros(created or event), plain))


def _messages(layout: RowLayout, row: bytes | None, oldest: int, requested: Sequence[str] | None) -> ReadRow:
    if row is None or (values := layout.unpack(row)) is None:
        return None, None
    event = int(layout.records([row])["event"][0])
    if event < oldest:
        return None, None
    wanted = [pair for pair in layout.fields if requested is None or pair[0] in requested]
    return EPOCH + event * _MICROSECOND, {name: _wrap(values[name], kind) for name, kind in wanted}


def _micros(moment: datetime) -> int:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // _MICROSECOND


def _plain(message: Value) -> Any:
    return getattr(message, message.WhichOneof("val"))


def _unwrap(message: Value, kind: str) -> Any:
    """The value in Feast's message; None where it holds none; other types as they are serialised."""
    field = message.WhichOneof("val")
    if field is None or field == "null_val":
        return None
    if kind not in _MESSAGE_FIELDS:
        return message.SerializeToString()
    value = getattr(message, field)
    return value.val if kind.startswith("Array") else value


def _wrap(value: Any, kind: str) -> Value:
    message = Value()
    if value is None:
        return message
    if kind not in _MESSAGE_FIELDS:
        message.ParseFromString(value)
    elif kind.startswith("Array"):
        target = getattr(message, _MESSAGE_FIELDS[kind])
        target.val.extend(value)
        target.SetInParent()  # an empty list is a list, not a null
    else:
        setattr(message, _MESSAGE_FIELDS[kind], bool(value) if kind == "Bool" else value)
    return message
