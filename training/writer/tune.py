"""Tuning of a writer: imitation of its own checked words, then rounds of preference while a judge watches.

The model first imitates what it wrote with examples in the prompt and what passed every check, so that it
needs no examples. Each round then draws answers, prefers those that pass the checks and of which the reward
model expects more clicks, and is kept if the judge, which learned from other tests, sees a gain too. Where
the reward rises and the judge does not, the writer is learning the reward model's mistakes (Gao et al. 2023,
"Scaling laws for reward model overoptimization"): the round is dropped and the tuning ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from qiance.data.errors import DataError
from qiance.evaluate.inference import bootstrap_interval, units_of
from qiance.guard import Guard
from qiance.strategy.content_ports import ContentRequest
from training.writer.drafts import Drafts, Pair, draft, imitated, pairs_of, scores_of
from training.writer.fit import fit_adapter, imitation_rows, preference_rows
from training.writer.settings import Engine, Floats, MakeEngine, Scorer, Tell, WriterSettings

LEAST_PRODUCTS = 20
MOST_LOST = 0.05  # of the share of answers that pass the checks
IMITATED_EACH = 2  # answers per product: more of the same teach nothing


@dataclass(frozen=True, slots=True)
class Watched:
    """What a stage writes for the products that only watch.

    reward, judge: means of the headlines that passed, in logarithms of the click rate. kl: nats per answer
    from the imitation, None before it. gain: of the judge over what was kept before, with its 95 % interval.
    pairs, loss: of the step that led here; answers where it was the imitation.
    """

    stage: str
    reward: float
    judge: float
    pass_share: float
    kl: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    kept: bool = True
    pairs: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Tuned:
    """adapter: folder of what was kept. history: `untuned`, `imitation`, and the rounds. ended: why."""

    adapter: Path
    history: Sequence[Watched]
    ended: str

    @property
    def last(self) -> Watched:
        """What was kept."""
        return last_kept(self.history)

    @property
    def passes(self) -> bool:
        """Whether what was kept passes the checks about as often as the model did before."""
        return self.last.pass_share >= self.history[0].pass_share - MOST_LOST


def split_products(
    requests: Sequence[ContentRequest], share: float, seed: int
) -> tuple[list[ContentRequest], list[ContentRequest]]:
    """Those that teach and those that watch; DataError for too few."""
    if len(requests) < LEAST_PRODUCTS:
        raise DataError(
            "the products",
            f"are {len(requests)}; a writer is tuned on at least {LEAST_PRODUCTS}",
            "pass more products with different names",
        )
    order = np.random.default_rng(seed).permutation(len(requests))
    aside = set(order[: max(round(share * len(requests)), 2)].tolist())
    teach = [request for place, request in enumerate(requests) if place not in aside]
    return teach, [requests[place] for place in sorted(aside)]


class Tuning:
    """One run; `folder` takes the adapters of all stages."""

    def __init__(
        self,
        make: MakeEngine,
        reward: Scorer,
        judge: Scorer,
        guard: Guard,
        folder: Path,
        settings: WriterSettings,
        tell: Tell,
    ) -> None:
        self._make, self._reward, self._judge, self._guard = make, reward, judge, guard
        self._folder, self._settings, self._tell = folder, settings, tell
        self._stages = 2 + settings.rounds

    def run(self, requests: Sequence[ContentRequest]) -> Tuned:
        """Requests: one per product, of one language."""
        settings = self._settings
        teach, watch = split_products(requests, settings.watched, settings.seed)
        history, kept, engine, last = self._imitate(teach, watch)
        reference = engine
        ended = "all rounds are over"
        for number in range(1, settings.rounds + 1):
            pairs = pairs_of(self._draft(number + 1, 0.0, 0.3, teach, engine), settings.penalty)
            if not pairs:
                ended = f"before round {number} no answer was better than another"
                break
            adapter, found, drafts, engine = self._round(number, pairs, watch, kept, engine, reference)
            seen = self._compared(found, drafts, last)
            why = reason_to_stop(seen, last_kept(history), settings.most_kl)
            history.append(replace(seen, kept=why is None))
            if why is not None:
                ended = why
                break
            kept, last = adapter, drafts
        return Tuned(kept, history, ended)

    def _imitate(
        self, teach: Sequence[ContentRequest], watch: Sequence[ContentRequest]
    ) -> tuple[list[Watched], Path, Engine, Drafts]:
        untuned = self._make(None)
        written = self._draft(0, 0.0, 0.7, teach, untuned)
        before = self._draft(0, 0.7, 0.3, watch, untuned)
        answers = imitated(written, IMITATED_EACH)
        if len(answers) < LEAST_PRODUCTS:
            raise DataError(
                "the model's words",
                f"pass the checks {len(answers)} times in {len(written.text)}; {LEAST_PRODUCTS} are needed",
                "draw more samples, or take a model that writes better",
            )
        adapter = self._folder / "imitation"
        said = self._fit(1, imitation_rows(answers), untuned.location, None, adapter)
        engine = self._make(adapter)
        after = self._draft(1, 0.8, 0.2, watch, engine)
        first = self._watched("untuned", before)
        second = replace(self._watched("imitation", after), loss=said, kl=0.0, pairs=len(answers))
        return [first, self._compared(second, after, before)], adapter, engine, after

    def _round(
        self,
        number: int,
        pairs: Sequence[Pair],
        watch: Sequence[ContentRequest],
        kept: Path,
        engine: Engine,
        reference: Engine,
    ) -> tuple[Path, Watched, Drafts, Engine]:
        stage = number + 1
        adapter = self._folder / f"round-{number}"
        loss = self._fit(stage, preference_rows(pairs), engine.location, kept, adapter)
        tuned = self._make(adapter)
        drafts = self._draft(stage, 0.8, 0.2, watch, tuned)
        found = replace(
            self._watched(f"round {number}", drafts),
            kl=divergence(drafts, tuned, reference),
            pairs=len(pairs),
            loss=loss,
        )
        return adapter, found, drafts, tuned

    def _draft(
        self, stage: int, at: float, width: float, requests: Sequence[ContentRequest], engine: Engine
    ) -> Drafts:
        settings = self._settings
        seed = settings.seed * 1_009 + stage
        tell = self._part(stage, at, width, "writing: ")
        return draft(requests, engine, self._guard, self._reward, settings.samples, seed, tell)

    def _fit(
        self, stage: int, rows: list[dict[str, object]], model: str, start: Path | None, out: Path
    ) -> float:
        at, width = (0.3, 0.5) if stage > 1 else (0.0, 0.8)
        tell = self._part(stage, at, width, "tuning: ")
        return fit_adapter(rows, model, start, out, self._settings, tell)["loss"]

    def _part(self, stage: int, at: float, width: float, prefix: str) -> Tell:
        return lambda share, text: self._tell((stage + at + width * share) / self._stages, prefix + text)

    def _watched(self, stage: str, drafts: Drafts) -> Watched:
        headlines = [text for text, passed in zip(drafts.headlines, drafts.passed, strict=True) if passed]
        judged = scores_of(headlines, self._judge)
        reward = drafts.score[drafts.passed]
        return Watched(stage, _mean(reward), _mean(judged), drafts.pass_share)

    def _compared(self, seen: Watched, after: Drafts, before: Drafts) -> Watched:
        value, low, high = gain_of(before, after, self._judge, self._settings.seed)
        return replace(seen, gain=value, low=low, high=high)


def gain_of(before: Drafts, after: Drafts, judge: Scorer, seed: int) -> tuple[float, float, float]:
    """Mean difference per product of the mean score of the headlines that passed, with its 95 % interval.

    Products for which one of both wrote nothing that passed are left out; NaN where fewer than two are left.
    """
    first, second = (_by_product(drafts, judge) for drafts in (before, after))
    difference = (second - first)[np.isfinite(second - first)]
    if len(difference) < 2:
        return (float("nan"),) * 3
    units = units_of("product", np.arange(len(difference)), len(difference))
    _, low, high = bootstrap_interval(difference, units, 0.95, seed)
    return float(difference.mean()), low, high


def divergence(drafts: Drafts, engine: Engine, reference: Engine) -> float:
    """Nats per answer by which the writer finds its own answers likelier than the imitation does: the
    Kullback-Leibler divergence, estimated on what it wrote."""
    own = engine.log_likelihoods(drafts.prompts, drafts.text, cancelled=None)
    theirs = reference.log_likelihoods(drafts.prompts, drafts.text, cancelled=None)
    return float(np.mean(np.subtract(own, theirs)))


def reason_to_stop(seen: Watched, kept: Watched, most_kl: float) -> str | None:
    """Why a round is not kept; None where it is."""
    if seen.kl is not None and seen.kl > most_kl:
        return f"{seen.stage} went {seen.kl:.1f} nats away from the imitation, more than {most_kl:g}"
    if seen.gain is not None and seen.gain > 0:
        return None
    if seen.reward > kept.reward:
        return f"in {seen.stage} the reward rose and the judge saw no gain: it learns the reward's mistakes"
    return f"{seen.stage} brought nothing"


def figures_of(history: Sequence[Watched]) -> list[dict[str, object]]:
    """For metrics.json, which has no word for what is no number."""
    return [
        {name: None if value != value else value for name, value in asdict(one).items()} for one in history
    ]


def last_kept(history: Sequence[Watched]) -> Watched:
    return next(one for one in reversed(history) if one.kept)


def _by_product(drafts: Drafts, judge: Scorer) -> Floats:
    """`[P]`; NaN where nothing passed."""
    judged = scores_of(drafts.headlines, judge)
    count = np.bincount(drafts.product, drafts.passed, minlength=len(drafts.requests))
    total = np.bincount(drafts.product, judged * drafts.passed, minlength=len(drafts.requests))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
