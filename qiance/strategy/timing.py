"""When a promotion runs: candidates within the brief's period, and what is bought by whom on those days."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.features.calendar import DAY_US, calendar_features
from qiance.features.transforms import WINDOW_DAYS
from qiance.strategy.demand import NEAR_DAYS, day_number

Floats = NDArray[np.float64]

MAX_WINDOWS = 120
# Of a longer period only so many days are looked at: weekdays and holidays come again.
HORIZON = timedelta(days=3 * 366)
BASKETS = "baskets_90d"
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the brief's period. words: what it is, such as `the weekend of 7 March`."""

    starts: datetime
    ends: datetime
    words: str

    @property
    def days(self) -> float:
        """Its length."""
        return (self.ends - self.starts) / _DAY

    @property
    def dates(self) -> NDArray[np.int64]:
        """The days that it touches, UTC, since 1970-01-01; of a long window the first `HORIZON`."""
        last = min(self.ends, self.starts + HORIZON).astimezone(UTC) - timedelta(microseconds=1)
        return np.arange(day_number(self.starts.astimezone(UTC)), day_number(last) + 1, dtype=np.int64)

    def describe(self) -> str:
        """With its dates, the last one included: `the weekend of 7 March (7 to 8 March)`."""
        return f"{self.words} ({span_words(self.starts, self.ends)})"


def span_words(starts: datetime, ends: datetime) -> str:
    """`7 to 8 March`, `28 March to 3 April`, or `7 March`; an end at midnight belongs to the day before."""
    last = ends - timedelta(microseconds=1)
    if starts.date() == last.date():
        return f"{starts:%-d %B}"
    first = f"{starts.day}" if (starts.year, starts.month) == (last.year, last.month) else f"{starts:%-d %B}"
    return f"{first} to {last:%-d %B}"


def check_country(country: str) -> None:
    """Raises ValueError for a country without a calendar of public holidays."""
    calendar_features(np.zeros(1, dtype=np.int64), country)


def windows(starts: datetime, ends: datetime, country: str) -> tuple[Window, ...]:
    """The whole period, then what lies within it: the days up to each public holiday, weeks and weekends.

    Weeks run from Monday on, weekends are Saturday and Sunday, days are UTC; a holiday's window begins
    `NEAR_DAYS` before it and is cut at the start of the period. At most `MAX_WINDOWS`, the earliest of each.
    Raises ValueError for a country without a calendar.
    """
    found = {(starts, ends): Window(starts, ends, "the whole period")}
    midnight = starts.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = midnight if midnight >= starts else midnight + _DAY
    many = MAX_WINDOWS // 3
    for kind in (_holidays, _weeks, _weekends):
        made = 0
        for window in kind(first, starts, ends, country):
            if made == many or window.starts >= ends:
                break
            if starts <= window.starts < window.ends <= ends:
                made += (window.starts, window.ends) not in found
                found.setdefault((window.starts, window.ends), window)
    return tuple(found.values())


def _holidays(first: datetime, starts: datetime, ends: datetime, country: str) -> Iterator[Window]:
    last = min(ends.astimezone(UTC), first + HORIZON)
    days = np.arange(day_number(first), day_number(last) + 1, dtype=np.int64)
    is_holiday = calendar_features(days * DAY_US, country)["is_holiday"] > 0
    for place in np.flatnonzero(is_holiday).tolist():
        day = first + place * _DAY
        words = f"the days up to the public holiday of {day:%-d %B}"
        yield Window(max(day - NEAR_DAYS * _DAY, starts), day + _DAY, words)


def _weeks(first: datetime, _starts: datetime, ends: datetime, _country: str) -> Iterator[Window]:
    monday = first + (-first.weekday() % 7) * _DAY
    while monday < ends:
        yield Window(monday, monday + 7 * _DAY, f"the week of {monday:%-d %B}")
        monday += 7 * _DAY


def _weekends(first: datetime, _starts: datetime, ends: datetime, _country: str) -> Iterator[Window]:
    saturday = first + ((5 - first.weekday()) % 7) * _DAY
    while saturday < ends:
        yield Window(saturday, saturday + 2 * _DAY, f"the weekend of {saturday:%-d %B}")
        saturday += 7 * _DAY


def share_reached(baskets: Floats | None, days: Floats, period: float) -> Floats:
    """`[n]` share of those who shop within a period (days) who shop within each of `days` `[n]` of it."""
    shares = share_coming(baskets, np.append(days, period))
    return np.asarray(shares[:-1] / shares[-1])


def share_coming(baskets: Floats | None, days: Floats) -> Floats:
    """`[n]` share of users who are expected to shop at least once within each of `days` `[n]`.

    baskets: `[U]` of the last 90 days, NaN unknown, which counts as the mean of the others; None: everybody
    comes. Purchases are taken for a Poisson process; half a basket is added to what was seen, so that who did
    not come may still come (the posterior mean under Jeffreys' prior).
    """
    if baskets is None or not np.isfinite(baskets).any():
        return np.ones(len(days))
    known = np.isfinite(baskets)
    rate = (np.clip(np.where(known, baskets, baskets[known].mean()), 0.0, None) + 0.5) / WINDOW_DAYS
    return np.asarray(1.0 - np.exp(-rate[:, None] * days[None, :]).mean(axis=0))
