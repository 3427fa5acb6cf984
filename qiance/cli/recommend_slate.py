"""A slate for one user of a run: the sequence model retrieves, the effect model ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qiance.data.errors import DataError
from qiance.domain import Action, Channel, Creative, Item, Offer, OfferKind, StrategyKind
from qiance.workspace import Snapshot, Workspace

RETRIEVED = 100  # items of the catalogue that the sequence model hands on


@dataclass(frozen=True, slots=True)
class SlateRequest:
    """Who sees what where. diversity: see `rank_slate`. stock: file with `item_id` and `stock`."""

    user: str
    channel: Channel
    count: int
    diversity: float
    stock: Path | None


def slate_for(model: Path, workspace: Workspace, request: SlateRequest) -> dict[str, Any]:
    """The slate and where it comes from, for JSON; DataError where the run or the user is not there."""
    from qiance.artifacts.recommend import load_recommender
    from qiance.strategy.slate import rank_slate

    snapshot = _snapshot(workspace)
    history = _history(workspace, request.user)
    recommender = load_recommender(model)
    found = recommender.recommend(history, len(recommender.items))
    there = None if request.stock is None else _in_stock(request.stock)
    chance = {
        item: share
        for item, share in zip(found.items, found.chance, strict=True)
        if item in snapshot.catalogue.index and (there is None or item in there)
    }
    items = [snapshot.catalogue[item] for item in list(chance)[:RETRIEVED]]
    added, version = _added(workspace, snapshot, request, items)
    slate = rank_slate(added, [item.category for item in items], request.count, request.diversity)
    rows = [
        {
            "rank": rank,
            "item_id": items[place].item_id,
            "title": items[place].title,
            "category": items[place].category,
            "chance": round(chance[items[place].item_id], 8),
            "margin_added": round(float(added[place]), 2),
            "in_slate": round(value, 2),
        }
        for rank, (place, value) in enumerate(slate, start=1)
    ]
    return {
        "model": model.name,
        "champion": version,
        "user": request.user,
        "bought": len(history),
        "cold": found.cold,
        "retrieved": len(items),
        "without_gain": int((added <= 0).sum()),
        "items": rows,
    }


def _snapshot(workspace: Workspace) -> Snapshot:
    if not workspace.snapshot.is_dir():
        raise DataError(workspace.root, "holds no run", "pass the folder of `qiance run` with --run")
    return Snapshot.load(workspace.snapshot)


def _history(workspace: Workspace, user: str) -> list[str]:
    """Items in the order in which the user first bought them."""
    import pyarrow.parquet as pq

    from training.recommend.events import COLUMNS, first_purchases

    path = workspace.data / "events.parquet"
    table = pq.read_table(path, columns=[*COLUMNS, "type"], filters=[("user_id", "=", user)])
    if not table.num_rows:
        raise DataError(path, f"has nothing of user {user!r}", "pass the id of a user of the run with --user")
    return [str(item) for item in first_purchases(table.to_pandas(), path)["item_id"]]


def _in_stock(path: Path) -> set[str]:
    import pandas as pd

    from qiance.data.tabular import column_names, read_raw, require_columns

    if not path.is_file():
        raise DataError(path, "does not exist", "pass a table with item_id and stock with --stock")
    require_columns(path, column_names(path), ("item_id", "stock"))
    frame = read_raw(path, ["item_id", "stock"]).table.to_pandas()
    left = pd.to_numeric(frame["stock"], errors="coerce")
    if left.isna().any():
        row = int(left.isna().to_numpy().argmax())
        raise DataError(path, f"stock: {frame['stock'].iloc[row]!r} is no number", "write how many are left")
    return set(frame["item_id"][left > 0].astype(str))


def _added(
    workspace: Workspace, snapshot: Snapshot, request: SlateRequest, items: list[Item]
) -> tuple[np.ndarray, str]:
    """`[n]` minor units of margin that showing each item adds, and the champion's version.

    The contact itself costs the same whatever the slate holds, so that it is left out.
    """
    from qiance.artifacts.effect import EffectModel
    from qiance.cli.contest import SERVED
    from qiance.decide.predictor import FramePredictor, GridPredictor
    from qiance.features.columns import EFFECT_SCHEMA
    from training.registry import find

    champion = find(workspace.tracking_url, SERVED, "champion")
    model = EffectModel.load(champion.path, EFFECT_SCHEMA)
    grid = GridPredictor(model, snapshot.catalogue, snapshot.item, snapshot.categories)
    predictor = FramePredictor(grid, snapshot.users, snapshot.user_category)
    if not items:
        return np.zeros(0), champion.artifact_version
    actions = [_shown(item, request.channel) for item in items]
    found = predictor.predict([request.user], actions)
    added = (found.margin - found.control_margin[:, None, :]).mean(axis=2, dtype=np.float64)[0]
    return added, champion.artifact_version


def _shown(item: Item, channel: Channel) -> Action:
    creative = Creative(channel, "en", "Now in store: {product}", "{product}, chosen for you.", "See it")
    offer = Offer(OfferKind.NONE)
    return Action(
        f"slate:{item.item_id}",
        "slate",
        StrategyKind.RECOMMENDATION,
        item.item_id,
        offer,
        creative,
        channel,
        0,
    )
