"""Few numbers in place of a long vector: its principal components, fitted where a model is trained.

A column of vectors has `[n]` entries: the bytes of d float32 numbers, or None. Rows with equal words share
one object, so that a log of a hundred thousand rows over a hundred texts holds a hundred vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]
_KIND = np.dtype("<f4")
# Directions with less than this share of the first one's variance are rounding.
_LEAST = 1e-9


def pack_vector(values: NDArray[Any]) -> bytes:
    """`[d]` as the bytes of float32 numbers, little-endian."""
    return np.ascontiguousarray(values, dtype=_KIND).tobytes()


def unpack_vector(packed: bytes) -> Floats:
    """Inverse of `pack_vector`."""
    return np.frombuffer(packed, dtype=_KIND).astype(np.float64)


def vector_column(values: NDArray[Any]) -> pa.DictionaryArray:
    """`[n]` entries as an arrow column that holds each distinct vector once."""
    import pyarrow as pa

    distinct: dict[bytes, int] = {}
    codes = [None if one is None else distinct.setdefault(one, len(distinct)) for one in values]
    return pa.DictionaryArray.from_arrays(
        pa.array(codes, type=pa.int32()), pa.array(list(distinct), type=pa.binary())
    )


def read_vectors(column: pa.ChunkedArray) -> NDArray[Any]:
    """Inverse of `vector_column`; plain binary columns, as other writers leave them, are read too."""
    import pyarrow as pa

    parts = []
    for chunk in column.chunks:
        if pa.types.is_null(chunk.type):
            chunk = chunk.cast(pa.binary())
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        known = np.empty(len(coded.dictionary) + 1, dtype=object)  # the last one, at −1, is None
        known[:-1] = coded.dictionary.to_pylist()
        parts.append(known[codes])
    return np.concatenate(parts) if parts else np.empty(0, dtype=object)


@dataclass(frozen=True)
class Projection:
    """Vectors of d numbers as k: (vector − mean) · components, cut to what the texts of the fit had.

    mean: `[d]`. components: `[k, d]`, orthogonal, of one length: the first has variance 1 over the texts that
    it was fitted on and the others less, so distances between texts are kept and what hardly varies stays
    small. k is 0 where no two texts differ. low, high: `[k]`, the least and largest of the texts of the fit:
    a model says nothing sensible of a text far outside all that it has seen, so that counts as the outermost.
    """

    mean: tuple[float, ...] = ()
    components: tuple[tuple[float, ...], ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def fit(cls, values: NDArray[Any], most: int) -> Projection:
        """At most `most` components of the distinct vectors in `values`.

        A text counts by the square root of its rows: by rows alone the one that was shown most would be all
        that is told apart, by texts alone one shown once would count as much as it. Raises ValueError where
        vectors differ in length.
        """
        counts = Counter(one for one in values if one is not None)
        if most < 1 or len(counts) < 2:
            return cls()
        lengths = {len(one) for one in counts}
        if len(lengths) > 1:
            raise ValueError(f"vectors: have {sorted(n // 4 for n in lengths)} numbers; use one encoder")
        ordered = sorted(counts)  # whatever the order of the rows is
        vectors = np.array([unpack_vector(one) for one in ordered])
        weight = np.sqrt([counts[one] for one in ordered])
        weight /= weight.sum()
        mean = weight @ vectors
        centred = vectors - mean
        variance, directions = np.linalg.eigh((centred * weight[:, None]).T @ centred)
        first = np.argsort(-variance)[:most]
        kept = [place for place in first if variance[place] > _LEAST * variance[first[0]]]
        found = np.array([_turned(directions[:, place]) for place in kept]) / np.sqrt(variance[first[0]])
        fitted = cls(_singles(mean), tuple(_singles(row) for row in found))
        numbers = np.array([fitted._of(one) for one in ordered])
        low, high = (tuple(bound.tolist()) for bound in (numbers.min(axis=0), numbers.max(axis=0)))
        return replace(fitted, low=low, high=high)

    @property
    def width(self) -> int:
        """k."""
        return len(self.components)

    def __call__(self, values: NDArray[Any]) -> Floats:
        """`[n, k]`; 0, which is the mean text, where there is no vector. ValueError for another length."""
        if not self.width:
            return np.zeros((len(values), 0))
        place: dict[bytes | None, int] = {}
        codes = [place.setdefault(one, len(place)) for one in values]
        found = np.zeros((len(place), self.width))
        for one, row in place.items():
            if one is not None:
                found[row] = self._of(one)
        return np.asarray(found.clip(self.low, self.high)[np.array(codes, dtype=np.int64)])

    def _of(self, packed: bytes) -> Floats:
        # One at a time: the same text gives the same bits whatever stands beside it.
        mean, components = self._arrays
        vector = unpack_vector(packed)
        if vector.shape != mean.shape:
            raise ValueError(f"vector: has {len(vector)} numbers where the model was trained on {len(mean)}")
        return np.asarray(components @ (vector - mean), dtype=np.float64)

    @cached_property
    def _arrays(self) -> tuple[Floats, Floats]:
        return np.array(self.mean), np.array(self.components).reshape(self.width, len(self.mean))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        components = [list(row) for row in self.components]
        return {
            "mean": list(self.mean),
            "components": components,
            "low": list(self.low),
            "high": list(self.high),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Projection:
        """Inverse of `to_dict`; raises ValueError where a component has another length than the mean."""
        mean = tuple(float(x) for x in data["mean"])
        components = tuple(tuple(float(x) for x in row) for row in data["components"])
        low, high = (tuple(float(x) for x in data[name]) for name in ("low", "high"))
        if any(len(row) != len(mean) for row in components) or not len(low) == len(high) == len(components):
            raise ValueError("projection: its components do not fit its mean, or its bounds them")
        return cls(mean, components, low, high)


def _turned(direction: Floats) -> Floats:
    """A direction has two signs; the one whose largest entry is positive."""
    return np.asarray(direction * np.sign(direction[np.argmax(np.abs(direction))]), dtype=np.float64)


def _singles(values: Floats | Sequence[float]) -> tuple[float, ...]:
    """Rounded to float32: as exact as the vectors are, and shorter in a file."""
    return tuple(np.asarray(values, dtype=np.float32).astype(np.float64).tolist())
