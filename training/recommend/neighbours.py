"""Items bought soon after each other: a memory beside the network, and where its vectors start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.recommend import Neighbours
from training.recommend.sequences import Ints

_WINDOW = 5  # purchases apart that still count, by 1 / distance
_SMOOTHING = 0.75  # of how often an item stands beside others (Levy, Goldberg and Dagan, 2015)

Floats = NDArray[np.float32]


def count_near(rows: Sequence[Ints], items: int) -> Any:
    """Sparse `[V, V]`, symmetric: Σ 1 / distance over purchases of one user up to `_WINDOW` apart."""
    from scipy.sparse import coo_matrix

    first, second, weight = [], [], []
    for distance in range(1, _WINDOW + 1):
        long = [row for row in rows if len(row) > distance]
        if long:
            first.append(np.concatenate([row[:-distance] for row in long]))
            second.append(np.concatenate([row[distance:] for row in long]))
            weight.append(np.full(len(first[-1]), 1.0 / distance))
    if not first:
        return coo_matrix((items, items)).tocsr()
    a, b, w = np.concatenate(first) - 1, np.concatenate(second) - 1, np.concatenate(weight)
    counts = coo_matrix((w, (a, b)), shape=(items, items)).tocsr()
    return (counts + counts.T).tocsr()


def fit_neighbours(counts: Any) -> Neighbours:
    """Count over the roots of both items' totals, so that what sells to everybody is not near everything."""
    from scipy.sparse import diags

    total = np.asarray(counts.sum(axis=1)).ravel()
    root = diags(1 / np.sqrt(np.maximum(total, 1e-12)))
    return Neighbours((root @ counts @ root).tocsr().astype(np.float32))


def item_vectors(counts: Any, width: int, seed: int) -> Floats:
    """`[V, width]` of length 1, 0 for an item without neighbours.

    The leading singular vectors of the positive pointwise mutual information, log(p(a, b) / p(a) p(b)) where
    that is above 0: what word2vec's vectors approximate (Levy and Goldberg, 2014).
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    found, total = counts.tocoo(), np.asarray(counts.sum(axis=1)).ravel()
    share = total**_SMOOTHING / max(float((total**_SMOOTHING).sum()), 1e-12)
    information = np.log(found.data / (total[found.row] * share[found.col]))
    kept = information > 0
    table = csr_matrix((information[kept], (found.row[kept], found.col[kept])), shape=counts.shape)
    rank = min(width, counts.shape[0] - 1)
    start = np.random.default_rng(seed).standard_normal(counts.shape[0])
    left, strength, _ = svds(table, k=rank, v0=start)
    vectors = np.zeros((counts.shape[0], width), dtype=np.float32)
    vectors[:, :rank] = left * np.sqrt(np.maximum(strength, 0.0))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 1e-6, length, np.inf), dtype=np.float32)
