"""Words for strategies: a language model writes, checks decide, slots bring facts, templates fill gaps.

The data path is `write_content`: prompts → samples → checks → best sample or template, one per request.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from qiance.domain import Channel, Creative
from qiance.guard import Guard
from qiance.strategy.content_ports import (
    ContentRequest,
    Counted,
    EngineUnavailable,
    Generated,
    TextEngine,
    Written,
)
from qiance.strategy.prompts import AVOID, Prompt, copy_schema
from qiance.strategy.samples import Verdict, best, blocking, by_relevance, judge, normal, prompt_of
from qiance.strategy.slots import LANGUAGES
from qiance.strategy.templates import template, template_count
from qiance.strategy.wording import is_named

Progress = Callable[[float, str], None]
MAX_NEW_TOKENS = 110
TEMPERATURE = 0.4
# Of the time allowed: the rest is for weighing what was written, which takes a tenth of the time of writing.
ASKING_SHARE = 0.85


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
    has not written and weighed is written by templates (which ones then depends on the machine).
    on_progress(fraction, message) follows the samples.
    Never raises because a model is down: `reasons` say so and templates write.
    """
    if samples < 1:
        raise ValueError(f"samples: {samples} is below 1")
    guard = guard or Guard.load()
    began, most = time.monotonic(), math.inf if max_seconds is None else max_seconds
    until = _or_late(cancelled, began + ASKING_SHARE * most)
    answers, absent = _ask(requests, engine, samples, seed, on_progress, until)
    until = _or_late(cancelled, began + most)
    judged = _judge(requests, answers, engine, guard, until) if engine is not None else {}
    used: set[str] = set()
    turns: Counter[tuple[Channel, bool, str]] = Counter()
    written = []
    for number, request in enumerate(requests):
        verdicts = judged.get(number, [])
        chosen = best(verdicts, used)
        if chosen is not None and chosen.creative is not None and engine is not None:
            written.append(_from_model(request, chosen.creative, verdicts, engine))
        else:
            bucket = (request.channel, request.has_offer, request.language)
            why = absent.get(number) or _why_none(verdicts)
            written.append(_from_template(request, why, seed, turns[bucket], guard))
            turns[bucket] += 1
        used.add(normal(written[-1].creative.headline))
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
        prompts = [prompt_of(requests[n], engine) for n in numbers for _ in range(samples)]
        try:
            flat = answers_of(engine, prompts, language, seed, _counted(on_progress), cancelled)
        except EngineUnavailable as error:
            absent |= dict.fromkeys(numbers, f"the language model is not available: {error}")
            continue
        for place, number in enumerate(numbers):
            answers[number] = flat[place * samples : (place + 1) * samples]
    return answers, absent


def answers_of(
    engine: TextEngine,
    prompts: Sequence[Prompt],
    language: str,
    seed: int,
    on_progress: Counted | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Generated]:
    """Raw answers to prompts of one language, as briefs ask for them; see `TextEngine.generate_json`."""
    return engine.generate_json(
        prompts,
        copy_schema(language),
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        seed=seed,
        avoid=AVOID[language],
        on_progress=on_progress,
        cancelled=cancelled,
    )


def _judge(
    requests: Sequence[ContentRequest],
    answers: Mapping[int, Sequence[Generated]],
    engine: TextEngine,
    guard: Guard,
    cancelled: Callable[[], bool],
) -> dict[int, list[Verdict]]:
    """A verdict on every answer, by request number."""
    verdicts: dict[int, list[Verdict]] = {}
    for language in LANGUAGES:
        numbers = [n for n in answers if requests[n].language == language]
        asked = [requests[n] for n in numbers for _ in answers[n]]
        found = [judge(requests[n], a, guard) for n in numbers for a in answers[n]]
        flat = iter(by_relevance(asked, found, engine, cancelled))
        verdicts |= {n: [next(flat) for _ in answers[n]] for n in numbers}
    return verdicts


def _unasked(
    requests: Sequence[ContentRequest], numbers: Sequence[int], engine: TextEngine, language: str
) -> dict[int, str]:
    """Of the requests `numbers`, those that the model cannot write for, and why."""
    if language not in engine.languages:
        return dict.fromkeys(numbers, f"{engine.name} does not write {language}")
    nameless = [n for n in numbers if not is_named(requests[n].item, language)]
    return dict.fromkeys(nameless, f"the catalogue has no title of it in {language}")


def _or_late(cancelled: Callable[[], bool] | None, deadline: float) -> Callable[[], bool]:
    return lambda: time.monotonic() >= deadline or (cancelled is not None and cancelled())


def _counted(on_progress: Progress | None) -> Counted | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(done / total, f"writing words: {done} of {total} samples")


def _from_model(
    request: ContentRequest, creative: Creative, verdicts: Sequence[Verdict], engine: TextEngine
) -> Written:
    passed = sum(v.creative is not None for v in verdicts)
    reasons = [f"written by {engine.name}; {passed} of {len(verdicts)} samples passed every check"]
    if request.has_offer:
        reasons.append("the sentence that states the offer is an approved frame with slots")
    if request.readers and engine.takes_segment:
        reasons.append(f"written for {request.readers}")
    elif request.readers:
        reasons.append("the same words for every segment: the model is too small to write for one")
    return Written(creative, tuple(reasons), engine.name, request.key)


def _why_none(verdicts: Sequence[Verdict]) -> str:
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
        findings = blocking(request, creative, guard)
        if not findings:
            return Written(creative, (f"template: {why}",), "template", request.key)
    reasons = (f"template: {why}", f"the lint blocks every template: {findings[0]}")
    return Written(creative, reasons, "template", request.key)
