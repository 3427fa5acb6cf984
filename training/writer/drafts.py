"""What a writer answers for products, what each answer is worth, and which answer is preferred to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qiance.guard import Guard
from qiance.strategy.content import answers_of
from qiance.strategy.content_ports import ContentRequest, TextEngine
from qiance.strategy.prompts import Prompt, copy_prompt
from qiance.strategy.samples import by_relevance, judge
from qiance.strategy.wording import plain_name
from training.writer.settings import Floats, Scorer, Tell

# Rewards that differ by less are alike: the reward model's own error is many times that.
LEAST_MARGIN = 0.02


@dataclass(frozen=True)
class Drafts:
    """n answers. product: `[n]` place of the request that each is for. text: as written, for `prompts`.

    passed: `[n]` whether schema, style, lint and relevance let it through. score: `[n]` of the headline by
    the reward model, 0 where there is none; headlines: empty there.
    """

    requests: Sequence[ContentRequest]
    product: np.ndarray
    text: Sequence[str]
    headlines: Sequence[str]
    passed: np.ndarray
    score: Floats
    prompts: Sequence[Prompt]

    def reward(self, penalty: float) -> Floats:
        """`[n]`: the score, less `penalty` where a check failed."""
        return np.where(self.passed, self.score, self.score - penalty)

    @property
    def pass_share(self) -> float:
        return float(self.passed.mean())


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer that is preferred to another one for the same product."""

    prompt: Prompt
    chosen: str
    rejected: str


def draft(
    requests: Sequence[ContentRequest],
    engine: TextEngine,
    guard: Guard,
    scorer: Scorer,
    samples: int,
    seed: int,
    tell: Tell | None = None,
) -> Drafts:
    """`samples` answers of `engine` for each request, all of one language, judged and scored."""
    language = requests[0].language
    asked = [request for request in requests for _ in range(samples)]
    examples = language not in engine.tuned
    prompts = [bare_prompt(request, examples) for request in asked]
    counted = None if tell is None else lambda done, of: tell(done / of, f"{done} of {of} answers")
    answers = answers_of(engine, prompts, language, seed, counted)
    verdicts = [judge(request, answer, guard) for request, answer in zip(asked, answers, strict=True)]
    verdicts = by_relevance(asked, verdicts, engine)
    headlines = [str((answer.data or {}).get("headline", "")) for answer in answers]
    return Drafts(
        requests,
        np.repeat(np.arange(len(requests)), samples),
        [answer.text for answer in answers],
        headlines,
        np.array([verdict.creative is not None for verdict in verdicts]),
        scores_of(headlines, scorer),
        prompts,
    )


def bare_prompt(request: ContentRequest, examples: bool = False) -> Prompt:
    """The prompt for a product, addressed to nobody."""
    return copy_prompt(plain_name(request.item, request.language), "", request.language, examples)


def scores_of(headlines: Sequence[str], scorer: Scorer) -> Floats:
    """`[n]`; 0 where there is no headline, since what cannot be read has no score."""
    known = [text for text in headlines if text]
    scores = np.zeros(len(headlines))
    if known:
        scores[np.array([bool(text) for text in headlines])] = scorer(known)
    return scores


def imitated(drafts: Drafts, most: int) -> list[tuple[Prompt, str]]:
    """Per product at most `most` different answers that passed, whatever their score, as they come."""
    found: list[tuple[Prompt, str]] = []
    for number, request in enumerate(drafts.requests):
        places = np.flatnonzero((drafts.product == number) & drafts.passed)
        texts = list(dict.fromkeys(drafts.text[place] for place in places))[:most]
        found += [(bare_prompt(request), text) for text in texts]
    return found


def pairs_of(drafts: Drafts, penalty: float) -> list[Pair]:
    """Per product, the best answer that passed against the worst that passed and against one that failed."""
    reward, pairs = drafts.reward(penalty), []
    for number, request in enumerate(drafts.requests):
        own = drafts.product == number
        passed, failed = np.flatnonzero(own & drafts.passed), np.flatnonzero(own & ~drafts.passed)
        if not len(passed):
            continue
        best, prompt = passed[np.argmax(reward[passed])], bare_prompt(request)
        worst = passed[np.argmin(reward[passed])]
        if reward[best] - reward[worst] >= LEAST_MARGIN:
            pairs.append(Pair(prompt, drafts.text[best], drafts.text[worst]))
        if len(failed):
            pairs.append(Pair(prompt, drafts.text[best], drafts.text[failed[0]]))
    return pairs
