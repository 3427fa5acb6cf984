"""The checks of style: one table of bad words per rule, and templates that pass them and the lint."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from qiance.domain import Action, Channel, Creative, Item, Offer, OfferKind, StrategyKind
from qiance.features.words import CREATIVE_FEATURES, creative_features
from qiance.guard import Guard, Result, Subject
from qiance.strategy.slots import bind, facts_for
from qiance.strategy.templates import template, template_count
from qiance.strategy.wording import check_relation, check_style, is_named, plain_name, related_words

COFFEE = Item("i1", "Ground Coffee, 12 oz", "Coffee", "GROCERY", "National", 799, 500)
GOOD = Creative(
    Channel.EMAIL,
    "en",
    "A taste of the perfect morning",
    "Enjoy a warm cup of coffee with your favorite flavor today.",
    "Shop now",
    "llm",
)
ENDS = datetime(2026, 9, 30, tzinfo=UTC)
CHANNELS = (Channel.EMAIL, Channel.PUSH, Channel.DISPLAY, Channel.MAILER)


def rules(creative: Creative) -> set[str]:
    return {f.rule for f in check_style(creative, COFFEE)}


def lint(creative: Creative, *, offer: bool = False, threshold: bool = False) -> Result:
    terms = Offer(OfferKind.PERCENT, 0.25, 3000 if threshold else 0) if offer else Offer()
    subject = Subject(creative, terms, COFFEE.item_id, COFFEE, ends=ENDS if offer else None)
    return Guard.load().lint(subject).result


def test_good_words_pass() -> None:
    assert rules(GOOD) == set()


@pytest.mark.parametrize(
    ("field", "text", "rule"),
    [
        ("body", "Enjoy coffee, coffee and more coffee today.", "W06"),
        ("headline", "A happy cup, a happy day", "W06"),
        ("body", "Enjoy a cup of tea and a cup of milk with coffee.", "W06"),
        ("body", "Enjoy a warm cup with your favorite flavor today.", "W07"),
        ("headline", "A taste of the", "W08"),
        ("headline", "Fresh, delicious,", "W08"),
        ("body", "Enjoy a warm cup of coffee with your", "W08"),
        ("body", "Enjoy a warm cup of coffee ,.", "W08"),
        ("headline", "", "W08"),
        ("headline", "Enjoy a warm cup of coffee today", "W09"),
        ("headline", "Shop now for a treat", "W09"),
        ("body", "Enjoy 咖啡 coffee today.", "W10"),
        ("body", "Enjoy coffee at half the usual.", "W11"),
        ("headline", "Homemade taste for the morning", "W11"),
        ("body", "Enjoy coffee with my mother today.", "W12"),
    ],
)
def test_each_rule_catches_its_case(field: str, text: str, rule: str) -> None:
    assert rule in rules(replace(GOOD, **{field: text}))


@pytest.mark.parametrize(
    ("text", "rule"),
    [("史上咖啡，等您来。", "W11"), ("咖啡广告语，等您来。", "W12"), ("Enjoy {product} today.", "W10")],
)
def test_chinese_words_have_their_own_lists(text: str, rule: str) -> None:
    chinese = Creative(Channel.EMAIL, "zh", "早餐多一分香", "{product}" + text, "立即选购", "llm")
    if rule == "W10":
        chinese = replace(chinese, headline="Hello", body=text, call_to_action="Shop now")
    assert rule in rules(chinese)


@pytest.mark.parametrize("threshold", [False, True])
@pytest.mark.parametrize("offer", [False, True])
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_every_template_passes_every_check(
    channel: Channel, language: str, offer: bool, threshold: bool
) -> None:
    for number in range(template_count(channel, offer, language)):
        words = template(channel, language, offer, threshold and offer, number)
        assert rules(words) == set(), words
        assert lint(words, offer=offer, threshold=threshold and offer).findings == (), words


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Ground Coffee, 12 oz", "ground coffee"),
        ("FROZEN PIZZA/PREMIUM 12 OZ", "frozen pizza"),
        ("Sw Gds: Rolls", "sw gds"),
        ("Cheese & Crackers (Single)", "cheese and crackers"),
        ("7 UP", "up"),
        ("123", "coffee"),
    ],
)
def test_a_title_becomes_words_for_a_sentence(title: str, name: str) -> None:
    assert plain_name(replace(COFFEE, title=title)) == name


@pytest.mark.parametrize(
    ("title", "text", "about"),
    [
        ("研磨咖啡（12盎司）", "清晨来一杯咖啡，香气慢慢散开。", True),
        ("研磨咖啡（12盎司）", "清晨来一杯研磨的茶。", False),
        ("冷冻生虾", "鲜嫩的生虾，下锅就香。", True),
        ("冷冻生虾", "冷冻鱼片，下锅就香。", False),
        ("", "清晨来一杯咖啡。", False),
    ],
)
def test_chinese_words_are_about_the_product_if_they_say_what_it_is(
    title: str, text: str, about: bool
) -> None:
    item = replace(COFFEE, titles={"zh": title})
    assert (check_relation("早餐多一分香", text, item) == []) is about
    assert is_named(item, "zh") is bool(title)
    assert is_named(item, "en")


def test_a_title_is_said_in_the_language_of_the_words() -> None:
    item = replace(COFFEE, titles={"zh": "研磨咖啡（12盎司）"})
    assert plain_name(item, "zh") == "研磨咖啡"
    assert (plain_name(item), plain_name(COFFEE, "zh")) == ("ground coffee", "ground coffee")
    action = Action("a", "s", StrategyKind.CONTENT, item.item_id, Offer(), None, Channel.PUSH, 0)
    facts = facts_for(action, item, None, "USD")
    for language, name in (("en", "Ground Coffee, 12 oz"), ("zh", "研磨咖啡（12盎司）")):
        words = template(Channel.PUSH, language, False, False, 1)
        assert name in bind(words, facts, language).headline


def test_plural_and_singular_are_related() -> None:
    assert "yogurt" in related_words(replace(COFFEE, title="Greek Yogurts", category="Dairy"))


def test_features_are_numbers_of_the_agreed_names() -> None:
    features = creative_features(replace(GOOD, headline="Time for {product}?", body="Now {discount}!"))
    assert set(features) == set(CREATIVE_FEATURES)
    assert features["has_question"] == features["has_discount_slot"] == features["mentions_product"] == 1.0
    assert features["exclamations"] == 1.0
    assert features["headline_length"] == 19.0
    assert features["is_llm"] == 1.0
    assert features["language_zh"] == 0.0
