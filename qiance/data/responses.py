"""Flat response tables: one row per contact, with the arm shown, its propensity, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.data.faults import TableReport

ARM = "arm"
LABELS = ("click", "conversion", "sales")


@dataclass(frozen=True)
class ResponseTable:
    """Logged responses of N rows to K arms.

    table: `[N]` rows with row_id, unit_id, arm (strings), propensity (of the arm shown, in (0, 1]; null
        where nobody logged it), optionally occurred_at and converted_at (null without a conversion), the
        feature columns, and the labels click and conversion (int8, 0 or 1) and sales (int64 minor units).
        Features are null where unknown. Without arms there is no arm and no propensity: such a log is for
        prediction alone.
    numeric, categorical, labels: names of those columns.
    arms: `[K]` in a fixed order; control_arm: the one that means doing nothing, if there is one.
    arm_cost: minor units per contact; an arm that is not listed costs nothing.
    log_end: until when conversions were collected, where that is known and the table has converted_at.
    randomised: each arm was drawn with the same propensity for every row.
    arm_features: `[K]` rows in the order of `arms`: `arm` and the features that belong to the arm.
    pair_features: feature name → `[N, K]` values of that feature for every row and arm.
    """

    name: str
    table: pa.Table
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    labels: tuple[str, ...]
    arms: tuple[str, ...]
    control_arm: str | None
    arm_cost: dict[str, int]
    currency: str
    randomised: bool
    report: TableReport
    fingerprint: str = ""
    arm_features: pa.Table | None = None
    pair_features: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    log_end: datetime | None = None

    @property
    def can_compare(self) -> bool:
        """Whether policies can be compared on it: there are arms, and how they were chosen is known."""
        return bool(self.arms) and not self.table["propensity"].null_count

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def features(self) -> tuple[str, ...]:
        return self.numeric + self.categorical

    def arm_index(self) -> NDArray[np.int64]:
        """`[N]` position in `arms` of the arm that was shown."""
        codes: NDArray[np.int64] = (
            pc.index_in(self.table[ARM], value_set=pa.array(self.arms, pa.string()))
            .to_numpy()
            .astype(np.int64)
        )
        return codes

    def features_if(self, arm: str) -> pa.Table:
        """`[N]` feature rows as they would have been had `arm` been shown to everybody."""
        if arm not in self.arms:
            raise ValueError(f"arm: {arm!r} is not one of the {len(self.arms)} arms of {self.name}")
        position = self.arms.index(arm)
        features = self.table.select(list(self.features))
        for name in self.features:
            place = features.column_names.index(name)
            if name in self.pair_features:
                features = features.set_column(place, name, pa.array(self.pair_features[name][:, position]))
            elif self.arm_features is not None and name in self.arm_features.column_names:
                value = self.arm_features[name][position]
                features = features.set_column(place, name, pa.repeat(value, len(self)))
        return features
