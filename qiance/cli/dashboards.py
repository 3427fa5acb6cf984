"""`qiance dashboards`: show the Grafana dashboard, or publish it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qiance.cli.options import ConfigOption
from qiance.observe import GrafanaError, dashboard_json, decisions_dashboard, push_dashboard
from qiance.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="The Grafana dashboard of the decision loop.")


@app.command()
def show(
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of standard output.")] = None,
) -> None:
    """Print the dashboard as JSON, ready for Grafana's import page or a provisioning file."""
    text = dashboard_json(decisions_dashboard())
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        _fail(f"--out: {out}: {error.strerror}; name another file")
    typer.echo(f"wrote {out}", err=True)


@app.command()
def push(
    url: Annotated[
        str | None, typer.Option(help="Where Grafana's pages are, with its path if any; else grafana.url.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Service account token, Editor role; else grafana.token. Prefer QIANCE__GRAFANA__TOKEN: "
            "other users of the machine can read command lines.",
        ),
    ] = None,
    config: ConfigOption = None,
    folder: Annotated[str | None, typer.Option(help="Title of a folder; made if missing.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; call nobody.")] = False,
) -> None:
    """Publish the dashboard; it replaces an earlier one of the same uid, whose versions Grafana keeps.

    Example: QIANCE__GRAFANA__TOKEN=... qiance dashboards push --url https://grafana.example.org
    """
    grafana = load_settings(config, os.environ).grafana
    url = url or grafana.url
    token = token or (grafana.token.get_secret_value() if grafana.token else "")
    if not url:
        _fail("grafana.url: where is Grafana? pass --url or set QIANCE__GRAFANA__URL")
    dashboard = decisions_dashboard()
    if dry_run:
        where = f"folder {folder!r}" if folder else "the top level"
        panels = sum(panel["type"] != "row" for panel in dashboard["panels"])
        typer.echo(
            f"would publish {dashboard['title']!r} (uid {dashboard['uid']}, {panels} panels) "
            f"to {where} of {url}"
        )
        return
    try:
        published = push_dashboard(url, token, dashboard, folder)
    except GrafanaError as error:
        _fail(str(error))
    typer.echo(f"published {published.uid}, version {published.version}: {published.url}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
