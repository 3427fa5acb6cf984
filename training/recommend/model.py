"""The recommender as an artifact: weights, the shop's own item ids, and a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qiance.artifacts.json_file import write_json
from qiance.artifacts.manifest import Artifact, ArtifactError, load_manifest, write_artifact
from training.recommend.neighbours import Neighbours
from training.recommend.network import NetworkConfig, SequenceNetwork
from training.recommend.scorer import Scorer
from training.recommend.sequences import Ints

KIND = "recommend-model"
WEIGHTS, ITEMS, CARD = "weights.safetensors", "items.json", "card.json"
_NEAR, _PARTS = "neighbours.", ("data", "indices", "indptr")


@dataclass(frozen=True, slots=True)
class Recommended:
    """items: ids, best first. chance: of each to be next, among all not bought yet. cold: nothing of the
    history was known, so these are the most bought ones."""

    items: tuple[str, ...]
    chance: tuple[float, ...]
    cold: bool


class Recommender:
    """A scorer with the ids of its items. bought: `[V]` how often each was, for who is not known."""

    def __init__(self, scorer: Scorer, items: Sequence[str], bought: Ints) -> None:
        self.scorer, self.items, self.bought = scorer, tuple(items), bought
        self._code = {item: k for k, item in enumerate(self.items, start=1)}

    def recommend(self, history: Sequence[str], count: int) -> Recommended:
        """The `count` items that come next most likely; history: item ids, oldest first.

        Items that the model does not know are passed over; what was bought is not recommended again.
        """
        if count < 1:
            raise ValueError(f"count: {count} items are none; ask for at least 1")
        known = np.array([self._code[item] for item in history if item in self._code], dtype=np.int64)
        chance = self._chances(known)
        chance[known - 1] = 0.0
        chance /= max(float(chance.sum()), np.finfo(float).tiny)
        best = np.argsort(-chance, kind="stable")[: min(count, len(self.items) - len(set(known)))]
        found = tuple(float(value) for value in chance[best])
        return Recommended(tuple(self.items[k] for k in best), found, not len(known))

    def _chances(self, known: Ints) -> NDArray[np.float64]:
        """`[V]`."""
        if not len(known):
            return self.bought / self.bought.sum()
        return self.scorer.chances([known])[0].astype(np.float64)


def write_recommender(
    root: Path,
    recommender: Recommender,
    metrics: Mapping[str, float],
    card: Mapping[str, Any],
    data_fingerprint: str,
) -> Artifact:
    """The artifact `root/recommend-model-VERSION`."""
    from safetensors.torch import save_file

    scorer = recommender.scorer
    weights = {name: value.contiguous() for name, value in scorer.network.state_dict().items()}
    if scorer.neighbours is not None:
        similar = scorer.neighbours.similar
        weights |= {f"{_NEAR}{part}": torch.from_numpy(getattr(similar, part)) for part in _PARTS}
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


def load_recommender(path: Path) -> Recommender:
    """Read what `write_recommender` wrote; ArtifactError for a damaged artifact or one of another kind."""
    from safetensors.torch import load_file
    from scipy.sparse import csr_matrix

    manifest = load_manifest(path)
    if manifest.kind != KIND:
        raise ArtifactError(
            f"{path}: is of kind {manifest.kind!r}; pass a {KIND!r} of `qiance train recommend`"
        )
    document = json.loads((path / ITEMS).read_text(encoding="utf-8"))
    weights, count = load_file(path / WEIGHTS), len(document["items"])
    near = [weights.pop(f"{_NEAR}{part}", None) for part in _PARTS]
    network = SequenceNetwork(NetworkConfig(**document["network"]))
    network.load_state_dict(weights)
    neighbours = None
    if all(part is not None for part in near):
        similar = csr_matrix(tuple(part.numpy() for part in near), shape=(count, count))
        neighbours = Neighbours(similar)
    scorer = Scorer(network.eval(), neighbours, float(document["neighbours"]))
    return Recommender(scorer, document["items"], np.array(document["bought"], dtype=np.int64))
