"""`qiance train writer`: the language model tuned to write what is clicked and what passes the checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from training.writer.tune import Watched


def writer(
    items: Annotated[
        Path,
        typer.Option(
            "--items",
            help="Products to practise on: CSV, JSON lines or Parquet with item_id and title (title_zh), "
            "such as data/items.parquet of a run.",
        ),
    ],
    tests: Annotated[
        Path, typer.Option("--tests", help="Headline tests, as for `qiance train copy`; see docs/copy.md.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter and its figures.")],
    model: Annotated[
        str, typer.Option(help="Model to tune: embedded, bilingual, a local folder, or a Hugging Face id.")
    ] = "embedded",
    language: Annotated[str, typer.Option(help="en or zh: of the texts and of the tests.")] = "en",
    products: Annotated[int, typer.Option(min=1, help="Most products to practise on.")] = 200,
    samples: Annotated[int, typer.Option(min=2, help="Answers per product and round.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Of preference tuning, at most.")] = 2,
    encoder: Annotated[
        str, typer.Option(help="Text encoder of the reward: embedded, a local folder, or a Hugging Face id.")
    ] = "embedded",
    cache_dir: Annotated[Path, typer.Option(help="Folder for converted weights.")] = Path(".cache"),
    rules: Annotated[Path | None, typer.Option(help="The shop's own rules of the text lint (YAML).")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, splits and training.")] = 0,
) -> None:
    """Tune the language model on what was clicked in headline tests, while a second judge watches.

    Writes into OUT: the adapter with its card, and metrics.json. `llm.adapter` in the settings takes the
    adapter. Reckon with an hour or two for 200 products on two cores; a GPU is used where there is one.
    """
    from qiance.cli.stages import Stages

    if language not in ("en", "zh"):
        raise typer.BadParameter(f"{language!r} is not en or zh", param_hint="--language")
    console = Console()
    stages = Stages(console)
    with stages.stage(f"reading {items.name} and {tests.name}") as stage:
        from training.copy.headlines import read_tests
        from training.writer.products import read_products

        requests, known = read_products(items, language, products), read_tests(tests)
        stage.note(f"{len(requests):,} products, {known.tests:,} tests")
    with stages.stage("fitting the judges") as stage:
        from training.copy.encode import load_text_encoder
        from training.writer.reward import fit_judges

        judges = fit_judges(known, load_text_encoder(encoder), seed, tell=stage.tell)
        for name, share in judges.accuracy.items():
            stage.note(f"{name}: names the better text of {share:.1%} of the other one's pairs")
    address = os.environ.get("RAY_ADDRESS")
    with stages.stage("tuning") as stage:
        from qiance.guard import Guard
        from training.preprocess.streaming import ray_for
        from training.writer.settings import WriterSettings
        from training.writer.train import train_writer

        cpus = 1 if address else os.cpu_count() or 1
        settings = WriterSettings(samples=samples, rounds=rounds, cpus=cpus, seed=seed)
        make = _engines(model, cache_dir, language)
        with ray_for(None, address):
            trained = train_writer(
                requests, judges, make, out, known.fingerprint, Guard.load(rules), settings, stage.tell
            )
    console.print(_table(trained.tuned.history))
    console.print(f"Ended: {trained.tuned.ended}. What the judges expect is simulated.", highlight=False)
    if trained.artifact is None:
        before, after = trained.tuned.history[0].pass_share, trained.tuned.last.pass_share
        console.print(
            f"Not kept: {after:.0%} of its answers pass the checks, and {before:.0%} of the untuned model's. "
            "Practise on more products, or draw more samples.",
            highlight=False,
        )
        raise typer.Exit(1)
    console.print(f"Adapter and figures: [bold]{out}[/]", highlight=False)
    console.print(f"To write with it: llm.adapter={trained.artifact.path}", highlight=False)


def _engines(model: str, cache_dir: Path, language: str) -> Any:
    from qiance.artifacts.writer import WriterAdapter
    from serve.generator.engine import TransformersEngine
    from serve.generator.weights import resolve

    base, threads = resolve(model, cache_dir).name, os.cpu_count() or 1

    def make(adapter: Path | None) -> TransformersEngine:
        own = None if adapter is None else WriterAdapter(adapter, base, frozenset({language}), "in tuning")
        return TransformersEngine.load(model, cache_dir, threads, adapter=own)

    return make


def _table(history: Sequence[Watched]) -> Table:
    table = Table(title="on products that nothing was learned from")
    for name in ("stage", "passed", "reward", "judge", "judge's gain", "from the imitation", "kept"):
        table.add_column(name)
    for one in history:
        gain = "" if one.gain is None else f"{one.gain:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
        away = "" if one.kl is None else f"{one.kl:.1f} nats"
        table.add_row(
            one.stage, f"{one.pass_share:.0%}", f"{one.reward:+.3f}", f"{one.judge:+.3f}", gain, away,
            "yes" if one.kept else "no",
        )  # fmt: skip
    return table
