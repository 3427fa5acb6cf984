"""How Ray Data hands the days of a log to RLlib's learners."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.offline.offline_data import OfflineData


class Rows(OfflineData):
    """Columns as they are written, as batches of the module, kept in Ray's object store.

    RLlib's own way makes an episode object of each row, and a pass of the network over it. What that adds for
    MARWIL, returns from single days and an untrained critic, is not what the algorithm is: returns to the end
    are known from the log, and are written beside each day.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.data = self.data.map_batches(_batch, zero_copy_batch=True).materialize()
        self.data_is_mapped = True


def _batch(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`module/column` → values; lists become the rows of a matrix."""
    return {f"{DEFAULT_MODULE_ID}/{name}": np.stack(list(values)) for name, values in columns.items()}
