"""What boosted trees read of a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qiance.features.schema import Columns, FeatureSchema


def tree_inputs(schema: FeatureSchema, columns: Columns, cat: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[N, F]`: numbers as they are (NaN where missing), then the codes `cat` `[N, C]`."""
    numeric = [np.asarray(columns[name], dtype=np.float64) for name in schema.numeric]
    table = np.column_stack([*numeric, cat.astype(np.float64)])
    table[~np.isfinite(table)] = np.nan
    return table
