"""Facts bound after the words are written: every price, discount, date and stock figure is a slot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

from qiance.domain import Action, Creative, Item, Money
from qiance.domain.money import minor_exponent

SLOT = re.compile(r"\{([^{}]*)\}")
FIELDS = ("headline", "body", "call_to_action")
LANGUAGES = ("en", "zh")
# Digits of any script, number-like symbols such as ½, and currency signs: only facts may bring them.
FIGURES = re.compile(r"[\d½¼¾%‰％$€£¥￥₩₽₹]")

_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "CNY": "¥", "JPY": "¥"}
_ZH_UNITS = {"USD": "美元", "EUR": "欧元", "GBP": "英镑", "CNY": "元", "JPY": "日元"}
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the catalogue and the offer say about one action; None means unknown or not applicable.

    product: name as the catalogue writes it; titles: by language, where it has another one there.
    price: full price of one unit.
    discount: fraction of the price taken off, in [0, 1); 0 means no offer.
    ends: last instant of the offer, time zone aware, in the zone whose calendar the reader uses.
    stock: units left; threshold: least basket for the offer to hold.
    """

    product: str
    price: Money | None = None
    discount: float = 0.0
    ends: datetime | None = None
    stock: int | None = None
    threshold: Money | None = None
    titles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.product.strip():
            raise ValueError("facts.product: is empty; pass the catalogue's title")
        if not 0.0 <= self.discount < 1.0:
            raise ValueError(
                f"facts.discount: {self.discount} is outside [0, 1); pass a fraction, not per cent"
            )
        if self.ends is not None and self.ends.tzinfo is None:
            raise ValueError(f"facts.ends: {self.ends.isoformat()} has no time zone")
        if self.stock is not None and self.stock < 0:
            raise ValueError(f"facts.stock: {self.stock} is negative")

    @property
    def sale_price(self) -> Money | None:
        """Full price less the discount, to the nearest minor unit (half to even)."""
        if self.price is None or self.discount == 0.0:
            return None
        exact = Decimal(self.price.minor) * (1 - _exact(self.discount))
        return Money(int(exact.to_integral_value(ROUND_HALF_EVEN)), self.price.currency)


def format_money(amount: Money, language: str) -> str:
    """`$1,234.50` in English, `1,234.50美元` in Chinese; other currencies carry their ISO code."""
    exponent = minor_exponent(amount.currency)
    figure = f"{abs(Decimal(amount.minor).scaleb(-exponent)):,.{exponent}f}"
    sign = "-" if amount.minor < 0 else ""
    if language == "zh" and amount.currency in _ZH_UNITS:
        return f"{sign}{figure}{_ZH_UNITS[amount.currency]}"
    if language == "en" and amount.currency in _SYMBOLS:
        return f"{sign}{_SYMBOLS[amount.currency]}{figure}"
    return f"{sign}{figure} {amount.currency}"


def format_discount(discount: float, language: str) -> str:
    """`20% off`; in Chinese the price that is left in tenths: 0.2 off is `8折`, 0.15 off is `8.5折`."""
    exact = _exact(discount)
    if language == "zh":
        return f"{_plain((1 - exact) * 10)}折"
    return f"{_plain(exact * 100)}% off"


def format_date(instant: datetime, language: str) -> str:
    """Last day on which `instant` has not passed: an end at midnight belongs to the day before."""
    day = (instant - timedelta(microseconds=1)).date()
    return f"{day.month}月{day.day}日" if language == "zh" else f"{_MONTHS[day.month - 1]} {day.day}"


def _exact(fraction: float) -> Decimal:
    return Decimal(repr(round(fraction, 4)))


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_RENDER: Mapping[str, Callable[[Facts, str], str | None]] = {
    "product": lambda f, lang: " ".join((f.titles.get(lang) or f.product).split()),
    "price": lambda f, lang: None if f.price is None else format_money(f.price, lang),
    "sale_price": lambda f, lang: None if f.sale_price is None else format_money(f.sale_price, lang),
    "discount": lambda f, lang: None if f.discount == 0.0 else format_discount(f.discount, lang),
    "ends": lambda f, lang: None if f.ends is None else format_date(f.ends, lang),
    "stock": lambda f, _: None if f.stock is None else str(f.stock),
    "threshold": lambda f, lang: None if f.threshold is None else format_money(f.threshold, lang),
}
KNOWN_SLOTS = frozenset(_RENDER)


def fact_of(slot: str, facts: Facts, language: str) -> str | None:
    """What stands in `slot`, written for `language`; None if the slot is unknown or has no fact."""
    return _RENDER[slot](facts, language) if slot in _RENDER else None


def slots_of(text: str) -> tuple[str, ...]:
    """Names between braces in `text`, in order, e.g. `("product", "discount")`."""
    return tuple(SLOT.findall(text))


def facts_for(action: Action, item: Item, ends: datetime | None, currency: str) -> Facts:
    """What the catalogue and the offer say about `action`, which is about `item` and runs until `ends`."""
    threshold = Money(action.offer.threshold, currency) if action.offer.threshold else None
    return Facts(
        product=item.title,
        price=Money(item.price, currency),
        discount=action.offer.depth,
        ends=ends,
        threshold=threshold,
        titles=item.titles,
    )


def bind(creative: Creative, facts: Facts, language: str) -> Creative:
    """`creative` with every slot replaced by its fact, written for `language`.

    A value is never searched for slots again, so a product called `{price}` stays what it is.
    Errors: an unknown slot, a missing fact, a stray brace, or a figure that no fact brought
    (people's own words may hold figures).
    """
    if language not in LANGUAGES:
        raise ValueError(f"language: {language!r} is not one of {', '.join(LANGUAGES)}")
    if creative.source != "person":
        for name in FIELDS:
            _refuse_figures(getattr(creative, name), name)
    headline, body, call_to_action = (
        _bind_text(getattr(creative, name), facts, language, name) for name in FIELDS
    )
    return replace(creative, headline=headline, body=body, call_to_action=call_to_action)


def _bind_text(text: str, facts: Facts, language: str, field: str) -> str:
    if re.search(r"[{}]", SLOT.sub("", text)):
        raise ValueError(f"creative.{field}: {text!r} has a brace without its pair")
    return SLOT.sub(lambda match: _fact(match.group(1), facts, language, field), text)


def _fact(slot: str, facts: Facts, language: str, field: str) -> str:
    if slot not in _RENDER:
        known = ", ".join(sorted(KNOWN_SLOTS))
        raise ValueError(f"creative.{field}: unknown slot {{{slot}}}; known: {known}")
    value = _RENDER[slot](facts, language)
    if value is None:
        raise ValueError(f"creative.{field}: slot {{{slot}}} has no fact for {facts.product!r}")
    return value


def _refuse_figures(text: str, field: str) -> None:
    found = FIGURES.search(SLOT.sub("", text))
    if found:
        raise ValueError(f"creative.{field}: figure {found.group()!r} is written out; use a slot: {text!r}")
