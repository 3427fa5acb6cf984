"""How rows of features become arrays.

The same `Encoder` runs in training and in serving, so that a row means the same to both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.features.projection import Projection
from qiance.features.schema import Columns, FeatureSchema

# A standardised value beyond this is cut, so that one wild input cannot take a network far
# outside what it was trained on.
_CLIP = 8.0
COMPONENTS = 4  # that a vector is read by, at most


@dataclass(frozen=True, slots=True)
class NumericCode:
    """How one numeric feature is encoded: (value − mean) / std, NaN → mean; 0 where std is 0.

    indicator: the feature had NaN when fitted, so a column `1 where NaN` follows.
    """

    mean: float
    std: float
    indicator: bool


@dataclass(frozen=True)
class Encoder:
    """Turns feature columns into arrays; plain numbers only, so that it is stored as JSON.

    numeric: one `NumericCode` per numeric feature.
    vocabularies: per categorical feature its known values, most frequent first; value number i
        (from 0) is encoded as i + 1, and 0 stands for everything else.
    projections: one per vector feature, or none where no vectors were there to fit on: they are not read.
    """

    schema: FeatureSchema
    numeric: tuple[NumericCode, ...]
    vocabularies: tuple[tuple[str, ...], ...]
    projections: tuple[Projection, ...] = ()

    @cached_property
    def _tables(self) -> tuple[tuple[NDArray[np.str_], NDArray[np.int64]], ...]:
        """Per vocabulary the sorted values and their codes, for binary search."""
        tables = []
        for vocabulary in self.vocabularies:
            values = np.array(vocabulary, dtype=np.str_)
            order = np.argsort(values)
            tables.append((values[order], order.astype(np.int64) + 1))
        return tuple(tables)

    @classmethod
    def fit(
        cls, schema: FeatureSchema, columns: Columns, *, min_count: int = 5, components: int = COMPONENTS
    ) -> Encoder:
        """Fit on columns of n rows.

        A categorical value seen fewer than `min_count` times is left to index 0. components: numbers that a
        vector is read by, at most; 0 leaves vectors out.
        Raises ValueError naming a column that is missing, of another length, or without a finite value.
        """
        _check_lengths(schema, columns)
        numeric = tuple(_fit_numeric(name, _as_float(name, columns[name])) for name in schema.numeric)
        words = tuple(_fit_vocabulary(columns[name], min_count) for name in schema.categorical)
        projections = tuple(
            Projection.fit(columns[name], components) if name in columns else Projection()
            for name in schema.vectors
        )
        return cls(schema, numeric, words, projections)

    @property
    def reads_vectors(self) -> bool:
        """Whether what is predicted hangs on a vector."""
        return any(projection.width for projection in self.projections)

    @property
    def num_width(self) -> int:
        """Dn: number of float columns; indicators and components of vectors included."""
        return self.vectors_from + sum(projection.width for projection in self.projections)

    @property
    def vectors_from(self) -> int:
        """Place of the first component of a vector."""
        return len(self.numeric) + sum(code.indicator for code in self.numeric)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Per categorical feature the number of codes, unknown included."""
        return tuple(len(vocabulary) + 1 for vocabulary in self.vocabularies)

    @property
    def num_names(self) -> tuple[str, ...]:
        """Names of the Dn float columns."""
        flags = [
            f"{n} is missing" for n, c in zip(self.schema.numeric, self.numeric, strict=True) if c.indicator
        ]
        components = [
            f"{name} component {place + 1}"
            for name, projection in zip(self.schema.vectors, self.projections, strict=False)
            for place in range(projection.width)
        ]
        return (*self.schema.numeric, *flags, *components)

    def encode(self, columns: Columns) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Encode n rows.

        Returns num `[n, Dn]` float32 and cat `[n, Dc]` int64. Infinite values count as missing;
        standardised values are cut to ±8. Raises ValueError naming a missing column.
        """
        n = _check_lengths(self.schema, columns)
        num = np.zeros((n, self.num_width), dtype=np.float32)
        for place, name in enumerate(self.schema.numeric):
            num[:, place], missing = self.scale(_as_float(name, columns[name]), place)
            if self.flags[place] >= 0:
                num[:, self.flags[place]] = missing
        if self.reads_vectors:
            num[:, self.vectors_from :] = self._components(columns)
        cat = np.zeros((n, len(self.vocabularies)), dtype=np.int64)
        for place, name in enumerate(self.schema.categorical):
            cat[:, place] = self._codes(place, columns[name])
        return num, cat

    def _components(self, columns: Columns) -> NDArray[np.float64]:
        """`[n, Σ k]` of all vectors."""
        parts = []
        for name, projection in zip(self.schema.vectors, self.projections, strict=True):
            if name not in columns:
                raise ValueError(f"column {name!r} is missing; the model reads words by their vectors")
            parts.append(projection(columns[name]))
        return np.concatenate(parts, axis=1).clip(-_CLIP, _CLIP)

    def scale(
        self, values: NDArray[np.float64], places: int | NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Numbers as the network reads them, and where they are missing.

        places: which numeric feature `values` are of; or, for several, one per last axis of `values`.
        """
        mean, factor = self._scales[0][places], self._scales[1][places]
        missing = ~np.isfinite(values)
        scaled = (np.where(missing, mean, values) - mean) * factor
        return scaled.clip(-_CLIP, _CLIP), missing

    @cached_property
    def _scales(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and 1 / std of each numeric feature."""
        # A feature that never varied was never learned: whatever comes later, it says nothing.
        factors = [1.0 / code.std if code.std > 0 else 0.0 for code in self.numeric]
        return np.array([code.mean for code in self.numeric]), np.array(factors)

    @cached_property
    def flags(self) -> NDArray[np.int64]:
        """Per numeric feature the float column that says that it is missing; -1 without one."""
        given = np.array([code.indicator for code in self.numeric], dtype=np.bool_)
        return np.where(given, len(given) - 1 + np.cumsum(given), -1)

    def unseen(self, columns: Columns) -> dict[str, NDArray[np.bool_]]:
        """Where categorical values are that fitting has not seen, or too rarely, by feature that has some.

        A missing value is none of them: it was seen as missing.
        """
        found = {}
        for place, name in enumerate(self.schema.categorical):
            _, present = _as_text(columns[name])
            mask = present & (self._codes(place, columns[name]) == 0)
            if mask.any():
                found[name] = mask
        return found

    def _codes(self, place: int, values: NDArray[Any]) -> NDArray[np.int64]:
        known, codes = self._tables[place]
        if not len(known):
            return np.zeros(len(values), dtype=np.int64)
        text, present = _as_text(values)
        slot = np.minimum(np.searchsorted(known, text), len(known) - 1)
        return np.where(present & (known[slot] == text), codes[slot], 0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; floats survive the round trip exactly."""
        found = {
            "schema": self.schema.to_dict(),
            "numeric": [{"mean": c.mean, "std": c.std, "indicator": c.indicator} for c in self.numeric],
            "vocabularies": [list(vocabulary) for vocabulary in self.vocabularies],
        }
        projections = [projection.to_dict() for projection in self.projections]
        return found | {"projections": projections} if projections else found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Encoder:
        """Inverse of `to_dict`; raises ValueError where the lists do not fit the schema."""
        schema = FeatureSchema.from_dict(data["schema"])
        numeric = tuple(
            NumericCode(float(c["mean"]), float(c["std"]), bool(c["indicator"])) for c in data["numeric"]
        )
        words = tuple(tuple(str(v) for v in vocabulary) for vocabulary in data["vocabularies"])
        projections = tuple(Projection.from_dict(found) for found in data.get("projections", ()))
        fits = (len(numeric), len(words)) == (len(schema.numeric), len(schema.categorical))
        if not fits or len(projections) not in (0, len(schema.vectors)):
            raise ValueError(f"encoder of {schema.service!r}: its entries do not fit the schema's features")
        return cls(schema, numeric, words, projections)


def _check_lengths(schema: FeatureSchema, columns: Columns) -> int:
    """Number of rows n; raises ValueError for a missing or unequally long column."""
    n = -1
    for name in schema.names:
        if name not in columns:
            if name in schema.vectors:
                continue
            raise ValueError(f"column {name!r} is missing; feature service {schema.service!r} delivers it")
        length = len(columns[name])
        if n not in (-1, length):
            raise ValueError(f"column {name!r} has {length} rows where the columns before it have {n}")
        n = length
    return n


def _as_float(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} is not numeric: {error}") from None


def _as_text(values: NDArray[Any]) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """Values as strings, and whether each is present (None and NaN are not)."""
    array = np.asarray(values)
    # NaN is the one value that differs from itself.
    present = np.asarray(array == array) if array.dtype.kind in "fO" else np.ones(array.shape, dtype=np.bool_)
    if array.dtype.kind == "O":
        present = present & np.not_equal(array, np.array(None, dtype=object))
    return array.astype(np.str_), present.astype(np.bool_)


def _fit_numeric(name: str, values: NDArray[np.float64]) -> NumericCode:
    known = values[np.isfinite(values)]
    if not known.size:
        raise ValueError(f"column {name!r} has no finite value; leave the feature out of the schema")
    std = float(known.std())
    return NumericCode(float(known.mean()), std if std > 1e-12 else 0.0, known.size < values.size)


def _fit_vocabulary(values: NDArray[Any], min_count: int) -> tuple[str, ...]:
    text, present = _as_text(values)
    words, counts = np.unique(text[present], return_counts=True)
    order = np.lexsort((words, -counts))
    return tuple(str(words[i]) for i in order if counts[i] >= min_count)
