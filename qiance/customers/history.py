"""What is known of each customer at a cutoff: U users, times in days."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.data.errors import DataError
from qiance.data.purchases import PurchaseLog

Floats = NDArray[np.float64]
WINDOWS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the history, back from the cutoff: purchases are counted in them
_YOUNGEST = 0.5  # days since the first purchase of somebody who bought on the last day
_LEAST = 1.0  # minor units: logarithms are taken of nothing less


@dataclass(frozen=True)
class History:
    """The log before a cutoff, by user, `[U]` each.

    repeats: days with a purchase after the first. last: days from the first purchase to the last. age: days
    from the first purchase to the cutoff. recent: `[U, 4]` purchases in each of `WINDOWS`. gaps: mean,
    longest, shortest and standard deviation of the days between purchases `[U, 4]`, NaN where there is none.
    first_value, last_value, mean_value, mean_log: of a purchase, minor units, and of its logarithm.
    squares, log_squares: Σ (value − own mean)², Σ (logarithm − own mean)².
    """

    user_ids: NDArray[np.str_]
    cutoff: int
    span: float
    repeats: Floats
    last: Floats
    age: Floats
    recent: Floats
    gaps: Floats
    first_value: Floats
    last_value: Floats
    mean_value: Floats
    mean_log: Floats
    squares: Floats
    log_squares: Floats

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, part: slice | NDArray[np.bool_]) -> History:
        """Some of the users."""
        own = [field.name for field in fields(self) if field.name not in ("cutoff", "span")]
        some: dict[str, Any] = {name: getattr(self, name)[part] for name in own}
        return replace(self, **some)

    @property
    def bought(self) -> Floats:
        """Days with a purchase, the first included."""
        return self.repeats + 1


def history_of(log: PurchaseLog, cutoff: int, span: float) -> History:
    """Of everybody who bought before day `cutoff`; nothing later counts. DataError if nobody did.

    span: days of history that lengths are compared with: those that the model was fitted on.
    """
    seen = log.before(cutoff)
    if not len(seen):
        raise DataError(log.source, "has no purchase before the cutoff", "choose a later cutoff")
    count = seen.count()
    starts = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
    ends = starts + count - 1
    first, last = seen.day[starts], seen.day[ends]
    logs = np.log(np.maximum(seen.value, _LEAST))
    mean, mean_log = _mean(seen.value, seen, count), _mean(logs, seen, count)
    return History(
        user_ids=seen.user_ids,
        cutoff=cutoff,
        span=float(span),
        repeats=(count - 1).astype(np.float64),
        last=(last - first).astype(np.float64),
        age=np.maximum(cutoff - 1.0 - first, _YOUNGEST),
        recent=_recent(seen, cutoff, span),
        gaps=_gaps(seen, len(count)),
        first_value=seen.value[starts],
        last_value=seen.value[ends],
        mean_value=mean,
        mean_log=mean_log,
        squares=_sum((seen.value - mean[seen.user]) ** 2, seen, len(count)),
        log_squares=_sum((logs - mean_log[seen.user]) ** 2, seen, len(count)),
    )


def _sum(values: Floats, log: PurchaseLog, users: int) -> Floats:
    return np.bincount(log.user, values, minlength=users).astype(np.float64)


def _mean(values: Floats, log: PurchaseLog, count: NDArray[np.int64]) -> Floats:
    return _sum(values, log, len(count)) / count


def _recent(log: PurchaseLog, cutoff: int, span: float) -> Floats:
    users = len(log.user_ids)
    return np.stack(
        [_sum((log.day >= cutoff - span * share).astype(float), log, users) for share in WINDOWS], 1
    )


def _gaps(log: PurchaseLog, users: int) -> Floats:
    """Mean, longest, shortest, standard deviation; NaN where there are not two purchases (three)."""
    same = np.diff(log.user) == 0
    gap, user = np.diff(log.day)[same].astype(np.float64), log.user[1:][same]
    count = np.bincount(user, minlength=users)
    found = np.full((users, 4), np.nan)
    has = count > 0
    total, squared = (np.bincount(user, v, minlength=users) for v in (gap, gap**2))
    found[has, 0] = total[has] / count[has]
    found[:, 1], found[:, 2] = -np.inf, np.inf
    np.maximum.at(found[:, 1], user, gap)
    np.minimum.at(found[:, 2], user, gap)
    found[~has, 1:3] = np.nan
    two = count > 1
    spread = squared[two] - count[two] * found[two, 0] ** 2
    found[two, 3] = np.sqrt(np.maximum(spread, 0.0) / (count[two] - 1))
    return found
