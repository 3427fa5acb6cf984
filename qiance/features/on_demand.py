"""Values that depend on the row and on the moment of the request, as Feast's on-demand views compute them.

Each function takes and gives a pandas frame and calls the same pure function that serving calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Not for types alone: Feast evaluates the annotations of what it registers.
import pandas as pd
from numpy.typing import NDArray

from qiance.features.calendar import CALENDAR_FEATURES, calendar_features
from qiance.features.exposure import EXPOSURE_FEATURES, exposure_features
from qiance.features.session import SESSION_FEATURES, Recent, session_features


def session_now(inputs: pd.DataFrame) -> pd.DataFrame:
    """SESSION_FEATURES from event_times, event_types, event_items and now_us."""
    recent = [
        None if _absent(times) else Recent(tuple(map(int, times)), tuple(map(int, types)), tuple(items))
        for times, types, items in zip(
            inputs["event_times"], inputs["event_types"], inputs["event_items"], strict=True
        )
    ]
    return _frame(inputs, session_features(recent, _now(inputs)), SESSION_FEATURES)


def exposure_now(inputs: pd.DataFrame) -> pd.DataFrame:
    """EXPOSURE_FEATURES from contact_times and now_us."""
    contacts = [None if _absent(times) else [int(t) for t in times] for times in inputs["contact_times"]]
    return _frame(inputs, exposure_features(contacts, _now(inputs)), EXPOSURE_FEATURES)


def calendar_now(inputs: pd.DataFrame) -> pd.DataFrame:
    """CALENDAR_FEATURES at now_us."""
    return _frame(inputs, calendar_features(_now(inputs)), CALENDAR_FEATURES)


def _now(inputs: pd.DataFrame) -> NDArray[np.int64]:
    return np.asarray(inputs["now_us"].to_numpy(), dtype=np.int64)


def _absent(value: Any) -> bool:
    """Whether a list-typed cell is null: Feast gives None, pandas may make it NaN."""
    return value is None or (isinstance(value, float) and np.isnan(value))


def _frame(inputs: pd.DataFrame, columns: dict[str, Any], names: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame({name: columns[name] for name in names}, index=inputs.index)
