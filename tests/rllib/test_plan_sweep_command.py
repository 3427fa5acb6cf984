"""A whole sweep of policies by the command, killed and resumed; it starts a Ray of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from qiance.artifacts import load_manifest
from rllib.plan_evaluate import returns_of
from rllib.plan_keep import HELD_OUT_SEED
from rllib.policies import load_policy
from rllib.tasks import PromotionTask

ROOT = Path(__file__).resolve().parents[2]
SPACE = {
    "ppo": {
        "learning_rate": {"kind": "loguniform", "low": 0.0005, "high": 0.02},
        "hidden": {"kind": "choice", "values": [[64, 64], [16]]},
    },
    "sac": {"updates": {"kind": "int", "low": 1, "high": 2}},
}
pytestmark = pytest.mark.slow


def words(folder: Path, trials: int) -> list[str]:
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    return [
        "train", "planning-sweep", "--environment", "promotion", "--out", str(folder / "out"),
        "--space", str(space), "--trials", str(trials), "--iterations", "3", "--envs", "8",
    ]  # fmt: skip


def over(out: Path) -> set[str]:
    """Trials that are over, read past the sweep itself."""
    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True, timeout=30) as database:
            query = (
                "select studies.study_name, trials.number from trials join studies using (study_id) "
                "where state = 'COMPLETE'"
            )
            return {f"{name}-{number:02d}" for name, number in database.execute(query)}
    except sqlite3.OperationalError:
        return set()


def run_until_killed(command: list[str], out: Path, least: int) -> set[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "qiance", *command], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as driver:  # fmt: skip
        deadline = time.monotonic() + 240
        while len(over(out)) < least:
            assert driver.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, "it did not get that far"
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    return over(out)


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "trials.csv").open(encoding="utf-8") as stream:
        return {row["trial"]: row for row in csv.DictReader(stream)}


def test_killed_and_resumed_no_trial_is_lost_and_the_best_is_judged_anew(tmp_path: Path) -> None:
    out, runner = tmp_path / "out", CliRunner()
    before = run_until_killed(words(tmp_path, 4), out, 2)
    assert 2 <= len(before) < 4
    curves = {name: (out / "trials" / name / "curve.json").read_text() for name in before}

    from qiance.cli.main import app

    done = runner.invoke(app, [*words(tmp_path, 4), "--resume"])
    assert done.exit_code == 0, done.output
    rows = table(out)
    assert len(rows) == 4
    assert {row["state"] for row in rows.values()} <= {"done", "stopped"}
    for name, curve in curves.items():  # what was over is not trained again
        assert (out / "trials" / name / "curve.json").read_text() == curve
    check_winner(out, rows)
    again = runner.invoke(app, words(tmp_path, 4))
    assert again.exit_code == 0, again.output
    assert "4 of 4 trials were there before" in again.output
    assert len(list(out.glob("planning-policy-*"))) == 1, "the same winner is not written twice"
    more = runner.invoke(app, words(tmp_path, 5))
    assert more.exit_code == 0, more.output
    assert len(table(out)) == 5, "more may be asked for"
    check_winner(out, table(out))


def check_winner(out: Path, rows: dict[str, dict[str, str]]) -> None:
    summary = json.loads((out / "sweep.json").read_text())
    best = max(rows, key=lambda name: float(rows[name]["value"]))
    assert summary["winner"] == best
    kept = summary["kept"]
    task, settings = PromotionTask(), summary["settings"]
    policy = load_policy(out / kept["policy"], task)
    env = task.make(settings["episodes"])
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + settings["rounds"])
    returns = np.concatenate([returns_of(env, policy, seed) for seed in seeds])
    assert returns.mean() == pytest.approx(kept["returns"][kept["chosen"]]["value"])
    assert (kept["chosen"] == "learned") == (kept["gain"]["low"] > 0)
    manifest = load_manifest(out / kept["policy"])
    assert manifest.metrics["gain_low"] == kept["gain"]["low"]
    assert best in (out / "sweep.html").read_text()
