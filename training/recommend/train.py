"""From a file of purchase sequences to a folder with a judged recommender."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact
from qiance.artifacts.recommend import Recommender
from training.recommend.fit import Fitted, RecommendSettings, Tell, fit_recommender
from training.recommend.judge import by_popularity, quality, ranks
from training.recommend.model import write_recommender
from training.recommend.sequences import Purchases, leave_out

METRICS = "metrics.json"


@dataclass(frozen=True)
class TrainedRecommender:
    """The artifact, the fit, and what metrics.json holds."""

    artifact: Artifact
    fitted: Fitted
    metrics: Mapping[str, Any]


def train_recommender(
    purchases: Purchases, out: Path, settings: RecommendSettings | None = None, tell: Tell | None = None
) -> TrainedRecommender:
    """Fit, judge on the last purchase of each user, and write the artifact and metrics.json into `out`."""
    chosen = settings or RecommendSettings()
    fitted = fit_recommender(purchases, chosen, tell)
    judged, items = leave_out(purchases, 1), len(purchases.items)
    figures = quality(ranks(fitted.scorer, judged))
    beside = {name: quality(ranks(one, judged)) for name, one in fitted.parts().items()}
    beside["popularity"] = quality(by_popularity(judged, items))
    card = {
        "purpose": "ranks the items that a customer buys next, from the order of what was bought before",
        "data": {
            "fingerprint": purchases.fingerprint,
            "users": len(purchases),
            "items": items,
            "purchases": sum(map(len, purchases.rows)),
        },
        "method": {
            "network": asdict(fitted.network.config),
            "neighbours": fitted.scorer.weight,
            "settings": asdict(chosen),
        },
        "judged_on": {"last purchase of each user, among all items": figures, **beside},
        "limits": [
            "learned from all purchases but the last two of each user",
            "knows of no price, stock or margin, and of no item that nobody bought",
        ],
    }
    bought = np.bincount(np.concatenate(judged.rows), minlength=items + 1)[1:]
    out.mkdir(parents=True, exist_ok=True)
    recommender = Recommender(fitted.scorer, purchases.items, bought)
    artifact = write_recommender(out, recommender, figures, card, purchases.fingerprint)
    metrics = {
        **figures,
        "beside": beside,
        "neighbours": {"share": fitted.scorer.weight, "ndcg10_by_share": fitted.mixed},
        "model": artifact.path.name,
        "history": fitted.history,
        "seconds": round(fitted.seconds, 1),
        "settings": asdict(chosen),
    }
    write_json(out / METRICS, metrics, indent=2)  # last: it names what the folder holds
    return TrainedRecommender(artifact, fitted, metrics)
