"""Users × actions as the effect model reads them, the part of the actions encoded once.

A decision scores one user with hundreds of actions, and of the features of a pair only few hang on both. So
the columns of the actions are encoded when they become candidates, and a request adds what belongs to the
user. What comes out equals `Encoder.encode` of `columns.assemble`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.features.columns import (
    ABSENT_PAIR,
    CONTEXT_FEATURES,
    EFFECT_SCHEMA,
    ITEM_COLUMNS,
    USER_COLUMNS,
    ActionColumns,
    assemble,
)
from qiance.features.encoder import Encoder
from qiance.features.transforms import USER_CATEGORY_FEATURES
from qiance.features.user_row import UserRows

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Codes = NDArray[np.int64]

# What hangs on the user alone, and what hangs on user and action; all else hangs on the action alone.
OF_USER = (*USER_COLUMNS, *CONTEXT_FEATURES)
SHARE = "discount_share"
DEPTH_X_SHARE = "depth_x_discount_share"
OF_PAIR = (*USER_CATEGORY_FEATURES, DEPTH_X_SHARE)
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class GridColumns:
    """Columns of the encoded numbers, by what they hang on; all others hang on the action alone.

    user: on the user, flags of missing values among them. pair: on user and action.
    """

    user: tuple[int, ...]
    pair: tuple[int, ...]

    @classmethod
    def of(cls, encoder: Encoder) -> GridColumns | None:
        """None for a model that reads features of its own, or nothing of the user or of both."""
        user, pair = _places(encoder, OF_USER), _places(encoder, OF_PAIR)
        if not set(encoder.schema.names) <= set(EFFECT_SCHEMA.names) or not user or not pair:
            return None
        flags = [int(flag) for flag in encoder.flags[list(user.values())] if flag >= 0]
        return cls((*user.values(), *flags), tuple(pair.values()))


class EncodedGrid:
    """A actions with their items at one moment, encoded; the methods add U users.

    num: `[A, Dn]` float32, 0 where a column hangs on the user; cat: `[A, Dc]` int64.
    columns: the parts of num, or None for a model that reads nothing of the user or of both.
    category_index: name → column of `UserRows.user_category`.
    Raises ValueError for a model that reads a feature which is none of `EFFECT_SCHEMA`.
    """

    def __init__(
        self,
        encoder: Encoder,
        actions: ActionColumns,
        item: Mapping[str, Floats],
        category_index: Mapping[str, int],
    ) -> None:
        unknown = [name for name in encoder.schema.names if name not in EFFECT_SCHEMA.names]
        if unknown:
            raise ValueError(
                f"model: reads {unknown[0]!r}, which no decision knows; train it on EFFECT_SCHEMA"
            )
        self._encoder, self.columns = encoder, GridColumns.of(encoder)
        self._user = _places(encoder, OF_USER)
        self._user_places = np.array(list(self._user.values()), dtype=np.int64)
        flags = encoder.flags[self._user_places]
        self._flagged = flags >= 0
        self._user_columns = [*self._user.values(), *flags[self._flagged].tolist()]
        self._cells = _Cells(encoder, actions, category_index)
        self.num, self.cat = encoder.encode(_alone(actions, item))
        self.num[:, [*self._user_columns, *self._cells.columns]] = 0.0

    def __len__(self) -> int:
        return len(self.num)

    def user(self, users: UserRows) -> Singles:
        """`[Du, U]`: what hangs on the user alone, in the order of `GridColumns.user`."""
        given = {**users.columns, CONTEXT_FEATURES[0]: users.contacts_7d}
        values = np.empty((len(self._user), len(users)))
        for own, name in zip(values, self._user, strict=True):
            own[:] = given[name]
        scaled, missing = self._encoder.scale(values.T, self._user_places)
        return np.concatenate([scaled.T, missing.T[self._flagged]]).astype(np.float32)

    def pair(self, users: UserRows) -> Singles:
        """`[Dp, U, A]`: what hangs on user and action, in the order of `GridColumns.pair`."""
        return self._cells.pair(users)

    def rows(self, users: UserRows) -> tuple[Singles, Codes]:
        """num `[U·A, Dn]` and cat `[U·A, Dc]`, row-major."""
        num = np.empty((len(users), *self.num.shape), dtype=np.float32)
        num[:] = self.num
        num[:, :, self._user_columns] = self.user(users).T[:, None]
        num[:, :, self._cells.columns] = np.moveaxis(self.pair(users), 0, -1)
        return num.reshape(-1, self.num.shape[1]), np.tile(self.cat, (len(users), 1))


class _Cells:
    """The few numbers of a user that the columns of all its pairs are taken from.

    A pair's column hangs on the user and the action's category, or the depth of its offer. So a user has
    C + 1 cells per column of the first kind, the last for no category, and one per depth that occurs.
    """

    def __init__(self, encoder: Encoder, actions: ActionColumns, category_index: Mapping[str, int]) -> None:
        self._encoder, self._categories = encoder, len(category_index)
        places = _places(encoder, OF_PAIR)
        self.columns = list(places.values())
        self._names = [name for name in places if name != DEPTH_X_SHARE]
        self._depths, depth = np.unique(actions.numeric["depth"], return_inverse=True)
        none = self._categories
        category = np.array([category_index.get(name, none) for name in actions.category], dtype=np.int64)
        # Per column of a pair: cells, and which of them each action has.
        sizes = [self._depths.size if name == DEPTH_X_SHARE else none + 1 for name in places]
        own = [depth if name == DEPTH_X_SHARE else category for name in places]
        starts = np.cumsum([0, *sizes[:-1]])
        self._cell = np.array([start + codes for start, codes in zip(starts, own, strict=True)])
        self._places = np.repeat(np.array(self.columns, dtype=np.int64), sizes)
        self._absent = np.repeat([ABSENT_PAIR.get(name, 0.0) for name in places], sizes)

    def pair(self, users: UserRows) -> Singles:
        """`[Dp, U, A]`."""
        cells = self._encoder.scale(self._raw(users), self._places)[0].astype(np.float32)
        pair = np.empty((len(self._cell), len(users), self._cell.shape[1]), dtype=np.float32)
        for own, cell in zip(pair, self._cell, strict=True):
            np.take(cells, cell, axis=1, out=own, mode="clip")
        return pair

    def _raw(self, users: UserRows) -> Floats:
        """`[U, cells]` before they are scaled."""
        raw = np.full((len(users), len(self._places)), np.nan)
        width = self._categories + 1
        for place, name in enumerate(self._names):
            values = users.user_category[name]
            if values.shape[1] != self._categories:
                raise ValueError(
                    f"user_category.{name}: has {values.shape[1]} categories where the grid has "
                    f"{self._categories}; read the users with the categories of the grid"
                )
            raw[:, place * width : (place + 1) * width - 1] = values
        if len(self._names) < len(self.columns):
            share = _finite(users.columns[SHARE], 0.0)
            raw[:, len(self._names) * width :] = self._depths * share[:, None]
        return _finite(raw, self._absent)


def _places(encoder: Encoder, names: Sequence[str]) -> dict[str, int]:
    """Those of `names` that the encoder reads, with their place among its numbers."""
    place = {name: number for number, name in enumerate(encoder.schema.numeric)}
    return {name: place[name] for name in names if name in place}


def _finite(values: Floats, absent: Floats | float) -> Floats:
    """`absent` in place of NaN and the largest number in place of infinity, as in `columns.assemble`."""
    return np.where(np.isnan(values), absent, values).clip(-_LARGEST, _LARGEST)


def _alone(actions: ActionColumns, item: Mapping[str, Floats]) -> dict[str, NDArray[np.generic]]:
    """`[A]` columns of the actions, beside an unknown user."""
    unknown = np.full(len(actions.channel), np.nan)
    row = actions.item_row
    return assemble(
        user=dict.fromkeys(USER_COLUMNS, unknown),
        item={name: np.where(row >= 0, item[name][row], np.nan) for name in ITEM_COLUMNS},
        user_category=dict.fromkeys(USER_CATEGORY_FEATURES, unknown),
        actions=actions.columns(),
        contacts_7d=unknown,
    )
