"""Real households in the simulated market, and an effect model that learned from a log of old campaigns.

Users, catalogue and features are The Complete Journey's, by the product's own code; what contacts bring is
the market's. Features are those of the log's last day for the whole simulated log: the market's users do not
change while it is collected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.artifacts.effect import EffectModel
from qiance.cli.loop.learn import LABELS
from qiance.cli.loop.world import CONTROL_SHARE, World, seed_actions
from qiance.data.complete_journey import read_complete_journey
from qiance.decide.predictor import FramePredictor, GridPredictor
from qiance.domain import Action, Catalogue
from qiance.features.columns import EFFECT_SCHEMA, ActionColumns, assemble
from qiance.features.session import no_session
from qiance.features.transforms import EventIndex
from qiance.market import Market
from qiance.market.catalogue import select_catalogue
from qiance.market.simulate import MarketLog, collect_log
from qiance.workspace import Snapshot
from training.effect.fit import TrainSettings, train_effect
from training.effect.split import split_by_unit
from training.featurise import snapshot_at, snapshot_days


@dataclass(frozen=True)
class Learned:
    """The truth, untouched by the log's contacts, and what was learned of it."""

    market: Market
    predictor: FramePredictor
    rows: int


def journey(folder: Path) -> Snapshot:
    """Households and catalogue at the end of the real log; `folder` takes the canonical tables."""
    items = items_of(folder)
    users = pq.read_table(folder / "users.parquet")["user_id"].to_pylist()
    catalogue, categories = select_catalogue(items)
    of_category, of_brand = (
        {
            i: value
            for i, value in zip(items["item_id"].to_pylist(), items[name].to_pylist(), strict=True)
            if value
        }
        for name in ("category", "brand")
    )
    events = pq.read_table(folder / "events.parquet")
    index = EventIndex.build(events, users, of_category, catalogue, categories, of_brand)
    return snapshot_at(index, catalogue, snapshot_days(index)[-1], {})


def catalogue_of() -> Catalogue:
    """The products that the loop on The Complete Journey sells."""
    with tempfile.TemporaryDirectory() as folder:
        return select_catalogue(items_of(Path(folder)))[0]


def items_of(folder: Path) -> pa.Table:
    """All products, from the canonical tables that `folder` takes."""
    read_complete_journey(None, out=folder)
    return pq.read_table(folder / "items.parquet")


def learn(snapshot: Snapshot, seed: int, days: int, per_day: int, epochs: int, folder: Path) -> Learned:
    """A log of old campaigns in the market of `seed`, and the effect model trained on it."""
    world = World.open(snapshot, seed)
    table = world.market.table(seed_actions(snapshot.catalogue, seed))
    chances = np.full(len(table), (1.0 - CONTROL_SHARE) / (len(table) - 1))
    chances[0] = CONTROL_SHARE
    log = collect_log(
        world.market,
        table,
        lambda users, _: np.broadcast_to(chances, (len(users), len(table))),
        world.now,
        days,
        per_day,
        world.window,
        world.rng,
    )
    model = _train(snapshot, table.actions, log, TrainSettings(epochs=epochs, workers=0, seed=seed), folder)
    grid = GridPredictor(model, snapshot.catalogue, snapshot.item, snapshot.categories)
    predictor = FramePredictor(grid, snapshot.users, snapshot.user_category)
    return Learned(World.open(snapshot, seed).market, predictor, len(log))


def _train(
    snapshot: Snapshot, actions: Sequence[Action], log: MarketLog, settings: TrainSettings, folder: Path
) -> EffectModel:
    columns = training_columns(snapshot, actions, log.user, log.action, log.contacts_7d)
    labels = {name: getattr(log, name) for name in LABELS}
    trained = train_effect(
        pa.table({name: pa.array(values) for name, values in {**columns, **labels}.items()}),
        EFFECT_SCHEMA,
        labels=LABELS,
        split=split_by_unit(log.user, settings.seed),
        settings=settings,
        out=folder / "artifacts",
        storage=folder / "training",
        data_fingerprint=f"targeting-{settings.seed}",
        units=log.user,
    )
    return EffectModel.load(trained.artifact.path, EFFECT_SCHEMA)


def training_columns(
    snapshot: Snapshot, actions: Sequence[Action], user: Any, action: Any, contacts_7d: Any
) -> dict[str, Any]:
    """`[n]` per column of the effect schema; user and action: rows of the users table and of `actions`."""
    items, codes = snapshot.catalogue, {name: code for code, name in enumerate(snapshot.categories)}
    parts = ActionColumns.build(actions, items.index, [item.category for item in items])
    row, category = parts.item_row[action], parts.category[action]
    code = np.array([codes.get(name, -1) for name in category])
    known = (row >= 0) & (code >= 0)
    return assemble(
        user={n: v[user] for n, v in snapshot.users.columns.items()} | no_session(len(user)),
        item={name: np.where(row >= 0, values[row], np.nan) for name, values in snapshot.item.items()},
        user_category={
            name: np.where(known, values[user, code], np.nan)
            for name, values in snapshot.user_category.items()
        },
        actions=parts.columns(action),
        contacts_7d=contacts_7d,
    )
