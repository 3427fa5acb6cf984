"""How often the item that was bought next is among the first k of all items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.recommend import Scores
from training.recommend.sequences import Ints, Known, batches

_BATCH = 512
CUTS = (5, 10)


def ranks(scorer: Scores, known: Known) -> Ints:
    """`[U]` place of each target among all items that the user has not bought yet, from 1.

    An item that scores equal to the target counts as before it: who scores all alike is last.
    """
    found = np.empty(len(known.rows), dtype=np.int64)
    for rows in batches(known.rows, _BATCH, None):
        some = [known.rows[row] for row in rows]
        found[rows] = places(scorer.chances(some), some, known.target[rows])
    return found


def places(scores: NDArray[np.float32], bought: Sequence[Ints], target: Ints) -> Ints:
    """`[b]` from scores `[b, V]` of the items 1..V."""
    own = scores[np.arange(len(target)), target - 1].copy()
    ahead = (scores >= own[:, None]).sum(axis=1)
    for place, row in enumerate(bought):
        seen = np.setdiff1d(row, target[place])
        ahead[place] -= (scores[place, seen - 1] >= own[place]).sum()
    return np.asarray(ahead, dtype=np.int64)


def quality(rank: Ints) -> dict[str, float]:
    """Hit rate and NDCG at 5 and 10; one relevant item, so NDCG is 1 / log2(1 + rank)."""
    figures = {}
    for cut in CUTS:
        hit = rank <= cut
        figures[f"hr{cut}"] = float(hit.mean())
        figures[f"ndcg{cut}"] = float(np.where(hit, 1 / np.log2(1 + rank), 0.0).mean())
    return figures


def by_popularity(known: Known, items: int) -> Ints:
    """Ranks of the baseline that shows everybody what was bought most."""
    count = np.bincount(np.concatenate(known.rows), minlength=items + 1)[1:]
    scores = np.broadcast_to(count.astype(np.float32), (len(known.rows), items))
    return places(scores, known.rows, known.target)
