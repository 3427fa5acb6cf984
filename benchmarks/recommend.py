"""The next purchase of a user among all items: the sequence model on the Amazon Beauty file, leave-one-out.

The last purchase of each user is judged, the one before it says when training stops, the rest is learned
from; what the user bought before the last is known when it is predicted, as in the published figures. They
are quoted, not measured here. Measured beside are the network alone, the neighbours alone, and popularity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Args, Mode, emit, log, parse
from qiance.evaluate.inference import bootstrap_interval, units_of
from training.recommend.fit import RecommendSettings, fit_recommender
from training.recommend.judge import by_popularity, quality, ranks
from training.recommend.sequences import leave_out, read_sequences

PLACES = (
    ROOT / ".bench" / "recommend" / "Beauty.txt.gz",
    ROOT.parent / "shared" / "data" / "amazon_beauty" / "Beauty.txt.gz",
)
KEYS = ("hr5", "ndcg5", "hr10", "ndcg10", "train_s")
# Of 22,363 users and all items: Kang and McAuley (2018) and Chen et al. (2022), as the latter reports both.
PUBLISHED = {
    "sasrec_published": {"hr5": 0.0387, "ndcg5": 0.0249, "hr10": 0.0605, "ndcg10": 0.0318},
    "iclrec_published": {"hr5": 0.0500, "ndcg5": 0.0326, "hr10": 0.0744, "ndcg10": 0.0403},
}


def find_data() -> Path | None:
    """The purchase sequences where they are kept, None where they are not there."""
    return next((place for place in PLACES if place.exists()), None)


def measure(path: Path, args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures, what stands beside them, protocol."""
    purchases = read_sequences(path).some(args.pick(smoke=600, quick=None, full=None))
    settings = RecommendSettings(epochs=args.pick(smoke=2, quick=4, full=60), seed=args.seed)
    fitted = fit_recommender(purchases, settings, lambda _share, text: log(f"  {text}"))
    judged = leave_out(purchases, 1)
    rank = ranks(fitted.scorer, judged)
    users = units_of("user", None, len(rank))
    _, low, high = bootstrap_interval((rank <= 10).astype(np.float64), users, 0.95, args.seed)
    figures: dict[str, Any] = {
        **quality(rank),
        "train_s": fitted.seconds,
        "hr10_low": low,
        "hr10_high": high,
        "parameters": sum(value.numel() for value in fitted.network.parameters()),
    }
    beside = {name: quality(ranks(one, judged)) for name, one in fitted.parts().items()}
    beside["popularity"] = quality(by_popularity(judged, len(purchases.items)))
    if args.mode is not Mode.SMOKE:  # a part of the users is another problem than the published one
        beside |= PUBLISHED
    figures |= {f"vs_{name}": _ratio(figures, own) for name, own in beside.items()}
    protocol = {
        "users": len(purchases),
        "items": len(purchases.items),
        "purchases": sum(map(len, purchases.rows)),
        "settings": {name: getattr(settings, name) for name in settings.__slots__},
        "epochs": len(fitted.history),
        "best_on_validation": fitted.best,
        "neighbours": {"share": fitted.scorer.weight, "ndcg10_on_validation": fitted.mixed},
        "interval": "95 % by the bootstrap over users",
        "published": "quoted from Chen et al. (2022), Intent Contrastive Learning; not run here",
    }
    return figures, beside, protocol


def _ratio(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float | None:
    return ours["ndcg10"] / theirs["ndcg10"] if theirs["ndcg10"] > 0 else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "The next purchase among all items, on the Amazon Beauty sequences.")
    path = find_data()
    if path is None:
        reason = f"the sequences are not here; put Beauty.txt.gz into {PLACES[0].parent.relative_to(ROOT)}"
        log(reason)
        emit(
            "recommend", args, dict.fromkeys(KEYS), {"popularity": None}, {"missing": {"popularity": reason}}
        )
        return
    emit("recommend", args, *measure(path, args))


if __name__ == "__main__":
    main()
