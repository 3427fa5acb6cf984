"""`qiance train proposer`: a generative model of strategies, from those that were tried."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def proposer(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Log of strategies with their outcomes: CSV, JSON lines or Parquet; see docs/proposer.md.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its figures.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most; it stops when nothing improves.")
    ] = None,
    seed: Annotated[int, typer.Option(help="With equal data, the same seed gives the same model.")] = 0,
) -> None:
    """Learn from strategies that were tried on groups of users what works for which segment.

    Writes into OUT: the model with its card, and metrics.json. `qiance propose` uses the model.
    """
    from dataclasses import replace

    from qiance.cli.stages import Stages

    console = Console()
    stages = Stages(console)
    with stages.stage(f"reading {data.name}") as stage:
        from training.propose.log import read_log

        log = read_log(data)
        stage.note(f"{len(log):,} trials in {len(log.segments):,} segments, {int(log.users.sum()):,} users")
    with stages.stage("training") as stage:
        from training.propose.fit import ProposerSettings, VaeSettings
        from training.propose.train import train_proposer

        vae = VaeSettings(seed=seed)
        vae = vae if epochs is None else replace(vae, epochs=epochs)
        trained = train_proposer(log, out, ProposerSettings(vae), stage.tell)
    explained = ", ".join(
        f"{name.removeprefix('r2_')} {value:.0%}"
        for name, value in trained.metrics.items()
        if name.startswith("r2_")
    )
    console.print(f"Explained of what trials left out brought, noise included: {explained}", highlight=False)
    console.print(f"Model and figures: [bold]{out}[/]", highlight=False)
