"""Purchase sequences: a line per user, `user item item ...`, oldest first; split by leaving the last out."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qiance.data.errors import DataError

# To learn from, to choose by and to judge by takes one purchase each, and one that comes before.
MIN_PURCHASES = 4

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Purchases:
    """users: `[U]` ids as read. rows: for each user the items bought, 1..V, oldest first. items: `[V]` ids as
    read; item k is `items[k - 1]`, and 0 is no item. fingerprint: SHA-256 of the file."""

    users: tuple[str, ...]
    rows: tuple[Ints, ...]
    items: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.users)

    def some(self, count: int | None) -> Purchases:
        """The first `count` users, with only the items that they bought."""
        if count is None or count >= len(self):
            return self
        lines = [(user, [self.items[k - 1] for k in row]) for user, row in self._lines(count)]
        return purchases_of(lines, f"{self.fingerprint}:{count}")

    def _lines(self, count: int) -> Iterator[tuple[str, Ints]]:
        return zip(self.users[:count], self.rows[:count], strict=True)


def read_sequences(path: Path) -> Purchases:
    """Read `path`, gzipped if it ends with `.gz`; DataError names the line with too few purchases."""
    if not path.is_file():
        raise DataError(path, "does not exist", "pass a file with a line `user item item ...` per user")
    content = path.read_bytes()
    fingerprint = hashlib.sha256(content).hexdigest()
    try:
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error})", "pass UTF-8 text, gzipped as .gz") from None
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        user, *items = line.split() or [""]
        if len(items) < MIN_PURCHASES:
            problem = f"line {number} has {len(items)} purchases"
            raise DataError(path, problem, f"keep users with at least {MIN_PURCHASES}, oldest first")
        lines.append((user, items))
    if not lines:
        raise DataError(path, "is empty", "pass a file with a line `user item item ...` per user")
    return purchases_of(lines, fingerprint)


def purchases_of(lines: Sequence[tuple[str, Sequence[str]]], fingerprint: str) -> Purchases:
    """Number the items in the order of their ids as text, so that a number says nothing of who bought it."""
    items = tuple(sorted({item for _, bought in lines for item in bought}))
    code = {item: k for k, item in enumerate(items, start=1)}
    rows = tuple(np.array([code[item] for item in bought], dtype=np.int64) for _, bought in lines)
    return Purchases(tuple(user for user, _ in lines), rows, items, fingerprint)


@dataclass(frozen=True, slots=True)
class Known:
    """What each user had bought, and what came next. rows: as in `Purchases`; target: `[U]`."""

    rows: tuple[Ints, ...]
    target: Ints

    def take(self, users: Ints) -> Known:
        """Some of them, by place."""
        return Known(tuple(self.rows[user] for user in users), self.target[users])


def leave_out(purchases: Purchases, last: int) -> Known:
    """`last` 1: judge by the last purchase, everything before is known; 2: choose by the one before it."""
    target = np.array([row[-last] for row in purchases.rows])
    return Known(tuple(row[:-last] for row in purchases.rows), target)


def batches(rows: Sequence[Ints], size: int, rng: np.random.Generator | None) -> Iterator[Ints]:
    """Users of about equal length together, so that little is padded; in random order with `rng`."""
    length = np.array([len(row) for row in rows])
    jitter = np.zeros(len(rows)) if rng is None else rng.random(len(rows))
    order = np.lexsort((jitter, length))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    yield from parts if rng is None else (parts[k] for k in rng.permutation(len(parts)))
