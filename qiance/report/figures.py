"""Numbers as people read them: money, shares, durations, counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal

from qiance.domain.money import minor_exponent

NONE = "–"
Format = Callable[[float | None], str]
_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "CNY": "¥", "JPY": "¥"}
_MINUS = "−"


def money(minor: float | None, currency: str = "USD", places: int | None = None) -> str:
    """Minor units as an amount, e.g. 123456 → `$1,234.56`; `–` for None.

    places: decimals of the major unit; the currency's own where None. Rounds half to even.
    """
    if minor is None or not math.isfinite(minor):
        return NONE
    exponent = minor_exponent(currency)
    quantum = Decimal(1).scaleb(-(exponent if places is None else places))
    amount = Decimal(str(minor)).scaleb(-exponent).quantize(quantum, ROUND_HALF_EVEN)
    mark = _SYMBOLS.get(currency, f"{currency} ")
    return f"{_MINUS if amount < 0 else ''}{mark}{abs(amount):,f}"


def money_each(minor: float | None, currency: str = "USD") -> str:
    """An amount per decision or per contact: a tenth of a minor unit is kept, of tiny amounts more."""
    if minor is None or not math.isfinite(minor):
        return NONE
    size = abs(minor)
    if size == 0:
        return money(0, currency, 0)
    extra = 0 if size >= 1_000 else 1 if size >= 0.05 else 3
    return money(minor, currency, minor_exponent(currency) + extra)


def percent(fraction: float | None, places: int | None = None) -> str:
    """A fraction as per cent, e.g. 0.1234 → `12.3%`; small ones keep more digits."""
    if fraction is None or not math.isfinite(fraction):
        return NONE
    shown = fraction * 100
    if 0 < abs(shown) < 0.005:
        return "< 0.01%" if shown > 0 else f"> {_MINUS}0.01%"
    if places is None:
        places = 0 if shown == 0 or abs(shown) >= 99.95 else 1 if abs(shown) >= 1 else 2
    return f"{shown:.{places}f}%".replace("-", _MINUS)


def number(value: float | None, digits: int = 4) -> str:
    """A plain number: counts in full with separators, others to `digits` significant ones."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", _MINUS)
    if abs(value) >= 1_000:
        return f"{value:,.0f}".replace("-", _MINUS)
    return f"{value:.{digits}g}".replace("-", _MINUS)


def score(value: float | None) -> str:
    """A metric with four decimals, so that columns line up."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.4f}".replace("-", _MINUS)


def seconds(value: float | None) -> str:
    """A duration, e.g. 0.42 → `0.4 s`, 83 → `1 min 23 s`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def milliseconds(value: float | None) -> str:
    """A latency, e.g. 12.34 → `12 ms`."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


def words(name: str) -> str:
    """A machine's name as words, e.g. `below_minimum` → `below minimum`."""
    return name.replace("_", " ").strip()


class Unit:
    """Formats values of one unit: `minor` money of a currency, `fraction`, or `number`."""

    def __init__(self, unit: str, currency: str = "USD") -> None:
        self.unit = unit
        self.currency = currency

    def __call__(self, value: float | None) -> str:
        if self.unit == "minor":
            return money_each(value, self.currency)
        return percent(value, 2) if self.unit == "fraction" else number(value)

    def difference(self, value: float | None) -> str:
        """A difference of two values; of two shares it is percentage points, which is not per cent of one."""
        if self.unit != "fraction" or value is None:
            return self(value)
        return f"{value * 100:.2f} points".replace("-", _MINUS)

    def interval(self, low: float | None, high: float | None) -> str:
        """`low to high`; empty where a bound is missing."""
        return "" if low is None or high is None else f"{self(low)} to {self(high)}"

    def difference_interval(self, low: float | None, high: float | None) -> str:
        """`low to high` of a difference; empty where a bound is missing."""
        if self.unit != "fraction" or low is None or high is None:
            return self.interval(low, high)
        return f"{low * 100:.2f} to {high * 100:.2f} percentage points".replace("-", _MINUS)

    def per_thousand(self, value: float | None, like: float | None = None) -> str:
        """Money per decision as money per 1,000 decisions, with the decimals that `like` is shown with."""
        if value is None:
            return NONE
        size = abs(value if like is None else like)
        return money(value * 1000, self.currency, 0 if size >= 1 else None)


def title(name: str) -> str:
    """`words` with a capital first letter, for labels."""
    shown = words(name)
    return shown[:1].upper() + shown[1:]
