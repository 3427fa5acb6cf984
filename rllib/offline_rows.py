"""How Ray Data hands the days of a log to RLlib's learners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.extensions import ArrowTensorArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.offline.offline_data import OfflineData


class Rows(OfflineData):
    """Columns of the npz files `config.input_` as batches of the module, kept in Ray's object store.

    RLlib's own way makes an episode object of each row, and a pass of the network over it. What that adds for
    MARWIL, returns from single days and an untrained critic, is not what the algorithm is: advantages from
    whole episodes are known from the log, and are written beside each day.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # holds the names of the files
        self.data = ray.data.from_arrow([_table(path) for path in config.input_]).materialize()
        self.data_is_mapped = True


def _table(path: str) -> pa.Table:
    with np.load(path, allow_pickle=False) as stored:
        columns = {f"{DEFAULT_MODULE_ID}/{name}": stored[name] for name in stored.files}
    return pa.table(
        {name: x if x.ndim == 1 else ArrowTensorArray.from_numpy(x) for name, x in columns.items()}
    )
