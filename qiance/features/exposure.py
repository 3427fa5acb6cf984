"""How often a user was contacted of late: what fatigue is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXPOSURE_FEATURES = ("contacts_1d", "contacts_7d", "contacts_28d", "days_since_contact")
MAX_CONTACTS = 100
WINDOW_DAYS = 28
_DAY_US = 86_400_000_000


def exposure_features(contacts: Sequence[Sequence[int] | None], now_us: Ints) -> dict[str, Floats]:
    """`[n]` per feature at `now_us` from each user's contact times, ascending microseconds since the epoch.

    A window of d days counts contacts in [now − d, now). days_since_contact is 28 where there was none.
    """
    columns = {name: np.zeros(len(contacts)) for name in EXPOSURE_FEATURES}
    for row, (found, now) in enumerate(zip(contacts, now_us, strict=True)):
        times = np.asarray(found if found is not None else (), dtype=np.int64)
        end = int(np.searchsorted(times, now))
        for days in (1, 7, 28):
            start = int(np.searchsorted(times, now - days * _DAY_US))
            columns[f"contacts_{days}d"][row] = end - start
        since = (now - times[end - 1]) / _DAY_US if end else float(WINDOW_DAYS)
        columns["days_since_contact"][row] = min(since, float(WINDOW_DAYS))
    return columns
