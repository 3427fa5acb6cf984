"""A brief over a catalogue of any size: time, memory, and how much the effect model is asked.

`python -m benchmarks.targeting.retrieval [--items 100000] [--sequence] [--run runs/latest]` needs a finished
`qiance run`: its users, purchases and effect model. Its catalogue is repeated under new ids, in categories of
its own for each repetition, until it has so many items. --sequence retrieves by a sequence model over all of
them, with random weights: what it costs, not what it finds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.copying.strategies import Shop
from benchmarks.harness import ROOT
from qiance.artifacts.recommend import Recommender, SequenceScorer
from qiance.decide.predictor import FramePredictor, GridPredictor
from qiance.domain import Action, Catalogue, EffectPredictor, GridPrediction, Item, StrategyKind
from qiance.market import CONTACT_COST
from qiance.strategy.demand import DayDemand
from qiance.strategy.propose import propose
from qiance.strategy.propose_request import Known
from qiance.strategy.retrieve import Purchases, SequenceRetriever
from qiance.workspace import Snapshot, Workspace
from serve.args import LlmArgs
from serve.generator.worker import Writer
from training.recommend.network import NetworkConfig, NextItem, SequenceNetwork

WIDTH, BLOCKS, HEADS, LENGTH = 64, 2, 2, 50  # as `qiance train recommend` has them
SEED = 0


class Counting:
    """A predictor that counts what it is asked."""

    def __init__(self, predictor: EffectPredictor) -> None:
        self._predictor, self.cells, self.items = predictor, 0, set[str | None]()

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """See `EffectPredictor`."""
        self.cells += len(user_ids) * len(actions)
        self.items |= {action.item_id for action in actions}
        return self._predictor.predict(user_ids, actions)


def inflated(snapshot: Snapshot, items: int) -> Snapshot:
    """The snapshot with its catalogue repeated until it has `items` items; nobody has bought of the copies'
    categories."""
    own, times = len(snapshot.catalogue), -(-items // len(snapshot.catalogue))
    copies = [_copy(item, turn) for turn in range(times) for item in snapshot.catalogue][:items]
    rng = np.random.default_rng(SEED)
    factor = np.append(np.ones(own), rng.lognormal(0.0, 0.5, max(items - own, 0)))[:items]
    features = {name: np.tile(values, times)[:items] for name, values in snapshot.item.items()}
    features["units_28d"] = features["units_28d"] * factor
    return replace(snapshot, catalogue=Catalogue(tuple(copies)), item=features)


def _copy(item: Item, turn: int) -> Item:
    if turn == 0:
        return item
    return replace(item, item_id=f"{item.item_id}.{turn}", category=f"{item.category} {turn}")


def retriever_of(catalogue: Catalogue, purchases: Path) -> SequenceRetriever:
    """A sequence model over all items with random weights."""
    torch.manual_seed(SEED)
    size = len(catalogue)
    network = NextItem(SequenceNetwork(NetworkConfig(size, WIDTH, BLOCKS, HEADS, LENGTH))).eval()
    scorer = SequenceScorer(network, LENGTH)
    model = Recommender(scorer, list(catalogue.index), np.ones(size, dtype=np.int64), "random")
    everybody = Purchases(purchases, lambda users: np.ones(len(users), dtype=np.bool_))
    return SequenceRetriever(model, catalogue, everybody)


def measure(run: Path, items: int, sequence: bool) -> dict[str, Any]:
    """Figures of one brief, its words by templates."""
    with ExitStack() as opened:
        return _measured(Shop.open(run, opened), Workspace(run), items, sequence)


def _measured(shop: Shop, workspace: Workspace, items: int, sequence: bool) -> dict[str, Any]:
    snapshot = inflated(shop.snapshot, items)
    grid = GridPredictor(shop.model, snapshot.catalogue, snapshot.item, snapshot.categories)
    predictor = Counting(FramePredictor(grid, snapshot.users, snapshot.user_category))
    retriever = retriever_of(snapshot.catalogue, workspace.data / "events.parquet") if sequence else None
    writer = Writer(None, LlmArgs(enabled=False), SEED, lambda _share, _text: None, shop.guard)
    before, started = _peak(), time.monotonic()
    found = propose(
        replace(shop.brief(), languages=("en",)),
        snapshot.catalogue,
        snapshot.users,
        snapshot.user_category["category_share"],
        snapshot.categories,
        predictor,
        writer,
        contact_cost=CONTACT_COST,
        popularity=snapshot.item["units_28d"],
        known=Known(snapshot.item["stock"], DayDemand.load(workspace.snapshot)),
        retriever=retriever,
        seed=SEED,
    )
    return {
        "items": items,
        "users": len(snapshot.users),
        "retrieved_by": found[0].provenance["item"],
        "strategies": len(found),
        "kinds": len({strategy.kind for strategy in found} & set(StrategyKind)),
        "seconds": round(time.monotonic() - started, 2),
        "peak_mib_before": round(before),
        "peak_mib": round(_peak()),
        "items_asked_about": len(predictor.items),
        "users_x_actions_predicted": predictor.cells,
        "cpus": os.cpu_count(),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targeting.retrieval", description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "latest", help="a finished run")
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalogue")
    parser.add_argument("--sequence", action="store_true", help="retrieve by a sequence model")
    args = parser.parse_args(argv)
    print(json.dumps(measure(args.run.resolve(), args.items, args.sequence), indent=1))


if __name__ == "__main__":
    main()
