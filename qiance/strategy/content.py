"""Words for strategies: a language model writes, checks decide, slots bring facts, templates fill gaps.

The data path is `write_content`: prompts → samples → checks → best sample or template, one per request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from qiance.domain import Channel, Creative, Item, Offer, OfferKind
from qiance.guard import Finding, Guard, Severity, Subject
from qiance.strategy.prompts import AVOID, MOST, Prompt, copy_prompt, copy_schema, is_example
from qiance.strategy.slots import LANGUAGES
from qiance.strategy.templates import offer_sentence, template, template_count
from qiance.strategy.wording import Fault, check_relation, check_style, is_named, plain_name

Progress = Callable[[float, str], None]
Counted = Callable[[int, int], None]
MAX_NEW_TOKENS = 110
TEMPERATURE = 0.4
# Mean log probability per token below which a model is guessing: read off samples of SmolLM2-135M.
LEAST_LIKELIHOOD = -0.9
# The widest date that `{ends}` may become: lengths are checked with it.
_WIDEST_END = datetime(2000, 9, 30, tzinfo=UTC)
_WIDEST_RUN = timedelta(days=30)


class EngineUnavailable(RuntimeError):  # noqa: N818
    """The language model cannot answer now; templates write instead."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer of an engine.

    text: as written; data: the JSON object, None when `error` says why not; tokens: how many were written.
    likelihood: mean natural log probability per token, 0 is certain.
    """

    text: str
    data: dict[str, Any] | None
    error: str | None
    tokens: int
    likelihood: float = 0.0


class TextEngine(Protocol):
    """A model that answers in JSON.

    languages: those it writes well enough to be asked; takes_segment: large enough that naming the readers
    helps it (a very small model starts to write about them: `deal seekers` brought `get paid for it`).
    """

    name: str
    languages: frozenset[str]
    takes_segment: bool

    def generate_json(
        self,
        prompts: Sequence[Prompt],
        schema: Mapping[str, Any],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        avoid: Sequence[str],
        on_progress: Counted | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Generated]:
        """One answer per prompt, in order; raises EngineUnavailable when there is no model."""
        ...


@dataclass(frozen=True, slots=True)
class ContentRequest:
    """Words wanted for one action.

    segment: the readers in words, e.g. `families with children`; empty names nobody.
    objective: what the brief wants more of; kept for provenance.
    """

    key: str
    item: Item
    offer: Offer
    channel: Channel
    language: str
    segment: str = ""
    objective: str = ""

    def __post_init__(self) -> None:
        if self.language not in LANGUAGES:
            raise ValueError(f"request {self.key}: language {self.language!r} is not in {LANGUAGES}")
        if self.channel is Channel.NONE:
            raise ValueError(f"request {self.key}: channel {self.channel.value!r} carries no words")

    @property
    def has_offer(self) -> bool:
        return self.offer.kind is not OfferKind.NONE

    @property
    def has_threshold(self) -> bool:
        return self.has_offer and self.offer.threshold > 0


@dataclass(frozen=True, slots=True)
class Written:
    """Words for one request, slots open.

    reasons: how they came about, one sentence each; engine: the model's name, or `template`.
    """

    creative: Creative
    reasons: tuple[str, ...]
    engine: str
    key: str = ""


class _Copy(BaseModel):
    """What a model must answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body: str
    headline: str
    call_to_action: str


@dataclass(frozen=True, slots=True)
class _Verdict:
    """One sample: the creative when it passed, else the findings; a higher score is better."""

    creative: Creative | None
    findings: tuple[Fault | Finding, ...]
    score: float = 0.0


