"""What days of much demand, found in the first part of a log, say of its last part.

`python -m benchmarks.targeting.days [--run runs/latest] [--held-out 0.25] [--country US]` needs a finished
`qiance run`: its demand by category and day. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from benchmarks.harness import ROOT
from qiance.strategy.demand import DayDemand
from qiance.workspace import Workspace


def explained(demand: DayDemand, held_out: float, country: str) -> dict[str, float]:
    """Poisson deviance of the units of each category and day that were held out, around their means and
    around means times the index of the first part; the level of a category is not what is judged."""
    days = demand.units.shape[1]
    cut = days - round(held_out * days)
    known, later = replace(demand, units=demand.units[:, :cut]), demand.first + np.arange(cut, days)
    around_mean = around_index = 0.0
    for place, category in enumerate(demand.categories):
        units, index = demand.units[place, cut:], known.index(category, later, country)
        if index is None or not units.any():
            continue
        around_mean += deviance(units, np.full(len(units), units.mean()))
        around_index += deviance(units, units.mean() * index / index.mean())
    return {
        "categories": len(demand.categories),
        "days": cut,
        "days_held_out": days - cut,
        "explained": 1.0 - around_index / around_mean,
    }


def deviance(units: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """2 Σ (y log(y ÷ μ) − (y − μ))."""
    return float(2 * (xlogy(units, units / expected) - (units - expected)).sum())


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.targeting.days", description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "latest", help="a finished run")
    parser.add_argument("--held-out", type=float, default=0.25, help="last part of the log")
    parser.add_argument("--country", default="US")
    args = parser.parse_args(argv)
    demand = DayDemand.load(Workspace(args.run).snapshot)
    if demand is None:
        parser.error(f"--run: {args.run} has no demand by day; run `qiance run` again")
    print(json.dumps(explained(demand, args.held_out, args.country), indent=1))


if __name__ == "__main__":
    main()
