"""Whole sweeps on Ray: killed and resumed, stopped early, written out, and taken up by `train effect`."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from response_cases import Log, write_log
from tune_cases import SPACE, small_sweep, written
from typer.testing import CliRunner

from qiance.cli.main import app
from training.preprocess.streaming import start_ray
from training.tune.run import run_sweep

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = {"members": 2, "network": {"epochs": 4, "heads": 2}, "trees": {"rounds": 100}}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_cpu() -> Iterator[None]:
    """A cluster for the sweeps in this process; what is killed has one of its own."""
    import ray

    folder = tempfile.mkdtemp(prefix="qiance-")
    ray.shutdown()
    options = {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False, "_temp_dir": folder}
    start_ray(options, "or run it alone")
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def words(log: Log, folder: Path, out: Path, trials: int) -> list[str]:
    space, config = written(folder, SPACE), written(folder, CONFIG, "given.yaml")
    return [
        "tune", "--data", str(log.data), "--mapping", str(log.mapping), "--out", str(out),
        "--space", str(space), "--config", str(config), "--folds", "2", "--trials", str(trials),
        "--workers", "1",
    ]  # fmt: skip


def finished(out: Path) -> int:
    """Trials that are over, read past the sweep itself."""
    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True, timeout=30) as database:
            query = "select count(*) from trials where state = 'COMPLETE'"
            return int(database.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "trials.csv").open(encoding="utf-8") as stream:
        return {row["trial"]: row for row in csv.DictReader(stream)}


def judged(out: Path) -> dict[str, tuple[Any, ...]]:
    """By trial: parameters, state, value and curve; not the times."""
    rows = {}
    for name, row in table(out).items():
        curve = json.loads((out / "trials" / name / "curve.json").read_text())
        kept = {key: value for key, value in row.items() if key != "seconds"}
        rows[name] = (kept, [(step["step"], step["value"], step["last"]) for step in curve])
    return rows


def run_until_killed(command: list[str], out: Path, over: int) -> None:
    """SIGKILL to the driver once `over` trials are over."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "qiance", *command], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as driver:  # fmt: skip
        deadline = time.monotonic() + 240
        while finished(out) < over:
            assert driver.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline, "it did not get that far"
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (out / "best.yaml").exists()


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    log, runner = write_log(tmp_path, n=600), CliRunner()
    killed, whole = words(log, tmp_path, tmp_path / "killed", 6), words(log, tmp_path, tmp_path / "whole", 6)
    run_until_killed(killed, tmp_path / "killed", over=2)
    curves = {
        path.parent.name: path.read_text() for path in (tmp_path / "killed").glob("trials/*/curve.json")
    }
    over = finished(tmp_path / "killed")
    assert 2 <= over < 6
    done = runner.invoke(app, [*killed, "--resume"])
    assert done.exit_code == 0, done.output
    assert runner.invoke(app, whole).exit_code == 0
    assert judged(tmp_path / "killed") == judged(tmp_path / "whole")
    assert len(table(tmp_path / "killed")) == 6
    for name, before in curves.items():  # nothing was trained twice
        after = json.loads((tmp_path / "killed" / "trials" / name / "curve.json").read_text())
        assert after[: len(json.loads(before))] == json.loads(before)
    assert (tmp_path / "killed" / "best.yaml").read_text() == (tmp_path / "whole" / "best.yaml").read_text()
    check_results(log, tmp_path, tmp_path / "killed")
    again = runner.invoke(app, [*killed[:-3], "8", "--workers", "1"])
    assert again.exit_code == 0, again.output
    assert "6 of 8 trials were there before" in again.output
    assert len(table(tmp_path / "killed")) == 8, "more may be asked for"
    other = runner.invoke(app, [*killed, "--seed", "1"])
    assert "holds a sweep over something else: seed was 0, is 1" in str(other.exception)


def check_results(log: Log, folder: Path, out: Path) -> None:
    from mlflow.tracking import MlflowClient

    best = yaml.safe_load((out / "best.yaml").read_text())
    assert best["members"] == 2
    assert best["trees"]["rounds"] == 100
    page = (out / "sweep.html").read_text()
    assert all(name in page for name in (*table(out), "learning_rate", "Best log_loss so far"))
    assert not list(out.glob("trials/*/state.pt")), "what is over needs no state"
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qiance-tune").experiment_id])
    children = {run.data.tags["qiance.trial"]: run for run in runs if "qiance.trial" in run.data.tags}
    assert set(children) == set(table(out))
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in children.values()}
    assert parent in {run.info.run_id for run in runs}
    kept = {one.path for one in client.list_artifacts(parent)}
    assert kept == {"sweep.html", "trials.csv", "best.yaml", "sweep.json"}
    for name in kept:
        stored = Path(client.download_artifacts(parent, name, str(folder)))
        assert stored.read_bytes() == (out / name).read_bytes(), "as the last command left it"
    for name, row in table(out).items():
        curve = client.get_metric_history(children[name].info.run_id, "history/best")
        assert len(curve) == int(row["steps"])
    model, configured = folder / "model", ["--config", str(out / "best.yaml"), "--folds", "2"]
    train = ["train", "effect", "--data", str(log.data), "--mapping", str(log.mapping), "--out", str(model)]
    done = CliRunner().invoke(app, [*train, *configured])
    assert done.exit_code == 0, done.output
    settings = json.loads((model / "metrics.json").read_text())["settings"]
    assert settings["members"] == 2
    for section in ("network", "trees"):
        for name, value in best[section].items():
            kept = settings[section][name]
            assert kept == ([value] if isinstance(kept, list) and not isinstance(value, list) else value)
    client = MlflowClient(f"sqlite:///{model / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("qiance-response-model").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "history/network_1/valid_loss")) >= 1
    assert len(client.get_metric_history(run.info.run_id, "history/fold/log_loss")) == 2
    assert float(run.data.params["network.learning_rate"]) == best["network"]["learning_rate"]


def test_a_configuration_that_cannot_learn_is_stopped_early(tmp_path: Path) -> None:
    space = {"network": {"learning_rate": {"kind": "choice", "values": [0.003, 1e-6]}}}
    config = {"network": {"epochs": 10, "heads": 2}}
    told = list[tuple[float, str]]()
    sweep = small_sweep(tmp_path, space, config, trials=5, workers=1, seed=1)
    result = run_sweep(sweep, tmp_path / "out", tell=lambda share, text: told.append((share, text)))
    rates = {one.name: one.parameters["learning_rate"] for one in result.trials}
    bad = [one for one in result.trials if one.parameters["learning_rate"] == 1e-6]
    assert bad, rates
    assert all(one.state == "stopped" and one.steps == 3 for one in bad), "at the first rung"
    assert result.best["network"].parameters["learning_rate"] == 0.003
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert any("running" in text and "log_loss" in text for _, text in told)
