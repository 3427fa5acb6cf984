"""`qiance creatives`: the bank as a person sees and changes it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from typer.testing import CliRunner

from qiance.cli.main import app
from qiance.domain import Action, Audience, Channel, Creative, Offer, Strategy, StrategyKind
from qiance.ledger import Ledger
from qiance.settings import load_settings

RUNNER = CliRunner()
START = datetime(2026, 9, 1, tzinfo=UTC)


def strategy(name: str, body: str) -> Strategy:
    words = Creative(Channel.EMAIL, "en", "A cup for today", body, "Shop now", "person")
    action = Action(f"{name}-a", name, StrategyKind.AD, None, Offer(), words, Channel.EMAIL, 1)
    span = START, START + timedelta(14)
    return Strategy(name, "b", StrategyKind.AD, "An ad", Audience("everybody"), (action,), *span)


def test_words_go_through_their_life(tmp_path: Path) -> None:
    ledger = Ledger.from_settings(load_settings(), tmp_path)
    good, bad = strategy("s1", "Coffee is ready."), strategy("s2", "The best coffee in town.")
    ledger.put_strategies([good, bad])
    place = ["--workspace", str(tmp_path)]

    linted = RUNNER.invoke(app, ["creatives", "lint", "--by", "ann", *place])
    assert linted.exit_code == 1
    assert "2 creatives, 1 blocked" in linted.output
    assert "en-superlative" in linted.output
    listed = RUNNER.invoke(app, ["creatives", "list", "--json", *place])
    rows = {row["body"]: row for row in map(json.loads, listed.output.splitlines())}
    assert {row["state"] for row in rows.values()} == {"draft"}
    assert rows["The best coffee in town."]["findings"][0]["rule"] == "en-superlative"

    names = {body: row["creative_id"] for body, row in rows.items()}
    assert (
        "is approved"
        in RUNNER.invoke(
            app, ["creatives", "approve", names["Coffee is ready."], "--by", "ann", *place]
        ).output
    )
    refused = RUNNER.invoke(
        app, ["creatives", "approve", names["The best coffee in town."], "--by", "ann", *place]
    )
    assert "is blocked: en-superlative" in str(refused.exception)
    shown = RUNNER.invoke(app, ["creatives", "list", "--state", "approved", *place])
    assert "1 creatives" in shown.output
    (row,) = map(
        json.loads,
        RUNNER.invoke(
            app, ["creatives", "list", "--state", "approved", "--json", *place]
        ).output.splitlines(),
    )
    assert (row["body"], row["by"]) == ("Coffee is ready.", "ann")

    blocked = RUNNER.invoke(app, ["strategies", "approve", "s2", "--by", "ann", *place])
    assert "the words of 's2-a' are blocked" in str(blocked.exception)
    for step in ("approve", "start"):
        assert RUNNER.invoke(app, ["strategies", step, "s1", "--by", "ann", *place]).exit_code == 0
    retired = RUNNER.invoke(app, ["creatives", "retire", names["Coffee is ready."], "--by", "ann", *place])
    assert "is retired" in retired.output
    events = {line.event for line in ledger.audit_lines()}
    assert {"creative.proposed", "creative.approved", "creative.retired"} <= events
    ledger.close()


def test_words_about_an_item_need_the_catalogue(tmp_path: Path) -> None:
    ledger = Ledger.from_settings(load_settings(), tmp_path)
    about = strategy("s1", "Coffee is ready.")
    ledger.put_strategies([replace(about, actions=(replace(about.actions[0], item_id="i1"),))])
    ledger.close()
    refused = RUNNER.invoke(app, ["strategies", "approve", "s1", "--by", "ann", "--workspace", str(tmp_path)])
    assert "item 'i1' is not in the catalogue" in str(refused.exception)
