"""Logs in, features out: canonical tables, feature tables, the online store, the snapshot."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from qiance.cli.stages import Stage
from qiance.data.complete_journey import read_complete_journey
from qiance.data.ingest import IngestReport
from qiance.features.transforms import EventIndex
from qiance.market.catalogue import select_catalogue
from qiance.settings import Settings
from qiance.workspace import Snapshot, Workspace


@dataclass(frozen=True)
class Prepared:
    """What the later steps start from; `contacts` is the shop's real campaign log."""

    report: IngestReport
    snapshot: Snapshot
    contacts: Any


def ingest(workspace: Workspace, settings: Settings, stage: Stage) -> IngestReport:
    """Read and check the shop's logs."""
    report = read_complete_journey(
        settings.data.path,
        out=workspace.data,
        cost_fraction=settings.data.brand_cost_fraction or None,
        progress=lambda what, done: stage.tell(done, what),
    )
    for table in report.tables:
        stage.note(f"{table.table}: {table.rows_read:,} rows read, {table.quarantined:,} quarantined")
    return report


def prepare(workspace: Workspace, report: IngestReport, stage: Stage) -> Prepared:
    """Feature tables at regular instants, applied and materialised; the latest values as the snapshot."""
    from training.featurise import (
        materialise,
        snapshot_at,
        snapshot_days,
        stage_repository,
        write_feature_tables,
    )

    stage.tell(0.05, "indexing events")
    items = pq.read_table(workspace.data / "items.parquet")
    users = pq.read_table(workspace.data / "users.parquet")
    events = pq.read_table(workspace.data / "events.parquet")
    catalogue, categories = select_catalogue(items)
    # In this process, by the functions that `qiance features build` spreads over Ray Data: the default data
    # is one bucket of users, done in less time than a cluster needs to start.
    index = EventIndex.build(
        events,
        users["user_id"].to_pylist(),
        _by_item(items, "category"),
        catalogue,
        categories,
        _by_item(items, "brand"),
    )
    days, stock = snapshot_days(index), _by_item(items, "stock")
    write_feature_tables(
        index,
        catalogue,
        days,
        workspace.features,
        lambda done, what: stage.tell(0.2 + 0.3 * done, what),
        stock,
    )
    stage.tell(0.5, "applying the feature repository")
    stage_repository(workspace.features)
    snapshot = snapshot_at(index, catalogue, days[-1], stock)
    snapshot.save(workspace.snapshot)
    stage.tell(0.7, "materialising the online store")
    materialise(workspace.features, snapshot.as_of)
    stage.note(
        f"{len(snapshot.users):,} users, {len(catalogue)} items in {len(categories)} categories, "
        f"{len(days)} instants up to {snapshot.as_of:%Y-%m-%d}"
    )
    return Prepared(report, snapshot, pq.read_table(workspace.data / "contacts.parquet"))


def _by_item(items: Any, column: str) -> dict[str, Any]:
    """The values of a column that are there, by item id; none if the table has no such column."""
    if column not in items.column_names:
        return {}
    pairs = zip(items["item_id"].to_pylist(), items[column].to_pylist(), strict=True)
    return {item_id: value for item_id, value in pairs if value is not None}


def new_workspace(runs: Path) -> Workspace:
    """A fresh folder under `runs`, named by the time."""
    root = runs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    root.mkdir(parents=True, exist_ok=False)
    return Workspace(root.resolve())


def publish_latest(runs: Path, workspace: Workspace) -> None:
    """Point `runs/latest` at a finished run, in one step."""
    staging = runs / f".latest-{workspace.root.name}"
    staging.symlink_to(workspace.root.name)
    staging.replace(runs / "latest")
