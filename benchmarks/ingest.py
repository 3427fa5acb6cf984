"""Raw events to feature tables: rows per second, bounded memory, every bad row found, against pandas.

A made-up shop's log with 1 % planted bad rows of 19 kinds goes through `training.preprocess` on Ray Data.
Peak memory is that of the whole process tree, Ray included, at the full size and at a tenth of it. pandas
does the same checks and features in one process, on a slice in the full protocol: it holds all in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness import ROOT, Args, emit, log, median_of, parse, peak_memory
from benchmarks.ingest_shop import BAD_SHARE, SPOILT, Shop, make_shop

OURS = """
import os, sys
from pathlib import Path
from serve.loopback import prepare
prepare(os.environ)
from qiance.data import load_mapping
from training.preprocess.job import preprocess
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
mapping = load_mapping(folder / "lines.map.yaml")
preprocess(folder / "lines.csv", mapping, folder / "items.parquet", out)
"""
TABLES = ("user_profile", "user_category", "user_brand", "item_state", "item_popularity", "market_signals")
KEYS = ("user_id", "item_id", "category", "brand", "market_id", "event_timestamp")


@dataclass(frozen=True)
class Measured:
    """Seconds and peak MiB of one run in processes of its own."""

    seconds: float
    peak_mib: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the result."""
    args = parse(argv, "Raw events to feature tables on Ray Data, against pandas.")
    with tempfile.TemporaryDirectory(prefix="qiance-ingest-") as folder:
        measure(args, Path(folder))


def measure(args: Args, folder: Path) -> None:
    """Runs in turns at the peer's size, then ours at full size and at a tenth of it."""
    rows = args.pick(smoke=30_000, quick=500_000, full=5_000_000)
    peer_rows = args.pick(smoke=30_000, quick=200_000, full=1_000_000)
    repeats = args.pick(smoke=1, quick=1, full=2)
    small, peer_shop = _shop(folder, rows // 10, args.seed), _shop(folder, peer_rows, args.seed)
    shop = peer_shop if rows == peer_rows else _shop(folder, rows, args.seed)
    ours, theirs = [], []
    for turn in range(repeats):
        ours.append(_ours(shop, folder / f"ours{turn}"))
        theirs.append(_pandas(peer_shop, folder / f"pandas{turn}"))
    # A smoke run has no time to start Ray twice.
    tenth = args.pick(smoke=None, quick=small, full=small)
    base = _ours(tenth, folder / "tenth").peak_mib if tenth else None
    seconds = median_of([run.seconds for run in ours])
    rate, peer_rate = rows / seconds, peer_rows / median_of([run.seconds for run in theirs])
    peak = max(run.peak_mib for run in ours)
    found = audit(shop, folder / "ours0")
    differs = _largest_difference(args, peer_shop, folder)
    figures = {
        "rows_per_s": rate,
        "peak_mib": peak,
        "peak_ratio_10x": peak / base if base else None,
        **found,
        "vs_pandas": rate / peer_rate,
        "vs_pandas_memory_per_row": max(run.peak_mib for run in theirs) / peer_rows / (peak / rows),
        "differs_from_pandas": differs,
    }
    peers = {"pandas": {"rows_per_s": peer_rate, "peak_mib": max(run.peak_mib for run in theirs)}}
    protocol = {
        "rows": rows,
        "rows_pandas": peer_rows,
        "rows_tenth": rows // 10,
        "peak_mib_tenth": base,
        "log_mib": shop.log.stat().st_size / 2**20,
        "bad_share": BAD_SHARE,
        "kinds_of_bad_rows": len(SPOILT),
        "repeats": repeats,
        "workers": os.cpu_count(),
        "seconds": [run.seconds for run in ours],
        "pandas": pd.__version__,
        "note": "seconds of whole processes, start of Ray included; pandas works on a slice of rows_pandas",
    }
    emit("ingest", args, figures, peers, protocol)


def _shop(folder: Path, rows: int, seed: int) -> Shop:
    log(f"making a log of {rows:,} rows")
    place = folder / f"shop{rows}"
    return Shop(place, rows) if place.is_dir() else make_shop(place, rows, seed)


def _ours(shop: Shop, out: Path) -> Measured:
    return _timed("qiance", shop, [sys.executable, "-c", OURS, str(shop.folder), str(out)])


def _pandas(shop: Shop, out: Path) -> Measured:
    arguments = [str(shop.folder), str(shop.rows), str(out)]
    return _timed("pandas", shop, [sys.executable, "-m", "benchmarks.ingest_pandas", *arguments])


def _timed(name: str, shop: Shop, command: list[str]) -> Measured:
    """Run in processes of its own, so that only what the pipeline takes is counted."""
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr) as process:
        with peak_memory(process.pid, hertz=5.0) as peak:
            process.wait()
        seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"{name}: ended with {process.returncode} on {shop.rows} rows")
    log(f"{name}: {shop.rows:,} rows in {seconds:.1f} s, peak {peak.mib:.0f} MiB")
    return Measured(seconds, peak.mib)


def audit(shop: Shop, out: Path) -> dict[str, int]:
    """What was planted against what was found, by row, field and reason; rows that went missing."""
    report = json.loads((out / "manifest.json").read_text())["report"]
    faults = pd.read_csv(out / report["files"][0]["quarantine"], usecols=["row", "field", "reason"])
    planted = pd.read_parquet(shop.planted)
    found = set(faults.itertuples(index=False, name=None))
    wanted = set(planted[["row", "field", "reason"]].itertuples(index=False, name=None))
    read = sum(file["rows_read"] for file in report["files"])
    kept = sum(file["accepted"] for file in report["files"])
    return {
        "planted_bad": len(planted),
        "quarantined": int(faults["row"].nunique()),
        "missed": len(wanted - found),
        "invented": len(found - wanted),
        "lost": shop.rows - kept - int(faults["row"].nunique()) + abs(shop.rows - read),
    }


def _largest_difference(args: Args, shop: Shop, folder: Path) -> float | None:
    """Largest absolute difference of a feature to pandas', where both read the same log."""
    if args.pick(smoke=False, quick=True, full=True):
        return None
    mine, other = folder / "ours0" / "data", folder / "pandas0" / "data"
    return max(_difference(mine / f"{name}.parquet", other / f"{name}.parquet") for name in TABLES)


def _difference(ours: Path, theirs: Path) -> float:
    tables = []
    for path in (ours, theirs):
        table = pd.read_parquet(path)
        keys = [name for name in KEYS if name in table.columns]
        table = table.astype({name: str for name in keys if name != "event_timestamp"})
        table["event_timestamp"] = table["event_timestamp"].dt.as_unit("us")
        tables.append(table.sort_values(keys, ignore_index=True))
    mine, other = tables
    if not mine[keys].equals(other[keys]):
        raise RuntimeError(f"{ours.name}: other rows than pandas made")
    features = [name for name in mine.columns if name not in (*KEYS, "created")]
    values, theirs_too = mine[features].to_numpy(), other[features].to_numpy()
    if (np.isnan(values) != np.isnan(theirs_too)).any():
        raise RuntimeError(f"{ours.name}: pandas found other values missing")
    return float(np.nanmax(np.abs(values - theirs_too), initial=0.0))


if __name__ == "__main__":
    main()
