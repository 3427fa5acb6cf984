"""Feature columns of the effect model: one function for training rows and for the live grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Action
from qiance.features.schema import FeatureSchema
from qiance.features.session import SESSION_FEATURES
from qiance.features.transforms import (
    ITEM_FEATURES,
    ITEM_POPULARITY_FEATURES,
    USER_CATEGORY_FEATURES,
    USER_FEATURES,
)
from qiance.features.words import (
    CREATIVE_FEATURES,
    TEXT_VECTOR,
    Vectors,
    creative_features,
    creative_text,
)

Columns = dict[str, NDArray[Any]]

ACTION_FEATURES = ("depth", "contact_cost", *CREATIVE_FEATURES)
CONTEXT_FEATURES = ("contacts_7d",)
# What is known of a user, of an item: from the store's views of each.
USER_COLUMNS = (*USER_FEATURES, *SESSION_FEATURES)
# Stock decides whether an item may be offered, not what an offer does; most shops do not tell it.
ITEM_COLUMNS = tuple(name for name in (*ITEM_FEATURES, *ITEM_POPULARITY_FEATURES) if name != "stock")
NONE = "none"
NO_VECTORS: Vectors = {}
# How a user and a category without a purchase in the window read: recency is the window's length.
ABSENT_PAIR = {"category_share": 0.0, "category_baskets_90d": 0.0, "category_recency_days": 90.0}

EFFECT_SCHEMA = FeatureSchema(
    service="effect_v1",
    numeric=(
        *USER_COLUMNS,
        *ITEM_COLUMNS,
        *USER_CATEGORY_FEATURES,
        *ACTION_FEATURES,
        *CONTEXT_FEATURES,
        "depth_x_discount_share",
        "depth_x_price",
    ),
    categorical=("channel", "category"),
    vectors=(TEXT_VECTOR,),
)


@dataclass(frozen=True)
class ActionColumns:
    """The action part of the feature row, `[A]` per column; category is `none` without an item.

    text: packed vectors of the words, None where there are no words or no vector of them.
    """

    numeric: Mapping[str, NDArray[np.float64]]
    channel: NDArray[Any]
    category: NDArray[Any]
    text: NDArray[Any]
    item_row: NDArray[np.int64]

    @classmethod
    def build(
        cls,
        actions: Sequence[Action],
        item_index: Mapping[str, int],
        item_category: Sequence[str],
        vectors: Vectors = NO_VECTORS,
    ) -> ActionColumns:
        """`item_index` maps item id → row of the item features; unknown items are refused by name.

        vectors: by `creative_text`; the others' words are read as usual ones.
        """
        rows = []
        for action in actions:
            if action.item_id is not None and action.item_id not in item_index:
                raise ValueError(f"item_id: {action.item_id!r} of action {action.action_id!r} is unknown")
            rows.append(-1 if action.item_id is None else item_index[action.item_id])
        words = [creative_features(a.creative) if a.creative else {} for a in actions]
        numeric = {n: np.array([w.get(n, 0.0) for w in words], dtype=np.float64) for n in CREATIVE_FEATURES}
        numeric["depth"] = np.array([a.offer.depth for a in actions], dtype=np.float64)
        numeric["contact_cost"] = np.array([float(a.contact_cost) for a in actions], dtype=np.float64)
        return cls(
            numeric=numeric,
            channel=np.array([a.channel.value for a in actions], dtype=object),
            category=np.array([item_category[r] if r >= 0 else NONE for r in rows], dtype=object),
            text=_texts(actions, vectors),
            item_row=np.array(rows, dtype=np.int64),
        )

    def columns(self, rows: NDArray[np.int64] | None = None) -> Columns:
        """What `assemble` takes of actions: of all of them, or of `rows` `[n]`."""
        whole: Columns = {
            **self.numeric,
            "channel": self.channel,
            "category": self.category,
            TEXT_VECTOR: self.text,
        }
        return whole if rows is None else {name: values[rows] for name, values in whole.items()}


def _texts(actions: Sequence[Action], vectors: Vectors) -> NDArray[Any]:
    found = np.full(len(actions), None, dtype=object)
    for place, action in enumerate(actions):
        if action.creative is not None:
            found[place] = vectors.get(creative_text(action.creative))
    return found


def unread(actions: Sequence[Action], vectors: Vectors) -> NDArray[np.bool_]:
    """`[A]` actions with words of which there is no vector."""
    return np.array(
        [a.creative is not None and creative_text(a.creative) not in vectors for a in actions],
        dtype=np.bool_,
    )


def assemble(
    user: Mapping[str, NDArray[np.float64]],
    item: Mapping[str, NDArray[np.float64]],
    user_category: Mapping[str, NDArray[np.float64]],
    actions: Mapping[str, NDArray[Any]],
    contacts_7d: NDArray[np.float64],
) -> Columns:
    """Columns of `EFFECT_SCHEMA` from parts that all have `[n]` rows; actions: see `ActionColumns.columns`.

    A pair of user and category without a purchase has no row in the store (NaN): `ABSENT_PAIR` then.
    """
    columns: Columns = {name: np.asarray(user[name], dtype=np.float64) for name in USER_COLUMNS}
    columns |= {name: np.asarray(item[name], dtype=np.float64) for name in ITEM_COLUMNS}
    for name in USER_CATEGORY_FEATURES:
        values = np.asarray(user_category[name], dtype=np.float64)
        columns[name] = np.nan_to_num(values, nan=ABSENT_PAIR[name])
    columns |= {name: actions[name] for name in (*ACTION_FEATURES, "channel", "category", TEXT_VECTOR)}
    columns["contacts_7d"] = np.asarray(contacts_7d, dtype=np.float64)
    discount_share = np.nan_to_num(columns["discount_share"])
    columns["depth_x_discount_share"] = columns["depth"] * discount_share
    columns["depth_x_price"] = columns["depth"] * np.nan_to_num(columns["price"])
    return columns
