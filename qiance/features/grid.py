"""Users × actions as the effect model reads them, the part of the actions encoded once.

A decision scores one user with hundreds of actions, and of the features of a pair only few hang on both. So
the columns of the actions are encoded when they become candidates, and a request adds what belongs to the
user. What comes out equals `Encoder.encode` of `columns.assemble`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from qiance.features.schema import Encoder
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


class EncodedGrid:
    """A actions with their items at one moment, encoded; `rows` adds the users.

    num: `[A, Dn]` float32, 0 where a column hangs on the user; cat: `[A, Dc]` int64.
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
        self._encoder = encoder
        self._place = {name: place for place, name in enumerate(encoder.schema.numeric)}
        self._user = [name for name in OF_USER if name in self._place]
        self._pair = [name for name in USER_CATEGORY_FEATURES if name in self._place]
        self._user_places = np.array([self._place[name] for name in self._user], dtype=np.int64)
        self._pair_places = np.array([self._place[name] for name in self._pair], dtype=np.int64)
        flags = encoder.flags[self._user_places]
        self._flagged, self._flags = flags >= 0, flags[flags >= 0]
        self.user_columns = np.concatenate([self._user_places, self._flags])
        self._absent = np.array([ABSENT_PAIR[name] for name in self._pair])
        self.depths, self._depth = np.unique(actions.numeric["depth"], return_inverse=True)
        # The last category is none: it stands for actions without an item, and for unknown categories.
        self._category = np.array([category_index.get(name, -1) for name in actions.category], dtype=np.int64)
        self.num, self.cat = encoder.encode(_alone(actions, item))
        for name in (*self._user, *(name for name in OF_PAIR if name in self._place)):
            self.num[:, self._place[name]] = 0.0
        self.num[:, self._flags] = 0.0

    def __len__(self) -> int:
        return len(self.num)

    def users(self, users: UserRows) -> Singles:
        """`[U, Dn]`, 0 where a column does not hang on the user alone."""
        given = {**users.columns, CONTEXT_FEATURES[0]: users.contacts_7d}
        values = np.array([given[name] for name in self._user], dtype=np.float64).T
        scaled, missing = self._encoder.scale(values, self._user_places)
        num = np.zeros((len(users), self.num.shape[1]), dtype=np.float32)
        num[:, self._user_places] = scaled
        num[:, self._flags] = missing[:, self._flagged]
        return num

    def categories(self, users: UserRows) -> Singles:
        """`[U, C + 1, k]` of the k columns of user and category; the last category is none."""
        size = users.user_category[USER_CATEGORY_FEATURES[0]].shape[1]
        values = np.full((len(users), size + 1, len(self._pair)), np.nan)
        for place, name in enumerate(self._pair):
            values[:, :-1, place] = users.user_category[name]
        values = np.where(np.isnan(values), self._absent, np.nan_to_num(values))
        return self._encoder.scale(values, self._pair_places)[0].astype(np.float32)

    def interactions(self, users: UserRows) -> Singles:
        """`[U, K]` depth × discount share at the K depths that the actions have."""
        values = self.depths * np.nan_to_num(users.columns[SHARE])[:, None]
        return self._encoder.scale(values, self._place[DEPTH_X_SHARE])[0].astype(np.float32)

    def rows(self, users: UserRows) -> tuple[Singles, Codes]:
        """num `[U·A, Dn]` and cat `[U·A, Dc]`, row-major."""
        count = len(users)
        num = np.empty((count, *self.num.shape), dtype=np.float32)
        num[:] = self.num
        num[:, :, self.user_columns] = self.users(users)[:, None, self.user_columns]
        if self._pair:
            num[:, :, self._pair_places] = self.categories(users)[:, self._category]
        if DEPTH_X_SHARE in self._place:
            num[:, :, self._place[DEPTH_X_SHARE]] = self.interactions(users)[:, self._depth]
        return num.reshape(-1, self.num.shape[1]), np.tile(self.cat, (count, 1))


def _alone(actions: ActionColumns, item: Mapping[str, Floats]) -> dict[str, NDArray[np.generic]]:
    """`[A]` columns of the actions, beside an unknown user."""
    unknown = np.full(len(actions.channel), np.nan)
    row = actions.item_row
    return assemble(
        user=dict.fromkeys(USER_COLUMNS, unknown),
        item={name: np.where(row >= 0, item[name][row], np.nan) for name in ITEM_COLUMNS},
        user_category=dict.fromkeys(USER_CATEGORY_FEATURES, unknown),
        actions={**actions.numeric, "channel": actions.channel, "category": actions.category},
        contacts_7d=unknown,
    )
