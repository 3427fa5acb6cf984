"""Works on briefs: proposes strategies, has the words written, predicts their effect, stores them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qiance.domain import Brief, BriefState, Catalogue, Channel, EffectPredictor
from qiance.guard import Guard
from qiance.guard.gate import bank_strategies
from qiance.ledger import Ledger
from qiance.proposer.proposer import Proposer
from qiance.strategy.content import write_content
from qiance.strategy.content_ports import ContentRequest, TextEngine
from qiance.strategy.demand import DayDemand
from qiance.strategy.propose import propose
from qiance.strategy.propose_ports import Draft, WrittenText
from qiance.strategy.propose_request import Known
from qiance.strategy.retrieve import Retriever
from qiance.workspace import Snapshot
from serve.args import LlmArgs
from serve.generator.held import TERM_S, BriefLostError, HeldBrief

logger = logging.getLogger(__name__)
Progress = Callable[[float, str], None]
EngineLoader = Callable[[LlmArgs], TextEngine]
Retrieval = Callable[[Catalogue], Retriever]
# Share of a brief's progress that proposing takes before the words are written, and after.
WRITING = (0.5, 0.9)


class Writer:
    """The language model behind `propose`; templates where it is missing or fails its checks."""

    def __init__(
        self,
        engine: TextEngine | None,
        llm: LlmArgs,
        seed: int,
        progress: Progress,
        guard: Guard,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._engine, self._llm, self._seed, self._progress = engine, llm, seed, progress
        self._guard, self._cancelled = guard, cancelled

    def write(self, drafts: Sequence[Draft]) -> list[WrittenText]:
        """One text per draft, in order."""
        requests = [
            ContentRequest(
                key=d.key,
                item=d.item,
                offer=d.offer,
                channel=d.channel,
                language=d.language,
                segment=(" " if d.language == "en" else "、").join(d.segment) or "everybody",
                readers=d.readers,
                objective=d.objective.value,
            )
            for d in drafts
        ]
        written = write_content(
            requests,
            self._engine,
            self._guard,
            samples=self._llm.samples,
            seed=self._seed,
            max_seconds=self._llm.max_seconds,
            on_progress=self._progress,
            cancelled=self._cancelled,
        )
        return [WrittenText(w.creative, w.reasons, w.engine) for w in written]


class BriefWorker:
    """A plain class, wrapped by a deployment in app.py; one brief at a time.

    term_s: after which a brief whose worker ended is taken up anew; `serve.generator.held` renews it.
    proposer: see `propose`; country: whose public holidays count.
    retrieval: makes the retriever of a catalogue.
    """

    def __init__(
        self,
        snapshot_folder: Path,
        ledger: Ledger,
        predictor: EffectPredictor,
        llm: LlmArgs,
        load_engine: EngineLoader,
        contact_cost: Mapping[Channel, int],
        seed: int,
        guard: Guard,
        term_s: float = TERM_S,
        proposer: Proposer | None = None,
        country: str = "US",
        retrieval: Retrieval | None = None,
    ) -> None:
        self._holder, self._term_s = f"generator-{secrets.token_hex(8)}", term_s
        self._folder, self._ledger, self._predictor = snapshot_folder, ledger, predictor
        self._llm, self._load_engine, self._contact_cost, self._seed = llm, load_engine, contact_cost, seed
        self._guard, self._proposer, self._country = guard, proposer, country
        self._retrieval = retrieval
        self._engine: TextEngine | None = None
        self._without_engine = "" if llm.enabled else "the language model is switched off"

    def work(self) -> None:
        """Take briefs to their end, until none is left: done, or failed with the reason."""
        while (taken := self._ledger.take_brief(self._holder, self._term_s)) is not None:
            with HeldBrief(self._ledger, taken.brief.brief_id, self._holder, self._term_s) as held:
                self._take_to_its_end(taken.brief, held)

    def _take_to_its_end(self, brief: Brief, held: HeldBrief) -> None:
        try:
            message = self._propose(brief, held)
        except BriefLostError as lost:
            logger.info("%s", lost)
        except Exception as error:  # the brief must end in a clear state whatever broke
            logger.exception("brief %s failed", brief.brief_id)
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            held.end(BriefState.FAILED, reason[:500])
        else:
            held.end(BriefState.DONE, message)

    def _propose(self, brief: Brief, held: HeldBrief) -> str:
        report = held.tell
        report(0.0, "loading the catalogue and the language model")
        snapshot = Snapshot.load(self._folder)
        writer = Writer(
            self._text_engine(),
            self._llm,
            self._seed,
            _part(report, *WRITING),
            self._guard,
            lambda: held.is_lost,
        )
        notes: list[str] = []
        strategies = propose(
            brief,
            snapshot.catalogue,
            snapshot.users,
            snapshot.user_category["category_share"],
            snapshot.categories,
            self._predictor,
            writer,
            contact_cost=self._contact_cost,
            popularity=snapshot.item["units_28d"],
            known=Known(snapshot.item["stock"], DayDemand.load(self._folder), self._country),
            retriever=None if self._retrieval is None else self._retrieval(snapshot.catalogue),
            proposer=self._proposer,
            seed=self._seed,
            on_progress=_part(report, 0.0, WRITING[0]),
            on_note=notes.append,
        )
        report(WRITING[1], "keeping the strategies")
        self._ledger.open_budget(brief.brief_id, brief.budget.minor)
        self._ledger.put_strategies(strategies)
        linted = bank_strategies(self._ledger, self._guard, snapshot.catalogue, strategies)
        blocked = sum(each.result.blocked for each in linted)
        note = "".join(f"; {one}" for one in notes)
        note += f"; {self._without_engine}: templates wrote the words" if self._without_engine else ""
        note += f"; the lint blocks {blocked} of {len(linted)} texts" if blocked else ""
        return f"{len(strategies)} strategies{note}"

    def _text_engine(self) -> TextEngine | None:
        if self._engine is None and not self._without_engine:
            try:
                self._engine = self._load_engine(self._llm)
            except Exception as error:  # no weights, no memory, a broken file: the bank of templates serves
                logger.warning("the language model cannot be loaded: %s", error)
                self._without_engine = f"the language model cannot be loaded ({error})"
        return self._engine


def _part(report: Progress, low: float, high: float) -> Progress:
    return lambda fraction, message: report(low + (high - low) * min(max(fraction, 0.0), 1.0), message)
