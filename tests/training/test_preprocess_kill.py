"""Killed for real on Ray Data: a worker dies and its piece is done again; the job dies and goes on later."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.ingest_shop import Shop, make_shop
from qiance.data import load_mapping
from training.preprocess.job import preprocess

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"fragment_bytes": 60_000, "bucket_rows": 5_000}
# The pieces are slowed down, so that there is time to kill.
JOB = """
import sys, time
from pathlib import Path
from qiance.data import load_mapping
from training.preprocess import check, job
from training.preprocess.check import CheckJob

class Slow(CheckJob):
    def __call__(self, piece):
        time.sleep(0.3)
        return super().__call__(piece)

job.CheckJob = Slow
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
mapping = load_mapping(folder / "lines.map.yaml")
job.preprocess(folder / "lines.csv", mapping, folder / "items.parquet", out, workers=2,
               fragment_bytes=60_000, bucket_rows=5_000)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop") / "files", 40_000, 0)


def checked(out: Path) -> set[str]:
    """Markers of the fragments that are finished."""
    return {path.name for path in (out / ".work").glob("checked-*/*.json")}


def wait_for(what: str, seconds: float, true: object) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)


def workers(process: psutil.Process) -> list[psutil.Process]:
    """Ray workers of the job that are at a piece."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::Map" in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_tree(process: psutil.Process) -> None:
    """At once and without a chance to tidy up, as a machine that goes down."""
    tree = [process, *process.children(recursive=True)]
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(member.pid, signal.SIGKILL)
    psutil.wait_procs(tree, timeout=10)


def contents(out: Path) -> dict[str, bytes]:
    files = [*sorted((out / "data").iterdir()), *sorted((out / "quarantine").iterdir())]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(shop: Shop, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    started = subprocess.Popen(
        [sys.executable, "-c", JOB, str(shop.folder), str(out)], cwd=ROOT, env=environment
    )
    process = psutil.Process(started.pid)
    try:
        wait_for("worker", 150, lambda: len(checked(out)) >= 2 and workers(process))
        victim = workers(process)[0]
        victim.kill()
        at_death = len(checked(out))
        wait_for("piece after the death of a worker", 60, lambda: len(checked(out)) >= at_death + 4)
        assert started.poll() is None, "the job outlives a worker"
    finally:
        kill_tree(process)
        started.wait()
    finished = checked(out)
    assert not (out / "manifest.json").exists(), "it was killed midway"
    stamps = {path: path.stat().st_mtime_ns for path in (out / ".work").glob("checked-*/*.json")}

    mapping = load_mapping(shop.mapping)
    again: list[str] = []
    report = preprocess(
        shop.log,
        mapping,
        shop.items,
        out,
        workers=0,
        keep=True,
        progress=lambda _, what: again.append(what),
        **SIZES,
    )
    assert report.resumed == len(finished)
    for path, stamp in stamps.items():
        assert path.stat().st_mtime_ns == stamp, "a finished piece is not done again"
    preprocess(shop.log, mapping, shop.items, whole, workers=0, **SIZES)
    assert contents(out) == contents(whole)
    assert report.rows_read == shop.rows == report.accepted + report.quarantined


@pytest.mark.parametrize("step", ["checking rows: 3", "computing features: 2", "writing tables: 2"])
def test_stopped_in_any_step_it_goes_on(shop: Shop, tmp_path: Path, step: str) -> None:
    """As after an interrupt in that step: what is there is used, and the outcome is the same."""
    mapping = load_mapping(shop.mapping)

    def stop(_: float, what: str) -> None:
        if what.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(shop.log, mapping, shop.items, tmp_path / "out", workers=0, progress=stop, **SIZES)
    report = preprocess(shop.log, mapping, shop.items, tmp_path / "out", workers=0, **SIZES)
    assert report.resumed >= 2
    preprocess(shop.log, mapping, shop.items, tmp_path / "whole", workers=0, **SIZES)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_at_once_are_refused(shop: Shop, tmp_path: Path) -> None:
    mapping = load_mapping(shop.mapping)
    refused: list[str] = []

    def second(_: float, what: str) -> None:
        if what.startswith("checking rows: 2 of"):
            with pytest.raises(ValueError, match="another run is writing to") as error:
                preprocess(shop.log, mapping, shop.items, tmp_path, workers=0, **SIZES)
            refused.append(str(error.value))

    preprocess(shop.log, mapping, shop.items, tmp_path, workers=0, progress=second, **SIZES)
    assert len(refused) == 1
