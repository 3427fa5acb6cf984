"""A text file as lines: where each begins and ends, and which are not UTF-8."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qiance.data.convert import Bools
from qiance.data.errors import DataError

Offsets = NDArray[np.int64]
MAX_LINE = 1 << 20
MIN_UTF8 = 0.5  # share of the lines below which a file is taken to be in another encoding


@dataclass(frozen=True, slots=True)
class Lines:
    """Non-blank lines of `data`.

    starts, ends: `[n]` byte offsets, the line break outside; utf8: `[n]` whether the line is UTF-8.
    """

    data: bytes
    starts: Offsets
    ends: Offsets
    utf8: Bools

    def __len__(self) -> int:
        return len(self.starts)

    def text(self, line: int) -> str:
        """One line; bytes that are not UTF-8 are shown as U+FFFD."""
        return self.data[self.starts[line] : self.ends[line]].decode("utf-8", errors="replace")

    def from_line(self, first: int) -> Lines:
        """Without the lines before `first`."""
        return Lines(self.data, self.starts[first:], self.ends[first:], self.utf8[first:])

    def select(self, keep: Bools) -> bytes:
        """The kept lines, each ended by a line break; copied run by run, for most lines are kept."""
        near = (self.starts[1:] - self.ends[:-1]) <= len("\r\n")  # no blank line between
        joined = keep[:-1] & keep[1:] & near
        first = keep & ~np.concatenate([[False], joined])
        last = keep & ~np.concatenate([joined, [False]])
        return b"".join(
            self.data[start:end] + b"\n"
            for start, end in zip(self.starts[first].tolist(), self.ends[last].tolist(), strict=True)
        )


def split_lines(path: Path, data: bytes) -> Lines:
    """Split at LF, CRLF or (where there is no LF) CR; refuse text that is not UTF-8 in most lines."""
    if b"\n" not in data and b"\r" in data:
        data = data.replace(b"\r", b"\n")
    lines, first_bad = lines_of(data)
    if not lines.utf8[0] or lines.utf8.mean() < MIN_UTF8:
        raise not_utf8(path, f"byte {first_bad}")
    return lines


def not_utf8(path: Path, place: str) -> DataError:
    """The refusal of a text file that is not UTF-8."""
    return DataError(path, f"is not UTF-8 ({place})", "set file.encoding, for example cp1252")


def lines_of(data: bytes) -> tuple[Lines, int]:
    """Split at LF or CRLF, and the offset of the first byte that is not UTF-8 (−1 if none)."""
    buffer = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(buffer == ord("\n")).astype(np.int64)
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    returns = (ends > starts) & (buffer[np.maximum(ends - 1, 0)] == ord("\r"))
    ends = ends - returns
    filled = ends > starts
    starts, ends = starts[filled], ends[filled]
    utf8, first_bad = _utf8(data, starts, ends)
    return Lines(data, starts, ends, utf8), first_bad


def _utf8(data: bytes, starts: Offsets, ends: Offsets) -> tuple[Bools, int]:
    """`[n]` whether each line is UTF-8, and the offset of the first byte that is not (−1 if none).

    The decoder stops at the first bad byte and starts again after that line: linear in the file.
    """
    good = np.ones(len(starts), dtype=bool)
    view = memoryview(data)
    position, first_bad = 0, -1
    while position < len(data):
        try:
            codecs.utf_8_decode(view[position:], "strict", True)
            break
        except UnicodeDecodeError as error:
            bad = position + error.start
            first_bad = bad if first_bad < 0 else first_bad
            line = int(np.searchsorted(starts, bad, side="right")) - 1
            good[line] = False
            position = int(ends[line])
    return good, first_bad
