"""Training rows of the effect model: logged decisions joined point-in-time with features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from qiance.decide.predictor import vectors_of
from qiance.domain import Action, Catalogue
from qiance.features.columns import ITEM_COLUMNS, NONE, ActionColumns, assemble
from qiance.features.projection import vector_column
from qiance.features.transforms import USER_CATEGORY_FEATURES, USER_FEATURES
from qiance.features.words import TEXT_VECTOR, VectorsOf, no_vectors
from training.featurise import point_in_time, sessions_at

LABELS = ("click", "conversion", "sales", "margin")


def training_table(
    repository: Path,
    catalogue: Catalogue,
    actions: Sequence[Action],
    user_ids: Sequence[str],
    choice: np.ndarray,
    at: np.ndarray,
    contacts_7d: np.ndarray,
    labels: Mapping[str, np.ndarray],
    vectors: VectorsOf = no_vectors,
) -> pa.Table:
    """Columns of `EFFECT_SCHEMA` and the labels, one row per decision.

    user_ids: `[n]`; choice: `[n]` index into `actions`; at: `[n]` seconds since the epoch; labels: `[n]`
    each, minor units where money; vectors: finds those of the actions' words. The table also has user_id and
    at, to split by.
    """
    parts = ActionColumns.build(
        actions, catalogue.index, [item.category for item in catalogue], vectors_of(actions, vectors)
    )
    items = np.array([a.item_id for a in actions], dtype=object)[choice]
    category = parts.category[choice]
    rows = pd.DataFrame(
        {
            "user_id": np.asarray(user_ids, dtype=object),
            "item_id": items,
            "category": np.where(category == NONE, None, category),
            "event_timestamp": pd.to_datetime(at, unit="s", utc=True),
        }
    )
    joined = point_in_time(repository, rows)
    columns = assemble(
        user={name: joined[name].to_numpy() for name in USER_FEATURES} | sessions_at(repository, rows),
        item={name: joined[name].to_numpy() for name in ITEM_COLUMNS},
        user_category={name: joined[name].to_numpy() for name in USER_CATEGORY_FEATURES},
        actions=parts.columns(choice),
        contacts_7d=contacts_7d,
    )
    texts = columns.pop(TEXT_VECTOR)
    table: dict[str, Any] = {name: pa.array(values) for name, values in columns.items()}
    table[TEXT_VECTOR] = vector_column(texts)
    table |= {name: pa.array(np.asarray(values, dtype=np.int64)) for name, values in labels.items()}
    return pa.table(
        {**table, "user_id": pa.array(list(user_ids), pa.string()), "at": pa.array(np.asarray(at, np.int64))}
    )
