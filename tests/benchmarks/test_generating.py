"""What counts as a violation when words for briefs are measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.copying.generating import SMOKE, distinct_pairs, requests_of, schema_valid, violates_facts
from qiance.domain import Channel, Creative
from qiance.strategy.content_ports import Generated, Written
from qiance.strategy.prompts import copy_schema

WORDS = Creative(
    Channel.EMAIL,
    "en",
    "A warm cup",
    "Enjoy {product} today. Now {discount} until {ends}.",
    "Shop now",
    "llm",
)
GOOD = {"body": "Enjoy warm coffee with toast.", "headline": "A warm start", "call_to_action": "Shop now"}


def written(**changes: str) -> Written:
    return Written(replace(WORDS, **changes), (), "x")  # type: ignore[arg-type]


def test_briefs_take_turns_over_products_channels_and_offers() -> None:
    asked = requests_of(SMOKE, 18)
    assert {r.item.item_id for r in asked} == {"i0", "i1"}
    assert len({(r.channel, r.offer) for r in asked}) == 9


@pytest.mark.parametrize(
    "words",
    [
        {"headline": "A warm cup for 2"},
        {"body": "Enjoy {product}, half a $ today."},
        {"body": "{product}, 3% off."},
        {"body": "Enjoy {product} while {stock} last."},
        {"headline": "Now {reward}"},
    ],
)
def test_figures_outside_slots_and_slots_without_a_fact_are_violations(words: dict[str, str]) -> None:
    offered = next(r for r in requests_of(SMOKE, 9) if r.has_offer and not r.has_threshold)
    assert not violates_facts(offered, written())
    assert violates_facts(offered, written(**words))


def test_an_offer_stated_where_there_is_none_is_a_violation() -> None:
    plain = next(r for r in requests_of(SMOKE, 9) if not r.has_offer)
    assert violates_facts(plain, written())
    assert not violates_facts(plain, written(body="Enjoy {product} today."))


def test_raw_answers_are_held_to_the_schema() -> None:
    schema = copy_schema("en")
    answers = [GOOD, {**GOOD, "body": "Enjoy 2 coffees with toast."}, {**GOOD, "more": "x"}, None]
    found = [(schema, Generated("", data, None if data else "cancelled", 9)) for data in answers]
    assert schema_valid(found) == 0.25


def test_diversity_is_of_the_models_words() -> None:
    assert distinct_pairs([written(source="template")]) is None
    once = distinct_pairs([written()])
    assert distinct_pairs([written(), written()]) == pytest.approx((once or 0.0) / 2)
