"""Options that every sweep has."""

from __future__ import annotations

from typing import Annotated

import typer

WorkersOption = Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: one per CPU.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with the sweep in OUT, and fail where there is none.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of what is drawn and trained.")]
MlflowOption = Annotated[
    str | None, typer.Option(help="Tracking URI of MLflow; default: a SQLite file in OUT.")
]
