"""Writes the recommender as an artifact: weights, the shop's own item ids, and a model card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, write_artifact
from qiance.artifacts.recommend import CARD, ITEMS, KIND, NEAR, PARTS, WEIGHTS, Recommender
from training.recommend.scorer import Scorer


def write_recommender(
    root: Path,
    recommender: Recommender,
    metrics: Mapping[str, float],
    card: Mapping[str, Any],
    data_fingerprint: str,
) -> Artifact:
    """The artifact `root/recommend-model-VERSION`; TypeError for a scorer that was not trained here."""
    from safetensors.torch import save_file

    scorer = recommender.scorer
    if not isinstance(scorer, Scorer):
        raise TypeError(f"scorer: a {type(scorer).__name__} was not trained here")
    weights = {name: value.contiguous() for name, value in scorer.network.state_dict().items()}
    if scorer.neighbours is not None:
        similar = scorer.neighbours.similar
        weights |= {f"{NEAR}{part}": torch.from_numpy(getattr(similar, part)) for part in PARTS}
    items = {
        "network": asdict(scorer.network.config),
        "neighbours": scorer.weight,
        "items": recommender.items,
        "bought": recommender.bought.tolist(),
    }
    files: dict[str, Callable[[Path], None]] = {
        WEIGHTS: lambda path: save_file(weights, path),
        ITEMS: lambda path: write_json(path, items),
        CARD: lambda path: write_json(path, card),
    }
    return write_artifact(
        root,
        KIND,
        files,
        metrics=metrics,
        feature_service="purchase_sequence",
        schema_hash=hashlib.sha256("\n".join(recommender.items).encode()).hexdigest(),
        data_fingerprint=data_fingerprint,
    )
