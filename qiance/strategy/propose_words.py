"""Figures and names as a marketer reads them."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata

from qiance.decide.floors import discounted_price
from qiance.domain import Effect, Interval, Item, Money, Objective, Offer, StrategyKind
from qiance.domain.money import minor_exponent

_SLUG_LENGTH = 40


def money(minor: float, currency: str) -> str:
    """An expected amount in major units with one place more than the currency, e.g. `0.125 USD`."""
    exponent = minor_exponent(currency)
    # Adding 0.0 turns a rounded −0.0 into 0.0.
    amount = round(minor / 10**exponent, exponent + 1) + 0.0
    return f"{amount:.{exponent + 1}f} {currency}"


def percent(fraction: float) -> str:
    """Three significant figures, e.g. `1.25 %`."""
    return f"{100 * fraction:.3g} %"


def value_words(objective: Objective, value: float, currency: str) -> str:
    """The mean objective per contact in words."""
    if objective is Objective.CLICKS:
        return f"a click rate of {percent(value)}"
    if objective is Objective.CONVERSIONS:
        return f"a conversion rate of {percent(value)}"
    if objective is Objective.SALES:
        return f"{money(value, currency)} of sales a contact"
    return f"{money(value, currency)} more margin a contact than doing nothing"


def effect_words(effect: Effect, currency: str, confidence: float, reach: int) -> str:
    """The predicted effect with its intervals, as one sentence."""

    def amount(interval: Interval) -> str:
        low, high = money(interval.low, currency), money(interval.high, currency)
        return f"{money(interval.value, currency)} ({low} to {high})"

    clicks = f"{percent(effect.ctr.value)} ({percent(effect.ctr.low)} to {percent(effect.ctr.high)})"
    return (
        f"Predicted for {reach:,} users with {percent(confidence)} intervals: click rate {clicks},"
        f" sales {amount(effect.sales)}, margin over doing nothing {amount(effect.uplift)} a contact."
    )


def kept_words(item: Item, depth: float, min_margin: float, currency: str) -> str:
    """What a unit sells at and keeps, beside the floor, as one sentence."""
    paid = int(discounted_price(item.price, depth))
    kept, floor = Money(paid - item.unit_cost, currency), percent(min_margin)
    return (
        f"A unit then sells at {Money(paid, currency)} and keeps {kept}; the floor is {floor} of that price."
    )


def stock_words(units: Interval, on_hand: float | None) -> str:
    """What a promotion is predicted to sell beside what is on hand, as one sentence."""
    beside = "how much is on hand is not known" if on_hand is None else f"{on_hand:,.0f} are on hand"
    return (
        f"It is predicted to sell {units.value:,.1f} units ({units.low:,.1f} to {units.high:,.1f}); {beside}."
    )


def gain_words(objective: Objective, gain: float, currency: str) -> str:
    """What is gained per member of an audience in words."""
    if objective in (Objective.CLICKS, Objective.CONVERSIONS):
        return f"{gain:.3g} {objective.value} a member"
    return f"{money(gain, currency)} of {objective.value} a member"


def offer_words(offer: Offer) -> str:
    """`20 % off`, or `full price`."""
    return f"{percent(offer.depth)} off" if offer.depth else "full price"


def title_words(kind: StrategyKind, item_title: str, offer: Offer, audience: str, channels: str) -> str:
    """One line that names the strategy."""
    # Names of segments are hyphenated words; rules such as `recency_days > 14` stay as they are.
    audience = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", audience)
    return {
        StrategyKind.RECOMMENDATION: f"Recommend {item_title} to {audience} by {channels}",
        StrategyKind.AD: f"Advertise {item_title} to {audience} by {channels}",
        StrategyKind.PROMOTION: f"{offer_words(offer)} {item_title} for {audience} by {channels}",
        StrategyKind.CONTENT: f"Tell {audience} about {item_title} by {channels}",
    }[kind]


def readable_id(kind: StrategyKind, title: str, content: object) -> str:
    """`kind-item-title-1a2b3c4d`: a slug for people, then eight digits of SHA-256 over `content`."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LENGTH].strip("-")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return "-".join(part for part in (kind.value, slug, digest) if part)
