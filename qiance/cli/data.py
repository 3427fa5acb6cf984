"""`qiance data`: look at a file before it is taken in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Check the shop's own files before they are taken in.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Check the shop's own files before they are taken in."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet file, each may be gzipped.")],
    mapping: Annotated[
        Path, typer.Option("--mapping", "-m", help="YAML that names the columns; docs/data.md has the keys.")
    ],
    quarantine: Annotated[
        Path | None, typer.Option(help="Folder for a CSV of every bad value: row, field, value, reason.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check every row of FILE against a mapping; nothing is taken in.

    Exit code 0: every row is sound. 1: some rows would be quarantined. 2: the file or the mapping is
    refused, and the message says why and what to do.
    """
    from rich.console import Console

    from qiance.data import DataError, MappingError, check_file, load_mapping, render_report

    try:
        report = check_file(file, load_mapping(mapping), quarantine=quarantine)
    except (DataError, MappingError) as error:
        if as_json:
            typer.echo(json.dumps({"refused": str(error)}, ensure_ascii=False))
        else:
            typer.echo(f"refused: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=1))
    else:
        render_report(report, Console())
    raise typer.Exit(0 if report.clean else 1)
