"""Strategies for one brief as a marketer reads them, in two languages: the page `docs/strategies.md`.

`python -m benchmarks.copying.strategies [--run runs/latest] [--models bilingual embedded] [--out FILE]` needs
a finished `qiance run`: its catalogue and users, and the effect model that serves. Every model writes for the
same strategies. Words are shown with the facts of the catalogue in their slots.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from benchmarks.harness import ROOT, log
from qiance.artifacts import EffectModel
from qiance.artifacts.word_vectors import WordVectors
from qiance.decide.predictor import FramePredictor, GridPredictor
from qiance.domain import Brief, Money, Objective, Strategy
from qiance.guard import Guard
from qiance.ledger import Ledger
from qiance.market import CONTACT_COST
from qiance.settings import Settings, load_settings
from qiance.strategy.content_ports import TextEngine
from qiance.strategy.demand import DayDemand
from qiance.strategy.propose import propose
from qiance.strategy.propose_request import Known
from qiance.strategy.propose_words import offer_words
from qiance.strategy.slots import bind, facts_for
from qiance.workspace import Snapshot, Workspace
from serve.args import LlmArgs
from serve.generator.engine import TransformersEngine
from serve.generator.worker import Writer

LANGUAGES = {"en": "English", "zh": "Chinese"}
MODELS = ("bilingual", "embedded")
N, DAYS, SEED = 10, 14, 0
MAX_SECONDS, SAMPLES = 3_600.0, 8
HEAD = """# Ten strategies for one brief

Printed by `python -m benchmarks.copying.strategies` from a finished `qiance run` on Complete Journey. The
predictions are of the run's effect model, learned in the simulated market. Figures in the words are facts of
the catalogue, put into slots after the words were written; the sentence that states an offer is an approved
frame. Where no text of a model passed every check, a template stands, and why.
"""


@dataclass(frozen=True)
class Shop:
    """What strategies are proposed from."""

    settings: Settings
    snapshot: Snapshot
    model: EffectModel
    known: Known
    predictor: FramePredictor
    guard: Guard

    @classmethod
    def open(cls, run: Path, opened: ExitStack) -> Shop:
        """The catalogue, users and serving model of a finished run; its ledger is closed with `opened`."""
        settings, workspace = load_settings(None, os.environ), Workspace(run.resolve())
        ledger = Ledger.from_settings(settings, workspace.root)
        opened.callback(ledger.close)
        snapshot = Snapshot.load(workspace.snapshot)
        model = EffectModel.load(workspace.artifact("effect-model", ledger.versions().model))
        grid = GridPredictor(
            model, snapshot.catalogue, snapshot.item, snapshot.categories, WordVectors(ledger)
        )
        return cls(
            settings,
            snapshot,
            model,
            Known(snapshot.item["stock"], DayDemand.load(workspace.snapshot), settings.briefs.country),
            FramePredictor(grid, snapshot.users, snapshot.user_category),
            Guard.load(min_margin=settings.budget.min_margin),
        )

    def brief(self) -> Brief:
        """More margin from everybody within the default budget, two weeks from the end of the log."""
        settings = self.settings
        return Brief(
            brief_id="two-weeks",
            objective=Objective.MARGIN,
            budget=Money.of(settings.budget.amount, settings.currency),
            starts=self.snapshot.as_of,
            ends=self.snapshot.as_of + timedelta(days=DAYS),
            languages=tuple(LANGUAGES),
            max_depth=settings.budget.max_depth,
            min_margin=settings.budget.min_margin,
            n=N,
        )

    def strategies(self, engine: TextEngine | None) -> list[Strategy]:
        """Those of the brief, with the words of `engine`, or of templates."""
        llm = LlmArgs(max_seconds=MAX_SECONDS, samples=SAMPLES)
        writer = Writer(engine, llm, SEED, lambda _share, text: log(f"  {text}"), self.guard)
        snapshot = self.snapshot
        return propose(
            self.brief(),
            snapshot.catalogue,
            snapshot.users,
            snapshot.user_category["category_share"],
            snapshot.categories,
            self.predictor,
            writer,
            contact_cost=CONTACT_COST,
            popularity=snapshot.item["units_28d"],
            known=self.known,
            seed=SEED,
        )


def page(shop: Shop, by_model: dict[str, list[Strategy]]) -> str:
    """Markdown of the strategies, each with the words of every model."""
    brief, (first, *_) = shop.brief(), by_model.values()
    lines = [
        HEAD,
        f"The brief: more {brief.objective.value} from everybody, {brief.budget}, "
        f"{brief.starts:%-d %B %Y} to {brief.ends:%-d %B %Y}, {', '.join(c.value for c in brief.channels)}, "
        f"English and Chinese, at most {100 * brief.max_depth:g} % off.",
        "",
    ]
    for number, strategy in enumerate(first):
        written = {
            model: same for model, found in by_model.items() for same in found if same.title == strategy.title
        }
        lines += _section(shop, number + 1, strategy, written)
    return "\n".join(lines)


def _section(shop: Shop, number: int, strategy: Strategy, written: dict[str, Strategy]) -> Iterator[str]:
    action = strategy.actions[0]
    yield f"## {number}. {strategy.title}"
    yield ""
    runs = f"{strategy.starts:%-d %b} to {strategy.ends:%-d %b}"
    who = f"{strategy.audience.describe()}, {strategy.reach:,} users"
    yield f"{strategy.kind.value}; {who}; {offer_words(action.offer)} by {action.channel.value}; {runs}."
    yield ""
    words = _about_words(strategy)
    yield from (f"- {reason}" for reason in strategy.reasons if reason not in words)
    yield ""
    yield "| language | written by | headline | body | button |"
    yield "| --- | --- | --- | --- | --- |"
    for place in range(len(strategy.actions)):
        yield from (_row(shop, other, place, model) for model, other in written.items())
    yield ""
    for model, one in written.items():
        yield from (f"`{model}`: {reason}." for reason in _about_words(one) if reason.startswith("template"))
    yield ""


def _about_words(strategy: Strategy) -> list[str]:
    return [
        r
        for r in strategy.reasons
        if r.startswith(("template", "written by", "the sentence", "the same words"))
    ]


def _row(shop: Shop, strategy: Strategy, place: int, model: str) -> str:
    action = strategy.actions[place]
    creative = action.creative
    if creative is None or action.item_id is None:
        raise ValueError(f"{action.action_id}: has no words or no item")
    item, currency = shop.snapshot.catalogue[action.item_id], shop.settings.currency
    shown = bind(creative, facts_for(action, item, strategy.ends, currency), creative.language)
    by = model if creative.source == "llm" else "template"
    texts = (shown.headline, shown.body, shown.call_to_action)
    return (
        f"| {LANGUAGES[creative.language]} | {by} | " + " | ".join(t.replace("|", "¦") for t in texts) + " |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.copying.strategies", description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "latest", help="a finished run")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="as llm.model takes them")
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "strategies.md")
    args = parser.parse_args(argv)
    by_model = {}
    with ExitStack() as opened:
        shop = Shop.open(args.run, opened)
        for model in args.models:
            log(model)
            engine = TransformersEngine.load(model, args.cache_dir, threads=os.cpu_count() or 1)
            by_model[model] = shop.strategies(engine)
    args.out.write_text(page(shop, by_model) + "\n", encoding="utf-8")
    log(f"{args.out}")


if __name__ == "__main__":
    main()
