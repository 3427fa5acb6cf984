"""What a user does right now: a short list of recent events, and counts of it at the moment of a decision.

The list is stored, the counts are worked out when they are asked for: a count over the last minutes changes
by the clock alone, so a stored one would be wrong a minute later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SESSION_FEATURES = (
    "session_views",
    "session_carts",
    "session_purchases",
    "session_searches",
    "session_items",
    "session_minutes",
    "session_idle_minutes",
)
EVENT_CODES = {"view": 0, "cart": 1, "purchase": 2, "search": 3}
MAX_EVENTS = 50
GAP_US = 30 * 60 * 1_000_000  # a pause of half an hour ends a session, as web analytics count it
_MINUTE_US = 60 * 1_000_000
_COUNTED = ("session_views", "session_carts", "session_purchases", "session_searches")


@dataclass(frozen=True, slots=True)
class Recent:
    """Recent events of one user, oldest first, at most `MAX_EVENTS`.

    times: microseconds since the epoch; types: `EVENT_CODES`; items: item ids, empty where there is none.
    """

    times: tuple[int, ...] = ()
    types: tuple[int, ...] = ()
    items: tuple[str, ...] = ()

    @classmethod
    def of(cls, events: Sequence[tuple[int, str, str | None]]) -> Recent:
        """From (time, type, item id) in any order; the newest are kept."""
        ordered = sorted((at, EVENT_CODES[kind], item or "") for at, kind, item in events)[-MAX_EVENTS:]
        times, types, items = zip(*ordered, strict=True) if ordered else ((), (), ())
        return cls(times, types, items)


def session_features(recent: Sequence[Recent | None], now_us: Ints) -> dict[str, Floats]:
    """`[n]` per feature for the session that is under way at `now_us` `[n]`.

    Counts of events since the last pause of half an hour; session_items counts distinct items;
    session_minutes is since its first event, session_idle_minutes since its last. Without a session under
    way the counts are 0 and session_idle_minutes is the length of the pause. Events after `now_us` do not
    count.
    """
    rows = [_one(r or Recent(), int(now)) for r, now in zip(recent, now_us, strict=True)]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(SESSION_FEATURES))
    return {name: table[:, column] for column, name in enumerate(SESSION_FEATURES)}


def no_session(size: int) -> dict[str, Floats]:
    """`[size]` per feature where nobody is on the site."""
    return session_features([None] * size, np.zeros(size, dtype=np.int64))


def _one(recent: Recent, now: int) -> tuple[float, ...]:
    last = int(np.searchsorted(recent.times, now, side="right"))
    first, edge = last, now
    while first > 0 and edge - recent.times[first - 1] < GAP_US:
        first -= 1
        edge = recent.times[first]
    if first == last:
        return (*(0.0 for _ in _COUNTED), 0.0, 0.0, GAP_US / _MINUTE_US)
    types = recent.types[first:last]
    items = {item for item in recent.items[first:last] if item}
    return (
        *(float(types.count(code)) for code in range(len(_COUNTED))),
        float(len(items)),
        (now - recent.times[first]) / _MINUTE_US,
        (now - recent.times[last - 1]) / _MINUTE_US,
    )
