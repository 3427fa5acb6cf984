"""Holdout by hash: the same users always, without a table, independent of every other salt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from qiance.evaluate.arrays import BoolArray, FloatArray, fraction


def hash_uniforms(pseudonyms: Sequence[str], salt: str) -> FloatArray:
    """`[U]` numbers in [0, 1), one per pseudonym: the first 53 bits of SHA-256(salt, NUL, pseudonym)."""
    if not salt or "\0" in salt:
        raise ValueError(f"salt: {salt!r} must be a text without NUL, not empty, such as a campaign's id")
    start = hashlib.sha256(salt.encode() + b"\0")
    bits = np.empty(len(pseudonyms), dtype=np.uint64)
    for row, pseudonym in enumerate(pseudonyms):
        digest = start.copy()
        digest.update(pseudonym.encode())
        bits[row] = int.from_bytes(digest.digest()[:8], "big")
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def holdout(pseudonyms: Sequence[str], salt: str, share: float) -> BoolArray:
    """`[U]` True for the users kept out: about `share` of them, in [0, 1].

    Deterministic, and nested: with a larger share and the same salt everybody held out before stays held out.
    """
    return hash_uniforms(pseudonyms, salt) < fraction("share", share)
