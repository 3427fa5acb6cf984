"""Which features a model reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from qiance.features.projection import read_vectors

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Mapping[str, "NDArray[Any]"]


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The features that a model reads, in order.

    service: name of the feature service that delivers them.
    numeric, categorical, vectors: feature names; no name may appear twice. Vectors are columns of packed
    numbers, see `qiance.features.projection`; a table may lack them, then nothing is learned from them.
    """

    service: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise ValueError(f"schema {self.service!r}: has no feature; name at least one")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"schema {self.service!r}: feature {twice[0]!r} is listed twice")

    @property
    def names(self) -> tuple[str, ...]:
        """All feature names, numeric first."""
        return self.numeric + self.categorical + self.vectors

    @property
    def hash(self) -> str:
        """SHA-256 (hex) over the canonical JSON of service and names in order."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def diff(self, other: FeatureSchema) -> list[str]:
        """How `other` departs from this schema, one sentence each; empty when both are equal."""
        messages = []
        if other.service != self.service:
            messages.append(f"feature service is {other.service!r} where {self.service!r} is expected")
        mine, theirs = _kinds(self), _kinds(other)
        for name, kind in mine.items():
            if name not in theirs:
                messages.append(f"{kind} feature {name!r} is missing")
            elif theirs[name] != kind:
                messages.append(f"feature {name!r} is {theirs[name]} where {kind} is expected")
        for name, kind in theirs.items():
            if name not in mine:
                messages.append(f"{kind} feature {name!r} is not expected")
        return messages or _order_difference(self, other)

    def columns(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """The feature columns of an arrow table: numeric as float64 (null is NaN), others as objects.

        Raises ValueError naming the column that is missing or not numeric.
        """
        import pyarrow as pa

        result: dict[str, NDArray[Any]] = {}
        for name in self.names:
            if name not in table.column_names:
                if name in self.vectors:
                    continue
                raise ValueError(f"column {name!r} is missing; the table has {', '.join(table.column_names)}")
            column = table.column(name).combine_chunks()
            if name in self.numeric:
                try:
                    result[name] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise ValueError(
                        f"column {name!r} of type {column.type} is not numeric: {error}"
                    ) from None
            elif name in self.vectors:
                result[name] = read_vectors(table.column(name))
            else:
                result[name] = column.cast(pa.string()).to_numpy(zero_copy_only=False)
        return result

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; a schema without vectors is written, and hashed, as before there were any."""
        found: dict[str, Any] = {
            "service": self.service,
            "numeric": list(self.numeric),
            "categorical": list(self.categorical),
        }
        return found | {"vectors": list(self.vectors)} if self.vectors else found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureSchema:
        """Inverse of `to_dict`."""
        numeric, categorical, vectors = (
            tuple(data.get(kind, ())) for kind in ("numeric", "categorical", "vectors")
        )
        return cls(str(data["service"]), numeric, categorical, vectors)


def _kinds(schema: FeatureSchema) -> dict[str, str]:
    return {
        **dict.fromkeys(schema.numeric, "numeric"),
        **dict.fromkeys(schema.categorical, "categorical"),
        **dict.fromkeys(schema.vectors, "vector"),
    }


def _order_difference(expected: FeatureSchema, found: FeatureSchema) -> list[str]:
    for place, (mine, theirs) in enumerate(zip(expected.names, found.names, strict=True), start=1):
        if mine != theirs:
            return [f"feature {theirs!r} stands at place {place} where {mine!r} is expected"]
    return []
