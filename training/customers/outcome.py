"""What customers did in a period: the truth that forecasts are judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.data.purchases import PurchaseLog
from training.customers.settings import Period

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """`[U]` each: days with a purchase; what was spent (minor units); days to the next purchase, inf for
    none."""

    count: Floats
    value: Floats
    next_day: Floats

    @property
    def churned(self) -> Floats:
        """`[U]` 1 without a purchase."""
        return (self.count == 0).astype(np.float64)


def outcome_of(log: PurchaseLog, user_ids: NDArray[np.str_], period: Period) -> Outcome:
    """Of `user_ids` (sorted) in the days of `period`; who is not in the log did nothing."""
    here = (log.day >= period.cutoff) & (log.day < period.cutoff + period.horizon)
    place = np.searchsorted(user_ids, log.user_ids)
    known = place < len(user_ids)
    known[known] = user_ids[place[known]] == log.user_ids[known]
    here &= known[log.user]
    user, day = place[log.user[here]], log.day[here]
    first = np.full(len(user_ids), np.inf)
    np.minimum.at(first, user, day - (period.cutoff - 1.0))
    count = np.bincount(user, minlength=len(user_ids)).astype(np.float64)
    return Outcome(count, np.bincount(user, log.value[here], minlength=len(user_ids)), first)
