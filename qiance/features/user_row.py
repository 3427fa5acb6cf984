"""What the model read of a user, as bytes: written with a decision, so that it can be scored again.

A row is `layout id (4) · categories (4) · columns (8 each) · pairs`, little-endian; a pair is `category (4) ·
values (8 each)`. Pairs without a purchase are left out: they read as `ABSENT_PAIR`, whatever stood there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.features.columns import ABSENT_PAIR, USER_COLUMNS
from qiance.features.transforms import USER_CATEGORY_FEATURES

Floats = NDArray[np.float64]

CONTACTS = "contacts_7d"
_NAMES = ";".join(["1", *USER_COLUMNS, CONTACTS, *USER_CATEGORY_FEATURES])
LAYOUT_ID = hashlib.sha256(_NAMES.encode()).digest()[:4]
_HEAD = np.dtype([("layout", "S4"), ("categories", "<u4"), ("columns", "<f8", (len(USER_COLUMNS) + 1,))])
_PAIR = np.dtype([("category", "<u4"), ("values", "<f8", (len(USER_CATEGORY_FEATURES),))])


@dataclass(frozen=True)
class UserRows:
    """Feature values of U users at one instant.

    columns: `[U]` per user feature; user_category: `[U, C]` per feature; contacts_7d: `[U]`.
    """

    columns: Mapping[str, Floats]
    user_category: Mapping[str, Floats]
    contacts_7d: Floats

    def __len__(self) -> int:
        return len(self.contacts_7d)


def pack_all(users: UserRows) -> list[bytes]:
    """One row per user; numbers come back exactly."""
    cube = np.stack([users.user_category[name] for name in USER_CATEGORY_FEATURES], axis=-1)
    head = np.zeros(len(users), dtype=_HEAD)
    head["layout"], head["categories"] = LAYOUT_ID, cube.shape[1]
    for place, name in enumerate(USER_COLUMNS):
        head["columns"][:, place] = users.columns[name]
    head["columns"][:, -1] = users.contacts_7d
    absent = np.array([ABSENT_PAIR[name] for name in USER_CATEGORY_FEATURES])
    user, category = np.nonzero(~(np.isnan(cube) | (cube == absent)).all(axis=2))
    pairs = np.zeros(len(user), dtype=_PAIR)
    pairs["category"], pairs["values"] = category, cube[user, category]
    edges = np.searchsorted(user, np.arange(len(users) + 1)).tolist()
    return [head[u].tobytes() + pairs[edges[u] : edges[u + 1]].tobytes() for u in range(len(users))]


def unpack(rows: Sequence[bytes]) -> UserRows:
    """Inverse of `pack_all`; a pair that was left out is NaN. All rows must have the same categories.

    Raises ValueError for a row that is damaged, or was written under other features.
    """
    for place, row in enumerate(rows):
        _check(place, row)
    head = np.frombuffer(b"".join(row[: _HEAD.itemsize] for row in rows), dtype=_HEAD)
    counts = set(head["categories"].tolist())
    if len(counts) > 1:
        raise ValueError(f"user_row: rows of {sorted(counts)} categories; unpack those of one run together")
    sizes = [(len(row) - _HEAD.itemsize) // _PAIR.itemsize for row in rows]
    pairs = np.frombuffer(b"".join(row[_HEAD.itemsize :] for row in rows), dtype=_PAIR)
    cube = np.full((len(rows), max(counts, default=0), len(USER_CATEGORY_FEATURES)), np.nan)
    if len(pairs) and int(pairs["category"].max()) >= cube.shape[1]:
        raise ValueError("user_row: names a category beyond its own number; the row is damaged")
    cube[np.repeat(np.arange(len(rows)), sizes), pairs["category"]] = pairs["values"]
    columns = head["columns"].astype(np.float64)
    return UserRows(
        columns={name: columns[:, place] for place, name in enumerate(USER_COLUMNS)},
        user_category={name: cube[:, :, place] for place, name in enumerate(USER_CATEGORY_FEATURES)},
        contacts_7d=columns[:, -1],
    )


def _check(place: int, row: bytes) -> None:
    if row[:4] != LAYOUT_ID:
        raise ValueError(f"user_row: row {place} has other features; replay it with its version")
    if len(row) < _HEAD.itemsize or (len(row) - _HEAD.itemsize) % _PAIR.itemsize:
        raise ValueError(f"user_row: row {place} has {len(row)} bytes, which no row has; it is damaged")
