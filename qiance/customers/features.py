"""What the boosted trees see of a customer: lengths as shares of the history, so that cutoffs are
comparable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from qiance.customers.history import WINDOWS, History
from qiance.customers.process import BuyingProcess, Posterior
from qiance.customers.spend import SpendModel

Floats = NDArray[np.float64]
NAMES = (
    *("repeats", "age", "recency", "recency_of_age", "recency_of_gap", "longest_of_mean_gap"),
    *("mean_gap", "longest_gap", "shortest_gap", "spread_of_gaps"),
    *(f"bought_in_{share:g}" for share in WINDOWS),
    *("spend", "spend_log", "last_value", "first_value", "total_value"),
    *("logit_none", "log_count", "log_excess", "horizon"),
)
_EDGE = 1e-5


@dataclass(frozen=True)
class Start:
    """Where the trees start from, `[U]` each: the logit of buying nothing within the horizon, and the
    logarithm of the expected purchases after the first of those who buy, both by the buying process."""

    none: Floats
    excess: Floats


def start_of(process: BuyingProcess, posterior: Posterior, horizon: int) -> tuple[Start, Floats]:
    """The start, and the expected purchases `[U]` within `horizon` days."""
    any_ = np.clip(process.next_within(posterior, np.array([float(horizon)]))[:, 0], _EDGE, 1 - _EDGE)
    count = np.maximum(process.expected_count(posterior, horizon), 1e-6)
    return Start(-logit(any_), np.log(np.maximum(count / any_ - 1, 1e-4))), count


def features_of(history: History, start: Start, count: Floats, spend: SpendModel, horizon: int) -> Floats:
    """`[U, F]` in the order of `NAMES`; NaN where there is none."""
    recency = history.age - history.last
    gaps = history.gaps
    with np.errstate(invalid="ignore"):
        own = [recency / gaps[:, 0], gaps[:, 1] / gaps[:, 0]]
    total = np.log1p(history.mean_value * history.bought)
    lengths = [history.age, recency]
    columns = [
        history.repeats,
        *(length / history.span for length in lengths),
        recency / (history.age + 1),
        *own,
        *(gaps.T / history.span),
        *history.recent.T,
        *spend.inputs(history).T,
        total,
        start.none,
        np.log(count),
        start.excess,
        np.full(len(history), horizon / history.span),
    ]
    return np.column_stack(columns)
