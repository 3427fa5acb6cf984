"""A response log whose truth is known, as a shop would have it: a file and a mapping."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

COUPONS = ("bar", "carry-out", "coffee", "restaurant")
AGES = ("below21", "21-30", "31-50", "50plus")
FEATURES = {"numeric": ["visits"], "categorical": ["age", "weather", "coupon", "expiry"]}


@dataclass(frozen=True)
class Log:
    """data, mapping: files. truth: `[n]` true probabilities; answered: `[n]` outcomes. taste: `[4, 4]`."""

    data: Path
    mapping: Path
    truth: np.ndarray
    answered: np.ndarray
    taste: np.ndarray


def write_log(
    folder: Path, n: int = 4_000, seed: int = 0, rows_a_user: int = 2, taste: np.ndarray | None = None
) -> Log:
    """Coupons by CSV.gz. Who takes one hangs on age × coupon, on visits, and a little on the rest.

    taste: `[4, 4]` of age × coupon, by default drawn: with that of another log the same truth holds.
    """
    random = np.random.default_rng(seed)
    age, coupon = random.integers(0, 4, n), random.integers(0, 4, n)
    weather, expiry = random.choice(["sunny", "rainy"], n), random.choice(["2h", "1d"], n)
    visits = random.poisson(3, n).astype(float)
    taste = random.normal(size=(4, 4)) if taste is None else taste
    score = -0.4 + 1.2 * taste[age, coupon] + 0.25 * (visits - 3) + 0.5 * (expiry == "1d")
    truth = 1 / (1 + np.exp(-score - 0.3 * (weather == "sunny")))
    answered = (random.random(n) < truth).astype(int)
    missing = random.random(n) < 0.05
    data = folder / "coupons.csv.gz"
    with gzip.open(data, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["driver", "age", "weather", "coupon", "expiry", "visits", "taken"])
        for k in range(n):
            seen = "" if missing[k] else f"{visits[k]:g}"
            who = f"d{k // rows_a_user}"
            writer.writerow([who, AGES[age[k]], weather[k], COUPONS[coupon[k]], expiry[k], seen, answered[k]])
    mapping = folder / "coupons.map.yaml"
    content = {
        "kind": "responses",
        "name": "coupons",
        "columns": {"unit_id": "driver"},
        "features": FEATURES,
        "labels": {"conversion": "taken"},
    }
    mapping.write_text(yaml.safe_dump(content), encoding="utf-8")
    return Log(data, mapping, truth, answered, taste)
