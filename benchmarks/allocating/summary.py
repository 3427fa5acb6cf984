"""Means over seeds, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """95 % Student-t interval of the mean; None with fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return {"low": None, "high": None}
    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    middle = float(np.mean(values))
    return {"low": middle - half, "high": middle + half}
