"""Retrieval: which few of many items are worth asking the effect model about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from qiance.data.errors import DataError
from qiance.domain import Catalogue

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Histories = Callable[[Sequence[str]], Sequence[Sequence[str]]]

MAX_ASKED = 128  # users whose purchases are looked at
_TOGETHER = 16  # users × items of a large catalogue fill memory


class Retriever(Protocol):
    """Whatever tells which items users buy next."""

    @property
    def version(self) -> str:
        """Of the model."""
        ...

    def chances(self, user_ids: Sequence[str]) -> Floats:
        """`[I]` mean chance over the users that an item of the catalogue is bought next; 0: not known."""
        ...


class SequenceModel(Protocol):
    """A trained model of purchase sequences, as this room needs it."""

    items: tuple[str, ...]
    version: str

    def chances(self, histories: Sequence[Sequence[str]]) -> Floats:
        """`[b, V]` chance of each of its items to be next; histories: item ids, oldest first."""
        ...


class SequenceRetriever:
    """A sequence model over the items of a catalogue. histories: what users bought, oldest first.

    Raises ValueError where the model knows no item of the catalogue.
    """

    def __init__(self, model: SequenceModel, catalogue: Catalogue, histories: Histories) -> None:
        self._model, self._histories, self._size = model, histories, len(catalogue)
        rows = np.array([catalogue.index.get(item, -1) for item in model.items], dtype=np.int64)
        self._known, self._rows = np.flatnonzero(rows >= 0), rows[rows >= 0]
        if not self._rows.size:
            raise ValueError(
                f"briefs.recommender: {model.version} knows {len(model.items):,} items, and none of the"
                f" {len(catalogue):,} of the catalogue; train it on the purchases of this shop"
            )

    @property
    def version(self) -> str:
        """See `Retriever`."""
        return self._model.version

    def chances(self, user_ids: Sequence[str]) -> Floats:
        """See `Retriever`."""
        total, histories = np.zeros(len(self._known)), self._histories(user_ids)
        for start in range(0, len(histories), _TOGETHER):
            found = self._model.chances(histories[start : start + _TOGETHER])
            total += found[:, self._known].sum(axis=0)
        chances = np.zeros(self._size)
        chances[self._rows] = total / max(len(histories), 1)
        return chances


class Purchases:
    """The purchases of a run's `data/events.parquet`, read as a stream for the users who are asked about.

    allowed: `[U]` who agreed to being known; the others have no history.
    """

    def __init__(self, path: Path, allowed: Callable[[Sequence[str]], NDArray[np.bool_]]) -> None:
        if not path.is_file():
            raise DataError(
                path, "does not exist", "retrieval looks at purchases: serve a run of `qiance run`"
            )
        self._path, self._allowed = path, allowed

    def __call__(self, user_ids: Sequence[str]) -> list[list[str]]:
        """What each of the users bought, in the order in which they first did."""
        known = [user for user, yes in zip(user_ids, self._allowed(user_ids), strict=True) if yes]
        wanted = pa.array(known, pa.string())
        mine = ds.field("user_id").isin(wanted) & (ds.field("type") == "purchase")
        table = ds.dataset(self._path).to_table(columns=["user_id", "item_id", "occurred_at"], filter=mine)
        table = table.take(pc.sort_indices(table, [("occurred_at", "ascending")]))
        bought: dict[str, dict[str, None]] = {user: {} for user in known}
        for user, item in zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True):
            bought[user].setdefault(item)
        return [list(bought.get(user, ())) for user in user_ids]


def in_turns(category: Ints, score: Floats, limit: int) -> Ints:
    """Places of at most `limit` items: the best of each category, then the second of each, and so on.

    category: `[n]` codes; score: `[n]`. Categories take their turn in order of their best item; ties keep the
    order of the items.
    """
    ranked = np.argsort(-score, kind="stable")
    codes = category[ranked]
    grouped = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[grouped], prepend=-1))
    sizes = np.diff(np.append(starts, len(codes)))
    turn = np.empty(len(codes), dtype=np.int64)
    turn[grouped] = np.arange(len(codes)) - np.repeat(starts, sizes)
    return ranked[np.argsort(turn, kind="stable")][:limit]


def codes_of(names: Sequence[str]) -> tuple[Ints, Mapping[str, int]]:
    """`[n]` a number for each name, and the number of each distinct one."""
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([codes[name] for name in names], dtype=np.int64), codes
