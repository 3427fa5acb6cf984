"""Money as integer minor units with a currency; never a float."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

# ISO 4217 minor-unit exponents that differ from 2.
_EXPONENTS = {"JPY": 0, "KRW": 0, "VND": 0, "KWD": 3, "BHD": 3}


def minor_exponent(currency: str) -> int:
    """Number of decimal places of `currency` (ISO 4217), e.g. 2 for USD, 0 for JPY."""
    return _EXPONENTS.get(currency, 2)


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of money.

    minor: integer minor units (cents, fen); may be negative.
    currency: ISO 4217 code, three capital letters.
    """

    minor: int
    currency: str = "USD"

    def __post_init__(self) -> None:
        if isinstance(self.minor, bool) or not isinstance(self.minor, int):
            raise ValueError(f"money.minor: {self.minor!r} is not an integer number of minor units")
        if len(self.currency) != 3 or not self.currency.isascii() or not self.currency.isupper():
            raise ValueError(f"money.currency: {self.currency!r} is not an ISO 4217 code such as 'USD'")

    @classmethod
    def of(cls, amount: str | int | Decimal, currency: str = "USD") -> Money:
        """From major units; a half minor unit is rounded to even. Floats are refused: pass a string."""
        if isinstance(amount, float):
            raise ValueError(f"money.amount: {amount!r} is a float; pass a string such as '12.30'")
        scaled = Decimal(amount).scaleb(minor_exponent(currency))
        if not scaled.is_finite():
            raise ValueError(f"money.amount: {amount!r} is not a finite number")
        return cls(int(scaled.to_integral_value(ROUND_HALF_EVEN)), currency)

    def __add__(self, other: Money) -> Money:
        return Money(self.minor + self._same(other), self.currency)

    def __sub__(self, other: Money) -> Money:
        return Money(self.minor - self._same(other), self.currency)

    def __lt__(self, other: Money) -> bool:
        return self.minor < self._same(other)

    def __le__(self, other: Money) -> bool:
        return self.minor <= self._same(other)

    def __str__(self) -> str:
        exponent = minor_exponent(self.currency)
        return f"{Decimal(self.minor).scaleb(-exponent):.{exponent}f} {self.currency}"

    def _same(self, other: Money) -> int:
        if other.currency != self.currency:
            raise ValueError(f"money.currency: {other.currency} and {self.currency} cannot be combined")
        return other.minor
