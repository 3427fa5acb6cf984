"""What becomes of one sample of a language model: words that passed every check, or why not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from qiance.domain import Creative, Item
from qiance.guard import Finding, Guard, Severity, Subject
from qiance.strategy.content_ports import ContentRequest, EngineUnavailable, Generated, TextEngine
from qiance.strategy.prompts import ANYTHING, MOST, Prompt, copy_prompt, is_example
from qiance.strategy.templates import offer_sentence
from qiance.strategy.wording import Fault, check_relation, check_style, plain_name

# Mean log probability per token below which a model is guessing: read off samples of SmolLM2-135M.
LEAST_LIKELIHOOD = -0.9
# Nats by which words may be less likely for the product than for any, and those that count in its favour.
# Read off samples of both carried models: of `Share it on social media` for pork the large one thinks -1.6.
LEAST_RELEVANCE = 0.0
MOST_RELEVANCE = 8.0
RELEVANCE_WEIGHT = 0.04
PARTS: Final = ("body", "headline")
# The widest date that `{ends}` may become: lengths are checked with it.
_WIDEST_END = datetime(2000, 9, 30, tzinfo=UTC)
_WIDEST_RUN = timedelta(days=30)


class Copy(BaseModel):
    """What a model must answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body: str
    headline: str
    call_to_action: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sample: the creative when it passed, else the findings; a higher score is better."""

    creative: Creative | None
    findings: tuple[Fault | Finding, ...]
    score: float = 0.0
    copy: Copy | None = None


def judge(request: ContentRequest, answer: Generated, guard: Guard) -> Verdict:
    """Runs one sample through the schema, every check of style and the lint."""
    if answer.data is None:
        return Verdict(None, (Fault("W00", answer.error or "no answer"),))
    try:
        copy = Copy.model_validate(answer.data)
    except ValidationError as error:
        return Verdict(None, (Fault("W00", f"not as the schema says: {error.errors()[0]['msg']}"),))
    cut = [n for n, most in MOST[request.language].items() if len(getattr(copy, n)) >= most]
    if cut:
        return Verdict(None, (Fault("W08", f"{cut[0]} was cut at the longest length"),))
    if is_example(copy.headline, copy.body, request.language):
        return Verdict(None, (Fault("W14", "copied from an example of the prompt"),))
    if answer.likelihood < LEAST_LIKELIHOOD:
        return Verdict(None, (Fault("W13", f"unlikely words, {answer.likelihood:.2f} per token"),))
    creative = assemble(request, copy)
    # The offer's sentence names the product too, so the model's own words are asked first.
    faults: list[Fault | Finding] = [*check_relation(copy.headline, copy.body, request.item)]
    faults = faults or [*blocking(request, creative, guard)] or [*check_style(creative, request.item)]
    score = _score(creative, answer, request.item)
    return Verdict(None if faults else creative, tuple(faults), score, copy)


def assemble(request: ContentRequest, copy: Copy) -> Creative:
    """The model's words, followed by the approved sentence that states offer, condition and end."""
    body = copy.body.strip()
    if request.has_offer:
        gap = "" if request.language == "zh" else " "
        body += gap + offer_sentence(request.channel, request.language, request.has_threshold)
    headline = copy.headline.strip().rstrip(".")
    return Creative(request.channel, request.language, headline, body, copy.call_to_action, "llm")


def blocking(request: ContentRequest, creative: Creative, guard: Guard) -> list[Finding]:
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


def by_relevance(
    requests: Sequence[ContentRequest],
    verdicts: Sequence[Verdict],
    engine: TextEngine,
    cancelled: Callable[[], bool] | None = None,
) -> list[Verdict]:
    """The verdicts with what the model knows of their products; one request for each, of one language.

    A part's relevance is how much likelier its words are for this product than for any: the pointwise mutual
    information log p(words | product) - log p(words | no product) in nats (Li et al. 2016, "A
    diversity-promoting objective function for neural conversation models", for ranking). Samples that say of
    a product what fits others better fail (W15), as do those not weighed before `cancelled` or because the
    model is gone; of the rest the more relevant score higher.
    """
    passed = [
        (r, v.copy) for r, v in zip(requests, verdicts, strict=True) if v.creative is not None and v.copy
    ]
    parts = [(r, {name: getattr(copy, name)}) for r, copy in passed for name in PARTS]
    answers = [json.dumps(part, ensure_ascii=False)[:-1] for _, part in parts]
    about = [prompt_of(request, engine) for request, _ in parts]
    about += [prompt_of(request, engine, ANYTHING[request.language]) for request, _ in parts]
    try:
        likely = np.array(engine.log_likelihoods(about, answers * 2, cancelled=cancelled))
    except EngineUnavailable:
        likely = np.full(len(about), np.nan)
    found = likely.reshape(2, len(passed), len(PARTS))
    weighed = iter(found[0] - found[1])
    return [_weighed(v, next(weighed)) if v.creative is not None else v for v in verdicts]


def _weighed(verdict: Verdict, relevance: NDArray[np.float64]) -> Verdict:
    if np.isnan(relevance).any():
        fault = Fault("W15", "whether it fits the product was not known in time")
        return replace(verdict, creative=None, findings=(fault,))
    for name, value in zip(PARTS, relevance.tolist(), strict=True):
        if value < LEAST_RELEVANCE:
            fault = Fault("W15", f"{name} fits other products better ({value:.1f} nats)")
            return replace(verdict, creative=None, findings=(fault,))
    gain = RELEVANCE_WEIGHT * float(np.minimum(relevance, MOST_RELEVANCE).sum())
    return replace(verdict, score=verdict.score + gain)


def prompt_of(request: ContentRequest, engine: TextEngine, name: str = "") -> Prompt:
    """What `engine` is asked for the words of `request`; about `name` where one is given."""
    readers = request.readers if engine.takes_segment else ""
    named = name or plain_name(request.item, request.language)
    return copy_prompt(named, readers, request.language, request.language not in engine.tuned)


def best(verdicts: Sequence[Verdict], used: set[str]) -> Verdict | None:
    """Of those that passed, the one of the highest score whose headline is not among `used`."""
    passed = [v for v in verdicts if v.creative is not None and normal(v.creative.headline) not in used]
    return max(passed, key=lambda v: v.score, default=None)


def normal(text: str) -> str:
    """Letters and digits alone, by which headlines are compared."""
    return "".join(c for c in text.lower() if c.isalnum())
