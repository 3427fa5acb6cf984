"""Writes `report.json` and `report.html`: one page without script, network or outside file."""

from __future__ import annotations

import json
import os
import secrets
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qiance.report import figures, model_views, summary, views
from qiance.report.model import RunReport
from qiance.report.parts import finite

TEMPLATES = Path(__file__).parent / "templates"


def write_report(report: RunReport, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into `folder`; the paths, JSON first.

    Each file is written under a temporary name and renamed, so that a reader never sees half of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = folder / "report.json"
    page = folder / "report.html"
    replace_text(document, to_json(report))
    replace_text(page, render(report))
    return document, page


def to_json(report: RunReport) -> str:
    """The document as strict JSON: NaN and infinity are null."""
    return json.dumps(finite(report.model_dump(mode="json")), ensure_ascii=False, indent=2, allow_nan=False)


def render(report: RunReport) -> str:
    """The page; every word that came from data is escaped."""
    template = page_environment(report.currency).get_template("report.html.j2")
    unit = figures.Unit(report.unit, report.currency)
    return template.render(
        report=report,
        unit=unit,
        lead=summary.lead(report),
        headlines=summary.headlines(report),
        verdict=summary.verdict(report.policy, unit),
        verdict_tone=views.forecast_tone(report.policy),
        split=views.split_sentence(report.policy),
        effect_chart=views.effect_chart(report),
        regret_chart=views.regret_chart(report),
        budget_chart=views.budget_chart(report),
        price_chart=views.price_chart(report),
        rl_chart=views.rl_chart(report),
        stage_chart=views.stage_chart(report),
        offline_chart=views.offline_chart(report),
        uplift_chart=views.uplift_chart(report),
        arm_rate=partial(views.arm_rate, report),
        cards=views.cards(report),
        changes=model_views.changes(report),
        label_views=partial(model_views.label_views, currency=report.currency),
    )


@cache
def page_environment(currency: str) -> Environment:
    """Templates with the report's filters."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "money": partial(figures.money, currency=currency),
        "money_each": partial(figures.money_each, currency=currency),
        "percent": figures.percent,
        "number": figures.number,
        "score": figures.score,
        "seconds": figures.seconds,
        "milliseconds": figures.milliseconds,
        "words": figures.words,
    }
    environment.filters.update(filters)
    return environment


def replace_text(path: Path, text: str) -> None:
    """Write under a temporary name and rename, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as stream:
            # Lone surrogates from broken text become "?", since UTF-8 has no place for them.
            stream.write(text.encode("utf-8", "replace"))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
