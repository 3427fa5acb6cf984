"""Writes the recommender as an artifact: network, neighbours, the shop's own item ids, and a model card."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, write_artifact
from qiance.artifacts.program import export_program
from qiance.artifacts.recommend import (
    CARD,
    ITEMS,
    KIND,
    NEIGHBOURS,
    NETWORK,
    PARTS,
    Neighbours,
    Recommender,
    SequenceScorer,
)
from training.recommend.network import NextItem


def write_recommender(
    root: Path,
    recommender: Recommender,
    metrics: Mapping[str, float],
    card: Mapping[str, Any],
    data_fingerprint: str,
) -> Artifact:
    """The artifact `root/recommend-model-VERSION`; TypeError for a scorer that was not trained here."""
    scorer = recommender.scorer
    if not isinstance(scorer, SequenceScorer) or not isinstance(scorer.network, NextItem):
        raise TypeError(f"scorer: a {type(scorer).__name__} was not trained here")
    network, near = scorer.network, scorer.neighbours
    items = {
        "length": scorer.length,
        "neighbours": scorer.weight,
        "items": recommender.items,
        "bought": recommender.bought.tolist(),
    }
    files: dict[str, Callable[[Path], None]] = {
        NETWORK: lambda path: _export(network, path),
        ITEMS: lambda path: write_json(path, items),
        CARD: lambda path: write_json(path, card),
    }
    if near is not None:
        files[NEIGHBOURS] = lambda path: _write_neighbours(near, path)
    return write_artifact(
        root,
        KIND,
        files,
        metrics=metrics,
        feature_service="purchase_sequence",
        schema_hash=hashlib.sha256("\n".join(recommender.items).encode()).hexdigest(),
        data_fingerprint=data_fingerprint,
    )


def _export(network: NextItem, path: Path) -> None:
    example = torch.tensor([[1, 2, 3], [1, 2, 0]])
    export_program(network, {"items": example}, path, {"items": {0: "batch", 1: "length"}})


def _write_neighbours(neighbours: Neighbours, path: Path) -> None:
    save_file({part: getattr(neighbours.similar, part) for part in PARTS}, path)
