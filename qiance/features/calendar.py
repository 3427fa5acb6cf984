"""What the date says: season, week and holidays, as functions of the moment of a request."""

from __future__ import annotations

from datetime import date, timedelta
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CALENDAR_FEATURES = (
    "weekday_sin",
    "weekday_cos",
    "season_sin",
    "season_cos",
    "is_weekend",
    "is_holiday",
    "days_to_holiday",
)
DAY_US = 86_400_000_000
YEAR_DAYS = 365.2425
FAR_DAYS = 60  # a holiday further away than this is not felt yet
_EPOCH = date(1970, 1, 1)


def calendar_features(now_us: Ints, country: str = "US") -> dict[str, Floats]:
    """`[n]` per feature at `now_us` (microseconds since the epoch, UTC).

    Weekday and season lie on circles, so that Sunday is next to Monday and December to January.
    days_to_holiday is 0 on a public holiday of `country` (ISO 3166 code), at most 60.
    Raises ValueError for a country without a calendar.
    """
    days = np.floor_divide(now_us, DAY_US)
    weekday = (days + 3) % 7  # 1970-01-01 was a Thursday
    to_holiday = _days_to_holiday(days, country)
    week, year = 2 * np.pi * weekday / 7, 2 * np.pi * (days % YEAR_DAYS) / YEAR_DAYS
    return {
        "weekday_sin": np.sin(week),
        "weekday_cos": np.cos(week),
        "season_sin": np.sin(year),
        "season_cos": np.cos(year),
        "is_weekend": (weekday >= 5).astype(np.float64),
        "is_holiday": (to_holiday == 0).astype(np.float64),
        "days_to_holiday": to_holiday,
    }


def _days_to_holiday(days: Ints, country: str) -> Floats:
    distinct, inverse = np.unique(days, return_inverse=True)
    years = [(_EPOCH + timedelta(days=int(day))).year for day in distinct]
    if not years:
        return np.zeros(0)
    known = _holidays(country, min(years), max(years) + 1)
    after = known[np.minimum(np.searchsorted(known, distinct), len(known) - 1)]
    wait = np.where(after >= distinct, after - distinct, FAR_DAYS)
    return np.minimum(wait, FAR_DAYS).astype(np.float64)[inverse]


@lru_cache(maxsize=64)
def _holidays(country: str, first_year: int, last_year: int) -> Ints:
    """Days since the epoch of the public holidays, sorted."""
    # Imported here: the package knows a hundred calendars, and few processes ask for one.
    import holidays

    try:
        found = holidays.country_holidays(country, years=range(first_year, last_year + 1))
    except NotImplementedError:
        raise ValueError(
            f"country: {country!r} has no holiday calendar; give an ISO 3166 code such as US, DE or CN"
        ) from None
    return np.array(sorted((day - _EPOCH).days for day in found), dtype=np.int64)
