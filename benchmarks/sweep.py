"""A sweep of the response model, killed halfway and resumed, against the full grid.

`qiance tune` with 16 trials and early stopping on a made-up response log. The driver gets SIGKILL when half
of the trials are over, and the same command goes on. `cluster_efficiency` is the time inside training steps ÷
(time × cores) of both processes' steady parts: from when every core has a trial to when there are fewer
trials than cores. The grid is every combination of some usual values, each trained to its end.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Args, emit, log, parse
from benchmarks.sweep_grid import FOLDS, GRID, Trained, best_of, retrain, run_grid

MAPPING = """kind: responses
name: made-up
columns: {unit_id: user}
features:
  numeric: [visits, basket, recency]
  categorical: [segment, category, channel, device]
labels: {conversion: bought}
"""
HEADER = ("user", "segment", "category", "channel", "device", "visits", "basket", "recency", "bought")
PATIENCE_S = 1_500.0


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the result."""
    args = parse(argv, "A sweep that is killed and resumed, against the full grid.")
    with tempfile.TemporaryDirectory(prefix="qiance-sweep-") as folder:
        measure(args, Path(folder))


def measure(args: Args, folder: Path) -> None:
    """The sweep, its kill and its end; then the grid on the same rows and folds."""
    rows = args.pick(smoke=600, quick=4_000, full=12_000)
    trials = args.pick(smoke=4, quick=16, full=16)
    cores = os.cpu_count() or 1
    write_log(folder, rows, args.seed)
    out, command = folder / "sweep", _command(folder, folder / "sweep", trials, args)
    log(f"sweep of {trials} trials over {rows:,} rows; SIGKILL at half")
    began = time.time()
    killed = run_until(command, out, trials // 2)
    before = snapshot(out)
    again = time.time()
    subprocess.run([*command, "--resume"], cwd=ROOT, stdout=sys.stderr, check=True)
    after = snapshot(out)
    sweep = {model: _sweep_of(after, model) for model in GRID}
    log("the grid")
    with ProcessPoolExecutor(args.pick(smoke=1, quick=cores, full=cores), get_context("spawn")) as pool:
        grid = run_grid(folder, args, pool)
        log("both winners with other seeds")
        seeds = [args.seed + 1 + place for place in range(args.pick(smoke=2, quick=3, full=5))]
        winners = {"sweep": _winners(out), "grid": {model: best_of(found) for model, found in grid.items()}}
        anew = {name: retrain(folder, one, seeds, pool, args.seed) for name, one in winners.items()}
    gaps = {
        model: statistics.mean(anew["sweep"][model]) - statistics.mean(anew["grid"][model]) for model in GRID
    }
    luck = {model: statistics.stdev(anew["grid"][model]) for model in GRID}
    work = sum(one.cpu for one in sweep.values())
    grid_work = sum(one.cpu for found in grid.values() for one in found.values())
    same = all(gaps[model] <= luck[model] for model in GRID)
    busy = steady([_curves(before), _curves(after)], [(began, killed), (again, time.time())], cores)
    figures = {
        "cluster_efficiency": busy["share"] if busy else None,
        "cluster_efficiency_cpu": busy["cpu"] if busy else None,
        "trials_lost": lost(before, after, trials),
        "steps_trained_twice": trained_twice(before, after),
        "work_vs_grid": work / grid_work if same else None,
        "share_of_grid_work": work / grid_work,
        "gap_with_other_seeds": gaps,
        "best": {model: one.value for model, one in sweep.items()},
        "grid_best": {model: min(one.value for one in found.values()) for model, found in grid.items()},
    }
    states = [row["state"] for row in after.values()]
    protocol = {
        "rows": rows,
        "trials": trials,
        "over_when_killed": sum(row["state"] != "running" for row in before.values()),
        "stopped_early": states.count("stopped"),
        "folds": FOLDS,
        "grid_trials": {model: len(found) for model, found in grid.items()},
        "work": "processor seconds inside training steps",
        "work_s": work,
        "grid_work_s": grid_work,
        "steps": {model: one.steps for model, one in sweep.items()},
        "grid_steps": {model: sum(one.steps for one in found.values()) for model, found in grid.items()},
        "same_value_within": luck,
        "steady_s": busy["window_s"] if busy else None,
        "seeds": len(seeds),
        "note": "same value: both winners are trained again with other seeds, as the best of many is lucky; "
        "the sweep's mean is not worse by more than the standard deviation of one training of the grid's. "
        "work_vs_grid is none where the sweep did not come that near",
    }
    emit("sweep", args, figures, {}, protocol)


def write_log(folder: Path, rows: int, seed: int) -> None:
    """Purchases that hang on segment × category, on visits and recency, and a little on the rest."""
    random = np.random.default_rng(seed)
    segment, category = random.integers(0, 8, rows), random.integers(0, 20, rows)
    channel, device = random.integers(0, 4, rows), random.integers(0, 3, rows)
    visits, basket = random.poisson(3, rows), random.lognormal(3, 0.6, rows)
    recency = random.exponential(20, rows)
    taste = random.normal(size=(8, 20))
    score = -1.2 + 0.8 * taste[segment, category] + 0.25 * (visits - 3) - 0.02 * (recency - 20)
    score += 0.4 * (channel == 1) * (device == 2) + 0.3 * np.log(basket / 20)
    bought = (random.random(rows) < 1 / (1 + np.exp(-score))).astype(int)
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for k in range(rows):
            codes = (f"s{segment[k]}", f"c{category[k]}", f"n{channel[k]}", f"d{device[k]}")
            numbers = (visits[k], f"{basket[k]:.2f}", f"{recency[k]:.1f}")
            writer.writerow([f"u{k // 2}", *codes, *numbers, bought[k]])
    (folder / "map.yaml").write_text(MAPPING, encoding="utf-8")


def _command(folder: Path, out: Path, trials: int, args: Args) -> list[str]:
    options = {
        "--data": folder / "log.csv",
        "--mapping": folder / "map.yaml",
        "--out": out,
        "--trials": trials,
        "--folds": FOLDS,
        "--seed": args.seed,
    }
    words = [str(word) for pair in options.items() for word in pair]
    return [sys.executable, "-m", "qiance", "tune", *words]


def run_until(command: Sequence[str], out: Path, over: int) -> float:
    """SIGKILL to the driver once `over` trials are over; when that was."""
    deadline = time.monotonic() + PATIENCE_S
    with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as driver:
        while _over(out) < over:
            if driver.poll() is not None or time.monotonic() > deadline:
                driver.kill()
                raise RuntimeError(f"the sweep did not come to {over} trials before it ended")
            time.sleep(0.2)
        driver.send_signal(signal.SIGKILL)
    log("killed")
    return time.time()


def _over(out: Path) -> int:
    return sum(row["state"] == "COMPLETE" for row in _studied(out))


def _studied(out: Path) -> list[dict[str, Any]]:
    """Trials as the sweep's database has them, read past the sweep."""
    query = """select study_name, number, state, value from trials natural join studies
        left join trial_values on trial_values.trial_id = trials.trial_id where state != 'WAITING'"""
    try:
        with sqlite3.connect(f"file:{out / 'study.db'}?mode=ro", uri=True, timeout=30) as database:
            found = database.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    return [dict(zip(("model", "number", "state", "value"), row, strict=True)) for row in found]


def snapshot(out: Path) -> dict[str, dict[str, Any]]:
    """By trial: model, state (running, done, stopped), value, and its curve as on disk."""
    found = {}
    for row in _studied(out):
        name = f"{row['model']}-{row['number']:02d}"
        path = out / "trials" / name / "curve.json"
        curve = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        over = "done" if curve and curve[-1]["last"] else "stopped"
        state = over if row["state"] == "COMPLETE" else "running" if row["state"] == "RUNNING" else "failed"
        found[name] = {"model": row["model"], "state": state, "value": row["value"], "curve": curve}
    return found


def lost(before: Mapping[str, Any], after: Mapping[str, Any], trials: int) -> int:
    """Finished trials that are not there or not as they were, and trials that are missing at the end."""
    finished = {name: row for name, row in before.items() if row["state"] in ("done", "stopped")}
    changed = sum(after.get(name) != row for name, row in finished.items())
    over = sum(row["state"] in ("done", "stopped") for row in after.values())
    return changed + max(trials - over, 0)


def trained_twice(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    """Saved steps of trials in flight that were not gone on from."""
    twice = 0
    for name, row in before.items():
        kept = after[name]["curve"][: len(row["curve"])]
        twice += sum(old != new for old, new in itertools.zip_longest(row["curve"], kept))
    return twice


def _sweep_of(found: Mapping[str, Any], model: str) -> Trained:
    own = [row for row in found.values() if row["model"] == model]
    steps = [step for row in own for step in row["curve"]]
    return Trained(min(row["value"] for row in own), sum(step["cpu"] for step in steps), len(steps))


def _winners(out: Path) -> dict[str, dict[str, Any]]:
    best = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["best"]
    return {model: best[model]["parameters"] for model in GRID}


def _curves(found: Mapping[str, Any]) -> list[Any]:
    from training.tune.record import Point

    return [[Point.of(step) for step in row["curve"]] for row in found.values()]


def steady(
    curves: Sequence[Any], spans: Sequence[tuple[float, float]], cores: int
) -> dict[str, float] | None:
    """Over the processes: the share of the time that cores were inside steps."""
    from training.tune.outcome import efficiency

    parts = [efficiency(own, cores, *span) for own, span in zip(curves, spans, strict=True)]
    known = [part for part in parts if part is not None]
    window = sum(part["window_s"] for part in known)
    if not window:
        return None
    shares = {"share": "inside_s", "cpu": "cpu_s"}
    return {name: sum(part[key] for part in known) / window for name, key in shares.items()} | {
        "window_s": window / cores
    }


if __name__ == "__main__":
    main()