def write_content(
    requests: Sequence[ContentRequest],
    engine: TextEngine | None,
    guard: Guard | None = None,
    *,
    samples: int = 4,
    seed: int = 0,
    max_seconds: float | None = None,
    on_progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Written]:
    """One creative per request, in order: the best checked sample of `engine`, else a template.

    guard: the lint that every text must pass, a model's or a template's; None takes the packaged rules.
    samples: answers asked per request, at least 1; max_seconds: after that the model is stopped, and what it
    has not finished is written by templates (which ones then depends on the machine).
    on_progress(fraction, message) follows the samples.
    Never raises because a model is down: `reasons` say so and templates write.
    """
    if samples < 1:
        raise ValueError(f"samples: {samples} is below 1")
    guard = guard or Guard.load()
    if max_seconds is not None:
        cancelled = _or_late(cancelled, time.monotonic() + max_seconds)
    answers, absent = _ask(requests, engine, samples, seed, on_progress, cancelled)
    used: set[str] = set()
    turns: Counter[tuple[Channel, bool, str]] = Counter()
    written = []
    for number, request in enumerate(requests):
        verdicts = [_judge(request, answer, guard) for answer in answers.get(number, ())]
        best = _best(verdicts, used)
        if best is not None and best.creative is not None and engine is not None:
            written.append(_from_model(request, best.creative, verdicts, engine))
        else:
            bucket = (request.channel, request.has_offer, request.language)
            why = absent.get(number) or _why_none(verdicts)
            written.append(_from_template(request, why, seed, turns[bucket], guard))
            turns[bucket] += 1
        used.add(_normal(written[-1].creative.headline))
    return written


def _ask(
    requests: Sequence[ContentRequest],
    engine: TextEngine | None,
    samples: int,
    seed: int,
    on_progress: Progress | None,
    cancelled: Callable[[], bool] | None,
) -> tuple[dict[int, list[Generated]], dict[int, str]]:
    """Answers by request number, and for the requests that were not asked or answered, why."""
    if engine is None:
        return {}, dict.fromkeys(range(len(requests)), "no language model is loaded")
    answers: dict[int, list[Generated]] = {}
    absent: dict[int, str] = {}
    for language in LANGUAGES:
        numbers = [n for n, r in enumerate(requests) if r.language == language]
        absent |= _unasked(requests, numbers, engine, language)
        numbers = [n for n in numbers if n not in absent]
        if not numbers:
            continue
        prompts = [_prompt(requests[n], engine) for n in numbers for _ in range(samples)]
        try:
            flat = engine.generate_json(
                prompts,
                copy_schema(language),
                max_new_tokens=MAX_NEW_TOKENS,
                temperature=TEMPERATURE,
                seed=seed,
                avoid=AVOID[language],
                on_progress=_counted(on_progress),
                cancelled=cancelled,
            )
        except EngineUnavailable as error:
            absent |= dict.fromkeys(numbers, f"the language model is not available: {error}")
            continue
        for place, number in enumerate(numbers):
            answers[number] = flat[place * samples : (place + 1) * samples]
    return answers, absent


def _unasked(
    requests: Sequence[ContentRequest], numbers: Sequence[int], engine: TextEngine, language: str
) -> dict[int, str]:
    """Of the requests `numbers`, those that the model cannot write for, and why."""
    if language not in engine.languages:
        return dict.fromkeys(numbers, f"{engine.name} does not write {language}")
    nameless = [n for n in numbers if not is_named(requests[n].item, language)]
    return dict.fromkeys(nameless, f"the catalogue has no title of it in {language}")


def _or_late(cancelled: Callable[[], bool] | None, deadline: float) -> Callable[[], bool]:
    return lambda: time.monotonic() > deadline or (cancelled is not None and cancelled())


def _counted(on_progress: Progress | None) -> Counted | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(done / total, f"writing words: {done} of {total} samples")


def _prompt(request: ContentRequest, engine: TextEngine) -> Prompt:
    segment = request.segment if engine.takes_segment else ""
    return copy_prompt(plain_name(request.item, request.language), segment, request.language)


