"""`write_content`: what passes the gates is the model's, the rest is a template, and reasons say so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from qiance.domain import Channel, Item, Offer, OfferKind
from qiance.strategy.content import write_content
from qiance.strategy.content_ports import ContentRequest, EngineUnavailable, Generated
from qiance.strategy.prompts import MOST, Prompt, copy_prompt, copy_schema

COFFEE = Item("i1", "Ground Coffee, 12 oz", "Coffee", "GROCERY", "National", 799, 500)
HALF = Offer(OfferKind.PERCENT, 0.5)
GOOD = {
    "body": "Enjoy a warm cup of ground coffee with your favorite flavor today.",
    "headline": "A taste of the perfect morning",
    "call_to_action": "Shop now",
}
GOOD_ZH = {"body": "清晨一杯咖啡，香气慢慢散开。", "headline": "早晨从香气开始", "call_to_action": "立即选购"}


class ScriptedEngine:
    """An engine whose answers are written down: one list of answers per prompt, in turn."""

    name = "scripted"
    takes_segment = False
    tuned: frozenset[str] = frozenset()

    def __init__(self, answers: Sequence[Any], languages: frozenset[str] = frozenset({"en"})) -> None:
        self.languages = languages
        self.prompts: list[Prompt] = []
        self.misfits: tuple[str, ...] = ()
        self._answers = answers

    def generate_json(
        self,
        prompts: Sequence[Prompt],
        schema: Mapping[str, Any],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        avoid: Sequence[str],
        on_progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Generated]:
        self.prompts += prompts
        if cancelled is not None and cancelled():
            return [Generated("", None, "cancelled", 0) for _ in prompts]
        if on_progress is not None:
            on_progress(len(prompts), len(prompts))
        return [self._answer(self._answers[n % len(self._answers)]) for n in range(len(prompts))]

    def log_likelihoods(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, cancelled: Callable[[], bool] | None
    ) -> list[float]:
        """Of the answers that `misfits` has words of, less for the product than for any."""
        if cancelled is not None and cancelled():
            return [math.nan for _ in answers]
        return [
            -9.0 if "groceries" not in p.user and any(word in answer for word in self.misfits) else -5.0
            for p, answer in zip(prompts, answers, strict=True)
        ]

    def _answer(self, given: Any) -> Generated:
        if isinstance(given, Generated):
            return given
        return Generated(json.dumps(given), given, None, 40, -0.5)


class DownEngine(ScriptedEngine):
    """A model that is not there."""

    def generate_json(self, *args: Any, **kwargs: Any) -> list[Generated]:
        raise EngineUnavailable("out of memory")


def request(**changes: Any) -> ContentRequest:
    fields: dict[str, Any] = {
        "key": "a1",
        "item": COFFEE,
        "offer": Offer(),
        "channel": Channel.EMAIL,
        "language": "en",
    }
    return ContentRequest(**{**fields, **changes})


def test_words_that_pass_are_the_models() -> None:
    (written,) = write_content([request()], ScriptedEngine([GOOD]), samples=2)
    assert written.engine == "scripted"
    assert written.creative.source == "llm"
    assert written.creative.headline == GOOD["headline"]
    assert written.reasons[0] == "written by scripted; 2 of 2 samples passed every check"
    assert written.key == "a1"


def test_an_offer_is_stated_by_an_approved_sentence() -> None:
    offer = Offer(OfferKind.PERCENT, 0.2, threshold=3000)
    (written,) = write_content([request(offer=offer, channel=Channel.PUSH)], ScriptedEngine([GOOD_SHORT]))
    assert written.creative.body.endswith("Now {discount} until {ends}. For baskets of {threshold} or more.")
    assert any("approved frame" in reason for reason in written.reasons)


GOOD_SHORT = {**GOOD, "body": "Enjoy a warm cup of coffee today."}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({**GOOD, "body": "Enjoy coffee for 2 days."}, "fact-figure"),
        ({**GOOD, "headline": "A lifesaver"}, "en-absolute"),
        ({**GOOD, "headline": "x" * MOST["en"]["headline"]}, "W08"),
        ({**GOOD, "extra": "y"}, "W00"),
        ({"body": "x"}, "W00"),
        ({**GOOD, "headline": 3}, "W00"),
        (Generated("{", None, "cancelled", 1), "W00 cancelled"),
        (Generated("", GOOD, None, 40, -1.5), "W13"),
        ({**GOOD, "headline": "A warm bowl for dinner tonight"}, "W14"),
    ],
)
def test_words_that_fail_give_way_to_a_template(answer: Any, reason: str) -> None:
    (written,) = write_content([request()], ScriptedEngine([answer]), samples=2)
    assert written.engine == written.creative.source == "template"
    assert "none of 2 samples passed" in written.reasons[0]
    assert reason in written.reasons[0]


def test_the_best_of_several_samples_is_taken() -> None:
    likely = Generated("", {**GOOD, "headline": "A calm start with a cup"}, None, 40, -0.2)
    answers = [GOOD, likely, {**GOOD, "body": "No."}]
    (written,) = write_content([request()], ScriptedEngine(answers), samples=3)
    assert written.creative.headline == "A calm start with a cup"


def test_words_that_fit_other_products_better_are_not_taken() -> None:
    engine = ScriptedEngine([{**GOOD, "headline": "Lemon bars for the night"}, GOOD])
    engine.misfits = ("Lemon",)
    (written,) = write_content([request()], engine, samples=2)
    assert written.creative.headline == GOOD["headline"]
    assert written.reasons[0] == "written by scripted; 1 of 2 samples passed every check"
    engine.misfits = ("Lemon", "morning")
    (written,) = write_content([request()], engine, samples=2)
    assert written.engine == "template"
    assert "W15 × 2; e.g. W15 headline fits other products better" in written.reasons[0]


def test_no_model_and_a_model_that_is_down_are_told_apart() -> None:
    (without,) = write_content([request()], None)
    (down,) = write_content([request()], DownEngine([]))
    assert without.reasons == ("template: no language model is loaded",)
    assert down.reasons == ("template: the language model is not available: out of memory",)


def test_a_language_that_the_model_does_not_write_is_a_template_with_that_reason() -> None:
    engine = ScriptedEngine([GOOD])
    english, chinese = write_content([request(), request(language="zh", offer=HALF)], engine, samples=1)
    assert english.engine == "scripted"
    assert chinese.engine == "template"
    assert chinese.reasons == ("template: scripted does not write zh",)
    assert "{discount}" in chinese.creative.headline + chinese.creative.body
    assert len(engine.prompts) == 1


def test_a_model_that_writes_chinese_is_asked_in_chinese() -> None:
    engine = ScriptedEngine([{**GOOD_ZH, "body": "清晨一杯热饮，香气慢慢散开。"}], frozenset({"en", "zh"}))
    coffee = Item("i1", "研磨咖啡", "咖啡", "杂货", "自有", 799, 500)
    chinese = request(language="zh", item=coffee, offer=HALF)
    (written,) = write_content([chinese], engine, samples=1)
    assert "研磨咖啡" in engine.prompts[0].user
    assert written.engine == "template"  # the words never name the product
    engine = ScriptedEngine([GOOD_ZH], frozenset({"zh"}))
    (written,) = write_content([chinese], engine, samples=1)
    assert written.engine == "scripted", written.reasons
    assert written.creative.body == "清晨一杯咖啡，香气慢慢散开。{product}现享{discount}，截至{ends}。"


def test_a_model_is_not_asked_for_words_on_what_has_no_title_in_their_language() -> None:
    engine = ScriptedEngine([GOOD_ZH], frozenset({"zh"}))
    named = Item("i2", "Ground Coffee", "Coffee", "GROCERY", "Own", 799, 500, {"zh": "研磨咖啡（12盎司）"})
    first, second = write_content(
        [request(language="zh"), request(language="zh", item=named)], engine, samples=1
    )
    assert first.reasons == ("template: the catalogue has no title of it in zh",)
    assert ["研磨咖啡" in prompt.user for prompt in engine.prompts] == [True]
    assert second.engine == "scripted", second.reasons


def test_templates_take_turns_and_depend_only_on_the_seed() -> None:
    requests = [request(key=f"a{n}", offer=HALF) for n in range(4)]
    written = write_content(requests, None, seed=3)
    assert len({w.creative.headline for w in written}) == 4
    assert written == write_content(requests, None, seed=3)
    assert written != write_content(requests, None, seed=4)


def test_a_headline_is_used_once() -> None:
    first, second = write_content([request(key="a"), request(key="b")], ScriptedEngine([GOOD]), samples=1)
    assert first.engine == "scripted"
    assert second.engine == "template"
    assert second.reasons == ("template: all 1 samples repeat a headline already used",)


def test_a_long_title_takes_a_template_that_fits() -> None:
    long = Item("i1", "Premium Slow Roasted Ground Coffee Beans", "Coffee", "GROCERY", "National", 799, 500)
    for seed in range(4):
        (written,) = write_content([request(item=long, channel=Channel.PUSH)], None, seed=seed)
        assert len(written.reasons) == 1


def test_progress_is_a_fraction_and_words() -> None:
    seen: list[tuple[float, str]] = []
    write_content(
        [request()], ScriptedEngine([GOOD]), samples=2, on_progress=lambda f, m: seen.append((f, m))
    )
    assert seen == [(1.0, "writing words: 2 of 2 samples")]


def test_a_model_that_is_late_or_cancelled_gives_way_to_templates() -> None:
    (late,) = write_content([request()], ScriptedEngine([GOOD]), max_seconds=0.0)
    (stopped,) = write_content([request()], ScriptedEngine([GOOD]), max_seconds=60.0, cancelled=lambda: True)
    (in_time,) = write_content([request()], ScriptedEngine([GOOD]), max_seconds=60.0)
    assert [w.engine for w in (late, stopped, in_time)] == ["template", "template", "scripted"]
    assert "W00 cancelled" in late.reasons[0]


def test_words_that_are_written_but_not_weighed_in_time_are_not_used() -> None:
    asked: list[bool] = []

    def between() -> bool:
        asked.append(True)
        return len(asked) > 1

    (written,) = write_content([request()], ScriptedEngine([GOOD]), cancelled=between)
    assert written.engine == "template"
    assert "W15 × 4" in written.reasons[0]
    assert "not known in time" in written.reasons[0]


def test_a_model_that_is_gone_before_it_weighs_gives_way_to_templates() -> None:
    class Gone(ScriptedEngine):
        def log_likelihoods(self, *args: Any, **kwargs: Any) -> list[float]:
            raise EngineUnavailable("out of memory")

    (written,) = write_content([request()], Gone([GOOD]))
    assert written.engine == "template"
    assert "W15" in written.reasons[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": "de"}, "request a1: language 'de' is not in"),
        ({"channel": Channel.NONE}, "request a1: channel 'none' carries no words"),
    ],
)
def test_bad_requests_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request(**changes)
    with pytest.raises(ValueError, match="samples: 0 is below 1"):
        write_content([request()], None, samples=0)


def test_only_a_model_that_can_use_it_is_told_the_segment() -> None:
    engine = ScriptedEngine([GOOD])
    (written,) = write_content([request(readers="smart shoppers")], engine, samples=1)
    assert "smart shoppers" not in engine.prompts[0].user
    assert "too small to write for one" in written.reasons[-1]
    engine.takes_segment = True
    (written,) = write_content([request(readers="smart shoppers")], engine, samples=1)
    assert "for smart shoppers" in engine.prompts[1].user
    assert "written for smart shoppers" in written.reasons


def test_segments_with_figures_stay_out_of_the_prompt() -> None:
    assert copy_prompt("tea", "visits 3", "en").user == copy_prompt("tea", "everybody", "en").user


def test_no_schema_admits_a_figure_or_a_brace() -> None:
    import re

    for language in ("en", "zh"):
        properties = copy_schema(language)["properties"]
        for name in ("body", "headline"):
            pattern = re.compile(properties[name]["pattern"])
            filler = "a" * 30 if language == "en" else "好" * 12
            for mark in "5$%{}€":
                assert not pattern.fullmatch(f"Enjoy {filler}{mark}{filler}.")
                assert not pattern.fullmatch(f"{filler}{mark}。")
