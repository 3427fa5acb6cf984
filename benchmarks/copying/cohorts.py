"""Synthetic cohorts of the households of The Complete Journey: how faithful, and what membership attacks
tell.

Every split holds out other households. `python -m benchmarks.copying.cohorts [--smoke | --quick] [--seed N]`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchmarks.effecting.journey import CATEGORICAL, NUMERIC, PACKAGE, contacts
from benchmarks.harness import Args, emit, log, parse
from qiance.data.packages import package_folder
from training.synth.release import SynthSettings, make_cohort

METHODS: tuple[Literal["copula", "vae"], ...] = ("copula", "vae")
HABITS = NUMERIC[:12]
PEOPLE = CATEGORICAL[1:]
TARGET = "discount_share"
FIGURES = (
    ("mean_distance", ("mean_distance",), "{}", ()),
    ("correlation", ("correlation",), "{}", ("mean",)),
    ("two_sample", ("two_sample",), "{}", ()),
    ("utility", ("utility",), "trained_on_{}", ()),
)


def households() -> pd.DataFrame | None:
    """Habits and people of each household when its last campaign began; None without the package."""
    folder = package_folder(PACKAGE)
    if folder is None:
        return None
    rows = contacts(folder / "data").groupby("household_id").tail(1)
    return rows[[*HABITS, *PEOPLE]].reset_index(drop=True)


def measure(users: pd.DataFrame, args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures of each method, nothing beside them, protocol."""
    splits = args.pick(smoke=1, quick=5, full=20)
    shadows = args.pick(smoke=2, quick=8, full=8)
    figures: dict[str, Any] = {}
    for method in METHODS:
        started, reports = time.monotonic(), []
        for number in range(splits):
            settings = SynthSettings(method, target=TARGET, shadows=shadows, seed=args.seed * 1_000 + number)
            reports.append(make_cohort(users, len(users), settings).report)
            log(f"{method}, split {number + 1} of {splits}, {time.monotonic() - started:.0f} s")
        figures[method] = summary(reports)
    protocol = {
        "users": len(users),
        "columns": [len(HABITS), len(PEOPLE)],
        "held_out": 0.3,
        "splits": splits,
        "shadows": shadows,
        "figures": "means over splits; `real` is of the users that were learned from",
    }
    return figures, {}, protocol


def summary(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the splits; of the attacks also the highest AUC, and how many cohorts were refused."""

    def mean(*path: str) -> float:
        return float(np.mean([_at(report, path) for report in reports]))

    attacks = reports[0]["leakage"]["attacks"]
    worst = [max(one["value"] for one in report["leakage"]["attacks"].values()) for report in reports]
    return {
        **{f"auc_{name}": mean("leakage", "attacks", name, "value") for name in attacks},
        "auc_highest": float(max(worst)),
        "refused": sum(bool(report["refused"]) for report in reports),
        **{
            f"{name}_{side}": mean("fidelity", *path, last.format(side), *rest)
            for side in ("synthetic", "real")
            for name, path, last, rest in FIGURES
        },
    }


def _at(report: Mapping[str, Any], path: Sequence[str]) -> float:
    found: Any = report
    for name in path:
        found = found[name]
    return float(found)


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Fidelity of synthetic households, and membership attacks on them.")
    users = households()
    if users is None:
        reason = f"the package {PACKAGE} is not installed; `make setup` tries again"
        emit("cohorts", args, dict.fromkeys(METHODS), {}, {"missing": dict.fromkeys(METHODS, reason)})
        return
    emit("cohorts", args, *measure(users, args))


if __name__ == "__main__":
    main()
