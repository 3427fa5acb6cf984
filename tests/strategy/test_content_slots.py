"""Facts come by slots and by nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.domain import Channel, Creative, Money
from qiance.strategy.slots import Facts, bind, format_date, format_discount, format_money
from qiance.strategy.templates import template, template_count

ENDS = datetime(2026, 3, 31, 22, 0, tzinfo=UTC)
CHANNELS = (Channel.EMAIL, Channel.PUSH, Channel.DISPLAY, Channel.MAILER)


def creative(body: str, *, headline: str = "Hello", source: str = "llm") -> Creative:
    return Creative(Channel.EMAIL, "en", headline, body, "Shop now", source)


@pytest.mark.parametrize(
    ("amount", "language", "text"),
    [
        (Money(1230), "en", "$12.30"),
        (Money(123456789), "en", "$1,234,567.89"),
        (Money(1230, "CNY"), "zh", "12.30元"),
        (Money(1230), "zh", "12.30美元"),
        (Money(500, "JPY"), "en", "¥500"),
        (Money(1230, "CHF"), "en", "12.30 CHF"),
        (Money(-5), "en", "-$0.05"),
    ],
)
def test_money_is_written_for_the_language(amount: Money, language: str, text: str) -> None:
    assert format_money(amount, language) == text


@pytest.mark.parametrize(
    ("discount", "en", "zh"),
    [
        (0.2, "20% off", "8折"),
        (0.15, "15% off", "8.5折"),
        (0.125, "12.5% off", "8.75折"),
        (0.9, "90% off", "1折"),
    ],
)
def test_discounts_are_exact_in_both_languages(discount: float, en: str, zh: str) -> None:
    assert (format_discount(discount, "en"), format_discount(discount, "zh")) == (en, zh)


def test_an_end_at_midnight_belongs_to_the_day_before() -> None:
    midnight = datetime(2026, 4, 1, tzinfo=UTC)
    assert format_date(midnight, "en") == "March 31"
    assert format_date(ENDS, "zh") == "3月31日"


def test_all_slots_are_bound() -> None:
    words = creative(
        "{product}: {price}, now {sale_price}, {discount} until {ends}. {stock} left from {threshold}."
    )
    facts = Facts("Frozen Pizza, 12 oz", Money(999), 0.2, ENDS, 7, Money(3000))
    assert bind(words, facts, "en").body == (
        "Frozen Pizza, 12 oz: $9.99, now $7.99, 20% off until March 31. 7 left from $30.00."
    )


@pytest.mark.parametrize(
    ("words", "facts", "message"),
    [
        (
            creative("{prize} today"),
            Facts("Tea"),
            r"creative.body: unknown slot \{prize\}; known: discount, ends",
        ),
        (creative("{price} today"), Facts("Tea"), r"slot \{price\} has no fact for 'Tea'"),
        (creative("{discount} today"), Facts("Tea", Money(100)), r"slot \{discount\} has no fact"),
        (creative("{sale_price}"), Facts("Tea", Money(100)), r"slot \{sale_price\} has no fact"),
        (creative("a {product"), Facts("Tea"), "brace without its pair"),
        (creative("{{product}}"), Facts("Tea"), "brace without its pair"),
        (creative("now 5 left"), Facts("Tea"), "figure '5' is written out; use a slot"),
        (creative("now ５ left"), Facts("Tea"), "is written out"),
        (creative("just €", headline="A"), Facts("Tea"), "figure '€' is written out"),
    ],
)
def test_bad_words_are_refused_by_name(words: Creative, facts: Facts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind(words, facts, "en")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"product": " "}, "facts.product: is empty"),
        ({"product": "Tea", "discount": 20.0}, "facts.discount: 20.0 is outside"),
        ({"product": "Tea", "discount": float("nan")}, "facts.discount: nan is outside"),
        ({"product": "Tea", "ends": datetime(2026, 1, 1)}, "has no time zone"),
        ({"product": "Tea", "stock": -1}, "facts.stock: -1 is negative"),
    ],
)
def test_bad_facts_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Facts(**arguments)  # type: ignore[arg-type]


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="language: 'de' is not one of en, zh"):
        bind(creative("x"), Facts("Tea"), "de")


def test_a_product_that_looks_like_a_slot_is_not_bound_again() -> None:
    assert bind(creative("{product}"), Facts("{discount}", discount=0.5), "en").body == "{discount}"


def test_people_may_write_figures() -> None:
    assert bind(creative("Open 24 hours", source="person"), Facts("Tea"), "en").body == "Open 24 hours"


@given(
    channel=st.sampled_from(CHANNELS),
    language=st.sampled_from(["en", "zh"]),
    number=st.integers(0, 3),
    threshold=st.booleans(),
    product=st.text(min_size=1, max_size=30).filter(lambda t: bool(t.strip())),
    price=st.integers(1, 10**7),
    percent=st.integers(1, 99),
    ends=st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),
)
def test_every_digit_of_bound_words_comes_from_a_fact(
    channel: Channel,
    language: str,
    number: int,
    threshold: bool,
    product: str,
    price: int,
    percent: int,
    ends: datetime,
) -> None:
    instant = ends.replace(tzinfo=UTC)
    facts = Facts(product, Money(price), percent / 100, instant, threshold=Money(price))
    words = template(channel, language, True, threshold, number)
    rendered = {
        "product": " ".join(product.split()),
        "discount": format_discount(percent / 100, language),
        "ends": format_date(instant, language),
        "threshold": format_money(Money(price), language),
    }
    bound = bind(words, facts, language)
    for name in ("headline", "body", "call_to_action"):
        slots = re.findall(r"\{(\w+)\}", getattr(words, name))
        from_facts = re.findall(r"\d", "".join(rendered[slot] for slot in slots))
        assert re.findall(r"\d", getattr(bound, name)) == from_facts


@given(st.integers(1, 10**9), st.integers(1, 99))
def test_the_sale_price_is_the_price_less_the_discount(price: int, percent: int) -> None:
    sale = Facts("Tea", Money(price), percent / 100).sale_price
    assert sale is not None
    assert abs(sale.minor * 100 - price * (100 - percent)) <= 50


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_there_are_several_templates_everywhere(channel: Channel, language: str) -> None:
    for has_offer in (False, True):
        count = template_count(channel, has_offer, language)
        headlines = {template(channel, language, has_offer, False, n).headline for n in range(count)}
        assert count >= 4
        assert len(headlines) == count
