"""Random numbers as a function of ids: the same row gets the same draw on every machine and run."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, a bijection on 64 bits (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def text_hash(values: NDArray[np.str_]) -> NDArray[np.uint64]:
    """First 64 bits of the SHA-256 of each text (Python's own `hash` differs between runs)."""
    digests = (hashlib.sha256(str(value).encode()).digest()[:8] for value in values)
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)


def uniform(keys: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """Uniform in [0, 1) from 64-bit keys and a seed, elementwise."""
    start = mix(np.array([seed % 2**64], dtype=np.uint64))
    return (mix(keys ^ start) >> np.uint64(11)).astype(np.float64) / 2.0**53


def poisson_weights(unit_ids: ArrayLike, heads: int, seed: int) -> NDArray[np.uint8]:
    """Poisson(1) bootstrap weights `[n, heads]`; rows of one unit share theirs.

    Poisson weights are the bootstrap without a pass over the data (Oza and Russell, 2001; Chamandy et
    al., 2012); shared within a unit they are the cluster bootstrap, so that a household with many rows
    does not count as many households.
    """
    units, inverse = np.unique(np.asarray(unit_ids).astype(np.str_), return_inverse=True)
    base = text_hash(units)[:, None]
    keys = mix(base ^ mix(np.arange(1, heads + 1, dtype=np.uint64))[None, :])
    steps = stats.poisson.cdf(np.arange(10), 1.0)
    weights = np.searchsorted(steps, uniform(keys, seed), side="right").astype(np.uint8)
    return weights[inverse.ravel()]
