"""What is bought next, from an artifact of `qiance train recommend`: transformer and neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.manifest import ArtifactError, Manifest, load_manifest
from qiance.artifacts.program import load_program

if TYPE_CHECKING:
    from torch import Tensor

KIND = "recommend-model"
NETWORK, NEIGHBOURS, ITEMS, CARD = "network.pt2", "neighbours.safetensors", "items.json", "card.json"
PARTS = ("data", "indices", "indptr")  # of the neighbours' sparse matrix
_RECENT = 0.7  # weight of a purchase beside the next later one

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Scores(Protocol):
    """Whatever tells what is bought next."""

    def chances(self, rows: Sequence[Ints]) -> Floats:
        """`[b, V]` of the items 1..V; rows: items bought, oldest first, at least one."""
        ...


@dataclass(frozen=True)
class Neighbours:
    """similar: sparse `[V, V]`, cosine of how often two items were bought near each other."""

    similar: Any

    def chances(self, rows: Sequence[Ints]) -> Floats:
        """`[b, V]` similarity to what was bought, the latest most, in shares of 1; 0 where there is none."""
        from scipy.sparse import csr_matrix

        weight = np.concatenate([_RECENT ** np.arange(len(row) - 1.0, -1.0, -1.0) for row in rows])
        user = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        shape = (len(rows), self.similar.shape[0])
        bought = csr_matrix((weight, (user, np.concatenate(rows) - 1)), shape=shape)
        found = np.asarray((bought @ self.similar).toarray(), dtype=np.float32)
        total = found.sum(axis=1, keepdims=True)
        return np.asarray(found / np.where(total > 0, total, 1.0), dtype=np.float32)


def padded(rows: Sequence[Ints], length: int) -> Ints:
    """`[b, t]` the last `length` items of each row, 0 after them; t is that of the longest."""
    cut = [row[-length:] for row in rows]
    table = np.zeros((len(cut), max(len(row) for row in cut)), dtype=np.int64)
    for place, row in enumerate(cut):
        table[place, : len(row)] = row
    return table


@dataclass(frozen=True)
class SequenceScorer:
    """A network over what was bought, mixed with the neighbours.

    network: `[b, t]` item numbers, 0 after the last, to `[b, V]` scores of what comes next; it looks back on
    `length` items. weight: share of the neighbours, in [0, 1]; 0 is the network alone.
    """

    network: Callable[[Tensor], Tensor]
    length: int
    neighbours: Neighbours | None = None
    weight: float = 0.0

    def chances(self, rows: Sequence[Ints]) -> Floats:
        """See `Scores`."""
        near = self.neighbours if self.weight else None
        if near is not None and self.weight == 1.0:
            return near.chances(rows)
        alone = self._alone(rows)
        if near is None:
            return alone
        weight = np.float32(self.weight)
        return np.asarray((1 - weight) * alone + weight * near.chances(rows))

    def _alone(self, rows: Sequence[Ints]) -> Floats:
        import torch

        with torch.inference_mode():
            scores = self.network(torch.from_numpy(padded(rows, self.length)))
            return np.asarray(torch.softmax(scores, dim=1).numpy())


@dataclass(frozen=True, slots=True)
class Recommended:
    """items: ids, best first. chance: of each to be next, among all not bought yet. cold: nothing of the
    history was known, so these are the most bought ones."""

    items: tuple[str, ...]
    chance: tuple[float, ...]
    cold: bool


class Recommender:
    """A scorer with the ids of its items. bought: `[V]` how often each was, for who is not known. version: of
    the artifact that it was read from."""

    def __init__(self, scorer: Scores, items: Sequence[str], bought: Ints, version: str = "") -> None:
        self.scorer, self.items, self.bought, self.version = scorer, tuple(items), bought, version
        self._code = {item: k for k, item in enumerate(self.items, start=1)}

    def recommend(self, history: Sequence[str], count: int) -> Recommended:
        """The `count` items that come next most likely; history: item ids, oldest first.

        Items that the model does not know are passed over; what was bought is not recommended again.
        """
        if count < 1:
            raise ValueError(f"count: {count} items are none; ask for at least 1")
        known = self._known(history)
        chance = self.chances([history])[0]
        best = np.argsort(-chance, kind="stable")[: min(count, len(self.items) - len(set(known)))]
        found = tuple(float(value) for value in chance[best])
        return Recommended(tuple(self.items[k] for k in best), found, not len(known))

    def chances(self, histories: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """`[b, V]` chance of each item to be next among those not bought yet; histories: as above."""
        known = [self._known(history) for history in histories]
        warm = [place for place, row in enumerate(known) if len(row)]
        found = np.tile(self.bought / self.bought.sum(), (len(known), 1))
        if warm:
            found[warm] = self.scorer.chances([known[place] for place in warm])
        for place in warm:
            found[place, known[place] - 1] = 0.0
        return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), np.finfo(float).tiny))

    def _known(self, history: Sequence[str]) -> Ints:
        return np.array([self._code[item] for item in history if item in self._code], dtype=np.int64)


def load_recommender(path: Path) -> Recommender:
    """Read an artifact of `qiance train recommend`; ArtifactError for a damaged one or another kind."""
    manifest = load_manifest(path, KIND, "qiance train recommend")
    try:
        return _read(path, manifest)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: cannot be read as a recommender ({error}); train it again") from None


def _read(path: Path, manifest: Manifest) -> Recommender:
    document = json.loads((path / ITEMS).read_text(encoding="utf-8"))
    scorer = SequenceScorer(
        load_program(path / NETWORK),
        int(document["length"]),
        _read_neighbours(path / NEIGHBOURS, len(document["items"])),
        float(document["neighbours"]),
    )
    bought = np.array(document["bought"], dtype=np.int64)
    return Recommender(scorer, document["items"], bought, manifest.version)


def _read_neighbours(path: Path, items: int) -> Neighbours | None:
    from safetensors.numpy import load_file
    from scipy.sparse import csr_matrix

    if not path.exists():
        return None
    parts = load_file(path)
    return Neighbours(csr_matrix(tuple(parts[part] for part in PARTS), shape=(items, items)))
