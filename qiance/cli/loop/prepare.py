"""Logs in, features out: canonical tables, feature tables, the online store, the snapshot."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qiance.cli.loop.people import GIVEN_BY, drop_erased, record_given_consent, users_for
from qiance.cli.stages import Stage
from qiance.data.complete_journey import read_complete_journey
from qiance.data.ingest import IngestReport
from qiance.domain import Purpose
from qiance.features.transforms import EventIndex
from qiance.ledger import Ledger
from qiance.market.catalogue import select_catalogue
from qiance.settings import Settings
from qiance.strategy.demand import DayDemand
from qiance.workspace import Snapshot, Workspace

ITEM_TEXT = "item_text"
ONLINE_CONFIG = {"sqlite": "feature_store.yaml", "redis": "feature_store.redis.yaml"}


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


def prepare(
    workspace: Workspace, report: IngestReport, settings: Settings, ledger: Ledger, stage: Stage
) -> Prepared:
    """Feature tables at regular instants, applied and materialised; the latest values as the snapshot.

    Only of users who agree to personalisation, and without what erased users did.
    """
    from training.featurise import (
        materialise,
        snapshot_at,
        snapshot_days,
        stage_repository,
        write_feature_tables,
    )

    stage.tell(0.05, "indexing events")
    items = pq.read_table(workspace.data / "items.parquet")
    events = drop_erased(ledger, pq.read_table(workspace.data / "events.parquet"), "occurred_at")
    users = _users(workspace, settings, ledger, stage)
    events = events.filter(pc.is_in(events["user_id"], value_set=pa.array(users, pa.string())))
    catalogue, categories = select_catalogue(items)
    # In this process, by the functions that `qiance features build` spreads over Ray Data: the default data
    # is one bucket of users, done in less time than a cluster needs to start.
    index = EventIndex.build(
        events,
        users,
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
    stage_repository(workspace.features, ONLINE_CONFIG[settings.features.online])
    snapshot = snapshot_at(index, catalogue, days[-1], stock)
    if settings.features.embeddings:
        stage.tell(0.6, "embedding the items' texts")
        _embed(workspace, items, catalogue, snapshot.as_of, stage)
    stage.tell(0.7, "materialising the online store")
    materialise(workspace.features, snapshot.as_of)
    DayDemand.of(events, {item.item_id: item.category for item in catalogue}).save(workspace.snapshot)
    snapshot.save(workspace.snapshot)  # last: a service that waits for it finds everything online
    stage.note(
        f"{len(snapshot.users):,} users, {len(catalogue)} items in {len(categories)} categories, "
        f"{len(days)} instants up to {snapshot.as_of:%Y-%m-%d}"
    )
    contacts = drop_erased(ledger, pq.read_table(workspace.data / "contacts.parquet"), "contacted_at")
    return Prepared(report, snapshot, contacts)


def _users(workspace: Workspace, settings: Settings, ledger: Ledger, stage: Stage) -> list[str]:
    """Users whose features may be used, by id."""
    everybody = pq.read_table(workspace.data / "users.parquet")["user_id"].to_pylist()
    given = record_given_consent(ledger, everybody)
    if given:
        stage.note(f"{given:,} users agreed by the {GIVEN_BY}; your shop records consent itself")
    unrecorded = settings.privacy.unrecorded
    users = users_for(ledger, everybody, Purpose.PERSONALISATION, unrecorded)
    if not users:
        raise ValueError(
            f"consent: none of {len(everybody):,} users agrees to personalisation; record it with "
            "`qiance users consent`, or set privacy.unrecorded_consent: granted if they agreed elsewhere"
        )
    return users


def _embed(workspace: Workspace, items: Any, catalogue: Any, as_of: datetime, stage: Stage) -> None:
    """Embed the catalogue's texts; without the model's package the loop goes on and says so."""
    from qiance.artifacts.encoder_weights import ModelUnavailableError
    from qiance.features.embedding_spec import find_embedding, load_embeddings
    from training.embed.local import embed_items

    spec = find_embedding(load_embeddings(workspace.features / "embeddings.yaml"), ITEM_TEXT)
    sold = items.filter(pc.is_in(items["item_id"], value_set=pa.array(list(catalogue.index), pa.string())))
    try:
        report = embed_items(workspace.features, sold, spec, as_of)
    except ModelUnavailableError as error:
        stage.note(f"texts of items are not embedded: {error}")
    else:
        stage.note(f"{report.lines:,} items embedded in {spec.dimension} numbers")


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
