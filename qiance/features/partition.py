"""All rows of one entity in one value, from which a row is cut by a search for its name.

A partition is `version (1) · length of the directory (4, big-endian) · directory · rows`. The directory has
an entry per row, `1E · name · 00 · start of the row among the rows (8) · its length (8)`, both in hexadecimal
digits, so that neither mark can occur in a number; a name holds neither. A value of another version is empty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

VERSION = b"\x02"
_HEAD = struct.Struct(">cI")
_BEFORE, _AFTER = b"\x1e", b"\x00"
_DIGITS = 16


def mark_of(name: str) -> bytes:
    """How a directory writes a name: what `cut` looks for."""
    return _BEFORE + name.encode() + _AFTER


def pack(rows: Mapping[str, bytes]) -> bytes:
    """The value that is kept for `rows`; ValueError for a name with a 1E or NUL in it."""
    entries, start = [], 0
    for name, row in rows.items():
        mark = mark_of(name)
        if _BEFORE in mark[1:] or _AFTER in mark[:-1]:
            raise ValueError(f"feature key: {name!r} holds 1E or NUL; keys of features are text without them")
        entries.append(mark + b"%08x%08x" % (start, len(row)))
        start += len(row)
    directory = b"".join(entries)
    return b"".join([_HEAD.pack(VERSION, len(directory)), directory, *rows.values()])


def cut(partitions: Sequence[bytes], marks: Iterable[bytes]) -> list[bytes | None]:
    """`[n]` rows: from each partition the one whose mark stands at its place in `marks`, None if it has none.

    One loop without a call of ours inside: this is what a read of many users spends its time on.
    """
    rows: list[bytes | None] = []
    for value, mark in zip(partitions, marks, strict=False):
        place = value.find(mark)
        if place >= 0:
            _, size = _HEAD.unpack_from(value)
            end = _HEAD.size + size
            if place < end:  # else it is a look-alike among the bytes of a row
                place += len(mark)
                number = int(value[place : place + _DIGITS], 16)
                start = end + (number >> 32)
                rows.append(value[start : start + (number & 0xFFFFFFFF)])
                continue
        rows.append(None)
    return rows


class Partition(Mapping[str, bytes]):
    """One entity's rows by name."""

    __slots__ = ("_packed",)

    def __init__(self, packed: bytes = b"") -> None:
        self._packed = packed if packed[:1] == VERSION else pack({})

    def __getitem__(self, name: str) -> bytes:
        (found,) = cut([self._packed], [mark_of(name)])
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        _, size = _HEAD.unpack_from(self._packed)
        directory = self._packed[_HEAD.size : _HEAD.size + size]
        return (entry.split(_AFTER)[0].decode() for entry in directory.split(_BEFORE)[1:])

    def __len__(self) -> int:
        _, size = _HEAD.unpack_from(self._packed)
        return self._packed.count(_BEFORE, _HEAD.size, _HEAD.size + size)
