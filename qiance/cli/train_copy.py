"""`qiance train copy`: a reward model of texts, from tests that showed them at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


def copy(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Headline tests: CSV, JSON lines or Parquet with test_id, text, impressions, clicks, or the "
            "Upworthy archive as published; see docs/copy.md.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its figures.")],
    encoder: Annotated[
        str, typer.Option(help="Text encoder: embedded, a local folder, or a Hugging Face id.")
    ] = "embedded",
    seed: Annotated[int, typer.Option(help="With equal data, the same seed gives the same model.")] = 0,
) -> None:
    """Learn from headline tests which of two texts gets the higher click rate.

    A model of the earlier stories is judged on the later ones; then one is fitted on all. Writes into OUT:
    the model with its card, and metrics.json. `qiance copy rank` uses the model.
    """
    from qiance.cli.stages import Stages

    console = Console()
    stages = Stages(console)
    with stages.stage(f"reading {data.name}") as stage:
        from training.copy.headlines import read_tests

        tests = read_tests(data)
        stage.note(f"{tests.tests:,} tests, {len(tests):,} texts")
        for reason, count in tests.dropped.items():
            stage.note(f"{count:,} rows left out: {reason}")
    with stages.stage("training") as stage:
        from training.copy.encode import load_text_encoder
        from training.copy.fit import CopySettings
        from training.copy.train import train_copy

        trained = train_copy(tests, out, load_text_encoder(encoder), CopySettings(seed=seed), stage.tell)
    console.print(_summary(trained.metrics), highlight=False)
    console.print(f"Model and figures: [bold]{out}[/]", highlight=False)


def _summary(metrics: Mapping[str, Any]) -> str:
    alone, clear = metrics["pair_accuracy_alone"]["shorter"], metrics.get("clear_pair_accuracy")
    interval = f"95 % interval {metrics['pair_low']:.1%} to {metrics['pair_high']:.1%}"
    return (
        f"On {metrics['tests']:,.0f} later tests the better text of a pair was named in "
        f"{metrics['pair_accuracy']:.1%} of {metrics['pairs']:,.0f} pairs ({interval}); "
        f"by the shorter text {alone:.1%}\n"
        + ("" if clear is None else f"Where the test was clear: {clear:.1%}; ")
        + f"ECE {metrics['ece']:.4f} (perfect: below {metrics['ece_floor']:.4f})"
    )