def _judge(request: ContentRequest, answer: Generated, guard: Guard) -> _Verdict:
    """Runs one sample through the schema, every check of style and the lint."""
    if answer.data is None:
        return _Verdict(None, (Fault("W00", answer.error or "no answer"),))
    try:
        copy = _Copy.model_validate(answer.data)
    except ValidationError as error:
        return _Verdict(None, (Fault("W00", f"not as the schema says: {error.errors()[0]['msg']}"),))
    cut = [n for n, most in MOST[request.language].items() if len(getattr(copy, n)) >= most]
    if cut:
        return _Verdict(None, (Fault("W08", f"{cut[0]} was cut at the longest length"),))
    if is_example(copy.headline, copy.body, request.language):
        return _Verdict(None, (Fault("W14", "copied from an example of the prompt"),))
    if answer.likelihood < LEAST_LIKELIHOOD:
        return _Verdict(None, (Fault("W13", f"unlikely words, {answer.likelihood:.2f} per token"),))
    creative = _assemble(request, copy)
    # The offer's sentence names the product too, so the model's own words are asked first.
    faults: list[Fault | Finding] = [*check_relation(copy.headline, copy.body, request.item)]
    faults = faults or [*_blocking(request, creative, guard)] or [*check_style(creative, request.item)]
    return _Verdict(None if faults else creative, tuple(faults), _score(creative, answer, request.item))


def _assemble(request: ContentRequest, copy: _Copy) -> Creative:
    """The model's words, followed by the approved sentence that states offer, condition and end."""
    body = copy.body.strip()
    if request.has_offer:
        gap = "" if request.language == "zh" else " "
        body += gap + offer_sentence(request.channel, request.language, request.has_threshold)
    headline = copy.headline.strip().rstrip(".")
    return Creative(request.channel, request.language, headline, body, copy.call_to_action, "llm")


def _blocking(request: ContentRequest, creative: Creative, guard: Guard) -> list[Finding]:
    """What the lint blocks in these words; whether the offer is deep is for the planner to say."""
    offered = request.has_offer
    subject = Subject(
        creative,
        request.offer,
        request.item.item_id,
        request.item,
        request.segment,
        _WIDEST_END - _WIDEST_RUN if offered else None,
        _WIDEST_END if offered else None,
    )
    found = guard.lint(subject).result.findings
    return [f for f in found if f.severity is Severity.BLOCK and f.field != "offer"]


def _score(creative: Creative, answer: Generated, item: Item) -> float:
    """Likelihood, plus 0.2 for the product's full name, less 0.02 per word off a headline of five."""
    named = 0.2 if plain_name(item, creative.language) in creative.body.lower() else 0.0
    words = len(creative.headline.split()) if creative.language == "en" else len(creative.headline) / 2
    return answer.likelihood + named - 0.02 * abs(words - 5)


def _best(verdicts: Sequence[_Verdict], used: set[str]) -> _Verdict | None:
    passed = [v for v in verdicts if v.creative is not None and _normal(v.creative.headline) not in used]
    return max(passed, key=lambda v: v.score, default=None)


def _from_model(
    request: ContentRequest, creative: Creative, verdicts: Sequence[_Verdict], engine: TextEngine
) -> Written:
    passed = sum(v.creative is not None for v in verdicts)
    reasons = [f"written by {engine.name}; {passed} of {len(verdicts)} samples passed every check"]
    if request.has_offer:
        reasons.append("the sentence that states the offer is an approved frame with slots")
    if request.segment and not engine.takes_segment:
        reasons.append("the same words for every segment: the model is too small to write for one")
    return Written(creative, tuple(reasons), engine.name, request.key)


def _why_none(verdicts: Sequence[_Verdict]) -> str:
    rules = Counter(v.findings[0].rule for v in verdicts if v.findings)
    if not rules:
        return f"all {len(verdicts)} samples repeat a headline already used"
    counts = ", ".join(f"{rule} × {n}" for rule, n in sorted(rules.items()))
    example = next(str(v.findings[0]) for v in verdicts if v.findings)
    return f"none of {len(verdicts)} samples passed ({counts}; e.g. {example})"


def _from_template(request: ContentRequest, why: str, seed: int, turn: int, guard: Guard) -> Written:
    """The next template of the bucket that passes the lint; if none does, the last, and what blocks it."""
    for step in range(template_count(request.channel, request.has_offer, request.language)):
        creative = template(
            request.channel, request.language, request.has_offer, request.has_threshold, seed + turn + step
        )
        findings = _blocking(request, creative, guard)
        if not findings:
            return Written(creative, (f"template: {why}",), "template", request.key)
    reasons = (f"template: {why}", f"the lint blocks every template: {findings[0]}")
    return Written(creative, reasons, "template", request.key)


def _normal(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())
