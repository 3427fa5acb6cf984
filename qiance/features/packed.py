"""Feature rows as bytes: what the online store keeps, and how many of them become columns at once.

A row is `layout id (4) · event time (8) · created (8) · null bits · fixed fields (8 each) · lengths · bytes`,
big-endian times (so that a store can compare them) and little-endian fields. The layout id is a hash of the
fields, so a row that was written under another definition of its view is never read as if it fitted.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Value = float | int | str | bytes | Sequence[float] | Sequence[int] | Sequence[str] | None

# Feast's names of types → how a field is kept. Whatever is not named here is kept as opaque bytes.
_FIXED = {"Float64": "<f8", "Float32": "<f8", "Int64": "<i8", "Int32": "<i8", "Bool": "<i8"}
_ARRAYS = {"Array(Float64)": "<f8", "Array(Float32)": "<f4", "Array(Int64)": "<i8", "Array(Int32)": "<i4"}
_TIMES = struct.Struct(">4sqq")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class RowLayout:
    """Fields of a view in a fixed order.

    view: its name; fields: (name, type), the type in Feast's words, such as `Float64` or `Array(Float32)`.
    """

    view: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, view: str, fields: Sequence[tuple[str, str]]) -> RowLayout:
        """The layout of a view; fields are sorted by name, since a registry may give them in any order."""
        return cls(view, tuple(sorted(fields)))

    @cached_property
    def layout_id(self) -> bytes:
        text = ";".join(f"{name}:{kind}" for name, kind in self.fields)
        return hashlib.sha256(f"1;{self.view};{text}".encode()).digest()[:4]

    @cached_property
    def fixed(self) -> tuple[tuple[str, str], ...]:
        """Fields of eight bytes, with their numpy type."""
        return tuple((name, _FIXED[kind]) for name, kind in self.fields if kind in _FIXED)

    @cached_property
    def variable(self) -> tuple[tuple[str, str], ...]:
        """Fields of any length, with their type."""
        return tuple((name, kind) for name, kind in self.fields if kind not in _FIXED)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: place for place, (name, _) in enumerate(self.fields)}

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The part of a row before the fields of any length, as one record."""
        return np.dtype(
            [
                ("layout", "S4"),
                ("event", ">i8"),
                ("created", ">i8"),
                ("nulls", "u1", (self._null_bytes,)),
                ("fixed", "<f8", (len(self.fixed),)),
            ]
        )

    @cached_property
    def _format(self) -> str:
        return "<" + "".join("d" if kind == "<f8" else "q" for _, kind in self.fixed)

    @property
    def _null_bytes(self) -> int:
        return max(1, -(-len(self.fields) // 8))

    def pack(self, event_us: int, created_us: int, values: Mapping[str, Value]) -> bytes:
        """One row; a field that is absent or None is null. Times are microseconds since the epoch."""
        nulls = bytearray(self._null_bytes)
        for place, (name, _) in enumerate(self.fields):
            if values.get(name) is None:
                nulls[place >> 3] |= 1 << (place & 7)
        head = _TIMES.pack(self.layout_id, event_us, created_us) + bytes(nulls)
        fixed = b"".join(_pack_fixed(values.get(name), kind) for name, kind in self.fixed)
        tails = [_to_bytes(values.get(name), kind) for name, kind in self.variable]
        return b"".join([head, fixed, *(_LENGTH.pack(len(tail)) for tail in tails), *tails])

    def unpack(self, row: bytes) -> dict[str, Value] | None:
        """Every field of one row; None if it was written under another layout."""
        if row[:4] != self.layout_id:
            return None
        start = _TIMES.size + self._null_bytes
        numbers = struct.unpack_from(self._format, row, start)
        found: dict[str, Value] = dict(zip((name for name, _ in self.fixed), numbers, strict=True))
        found |= {
            name: _of_bytes(tail, kind)
            for (name, kind), tail in zip(self.variable, self._tails(row), strict=True)
        }
        return {name: None if self._is_null(row, name) else found[name] for name, _ in self.fields}

    def _is_null(self, row: bytes, name: str) -> bool:
        place = self._place[name]
        return bool(row[_TIMES.size + (place >> 3)] >> (place & 7) & 1)

    def _tails(self, row: bytes) -> list[bytes]:
        start = self.dtype.itemsize
        lengths = [_LENGTH.unpack_from(row, start + 4 * n)[0] for n in range(len(self.variable))]
        position, tails = start + 4 * len(lengths), []
        for length in lengths:
            tails.append(row[position : position + length])
            position += length
        return tails

    def records(self, rows: Sequence[bytes]) -> NDArray[Any]:
        """`[n]` records of `dtype` from rows of this layout."""
        size = self.dtype.itemsize
        if self.variable:
            rows = [row[:size] for row in rows]
        return np.frombuffer(b"".join(rows), dtype=self.dtype)

    def numbers(self, records: NDArray[Any]) -> Floats:
        """`[n, F]` float64 of the fixed fields in order, NaN where null."""
        values = records["fixed"].copy()
        if self._has_whole:
            raw = np.ascontiguousarray(records["fixed"]).view("<i8")
            values[:, self._whole] = raw[:, self._whole]
        nulls = records["nulls"]
        if nulls.tobytes().strip(b"\0"):  # without a call of numpy's Python
            bits = np.unpackbits(nulls, axis=1, bitorder="little")
            values[bits[:, self._fixed_places] == 1] = np.nan
        return values

    @cached_property
    def _has_whole(self) -> bool:
        return bool(self._whole.any())

    @cached_property
    def _whole(self) -> NDArray[np.bool_]:
        return np.array([kind == "<i8" for _, kind in self.fixed], dtype=np.bool_)

    @cached_property
    def _fixed_places(self) -> NDArray[np.int64]:
        return np.array([self._place[name] for name, _ in self.fixed], dtype=np.int64)

    def lists(self, rows: Sequence[bytes], name: str) -> list[Value]:
        """`[n]` values of one field of any length, None where null."""
        position = [field for field, _ in self.variable].index(name)
        kind = self.variable[position][1]
        return [
            None if self._is_null(row, name) else _of_bytes(self._tails(row)[position], kind) for row in rows
        ]


def times_of(row: bytes) -> tuple[int, int]:
    """(event time, created) of a packed row of any layout, microseconds since the epoch."""
    _, event, created = _TIMES.unpack_from(row)
    return event, created


def _pack_fixed(value: Any, kind: str) -> bytes:
    if kind == "<f8":
        return struct.pack("<d", 0.0 if value is None else value)
    return struct.pack("<q", 0 if value is None else int(value))


def _to_bytes(value: Any, kind: str) -> bytes:
    if value is None:
        return b""
    if kind in _ARRAYS:
        return np.asarray(value, dtype=_ARRAYS[kind]).tobytes()
    if kind == "String":
        return str(value).encode()
    if kind == "Array(String)":
        parts = [text.encode() for text in value]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    if not isinstance(value, bytes):
        raise ValueError(f"value of type {kind}: {value!r} is not bytes; give it in serialised form")
    return value


def _of_bytes(tail: bytes, kind: str) -> Value:
    if kind in _ARRAYS:
        array: Any = np.frombuffer(tail, dtype=_ARRAYS[kind])
        return tuple(array.tolist()) if kind != "Array(Float32)" else array  # an embedding stays an array
    if kind == "String":
        return tail.decode()
    if kind == "Array(String)":
        texts, position = [], 0
        while position < len(tail):
            (length,) = _LENGTH.unpack_from(tail, position)
            position += _LENGTH.size
            texts.append(tail[position : position + length].decode())
            position += length
        return tuple(texts)
    return tail
