"""The purchase logs that customers are judged on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qiance.data.complete_journey import read_complete_journey
from qiance.data.errors import DataError
from qiance.data.purchases import DAY_US, PurchaseLog

WEEK = 7


@dataclass(frozen=True)
class Case:
    """A log, the day that ends the calibration period and the days of the holdout; note: what it is."""

    name: str
    log: PurchaseLog
    cutoff: int
    horizon: int
    note: str

    def some(self, most: int | None, seed: int) -> Case:
        """With `most` customers at random."""
        users = len(self.log.user_ids)
        if most is None or users <= most:
            return self
        kept = np.zeros(users, dtype=bool)
        kept[np.random.default_rng(seed).choice(users, most, replace=False)] = True
        rows, own = kept[self.log.user], self.log
        ids = own.user_ids[own.user[rows]]
        log = PurchaseLog.of(ids, own.day[rows], own.value[rows], own.currency, own.source)
        note = f"{self.note}; {most:,} customers at random"
        return Case(self.name, log, self.cutoff, self.horizon, note)


def cdnow(folder: Path) -> Case:
    """The master file in the package `lifetimes`: who first bought in early 1997, to June 1998."""
    lines = (folder / "CDNOW_master.txt").read_text(encoding="ascii").splitlines()[1:]
    rows = [line.split() for line in lines if line.strip()]
    dates = [f"{row[1][:4]}-{row[1][4:6]}-{row[1][6:]}" for row in rows]
    day = np.array(dates, dtype="datetime64[D]").astype(np.int64)
    value = np.rint(np.array([float(row[3]) for row in rows]) * 100)
    log = PurchaseLog.of([row[0] for row in rows], day, value, source="CDNOW")
    note = f"full set: {len(log.user_ids):,} customers, {len(rows):,} rows, 39 weeks and 39 weeks"
    return Case("cdnow", log, log.first_day + 39 * WEEK, 39 * WEEK, note)


def journey() -> Case:
    """Baskets by household of The Complete Journey; DataError where the package is missing."""
    with tempfile.TemporaryDirectory(prefix="qiance-journey-") as name:
        read_complete_journey(out=Path(name))
        wanted = ["user_id", "type", "value", "occurred_at"]
        events = pq.read_table(Path(name) / "events.parquet", columns=wanted)
    events = events.filter(pc.equal(events["type"], "purchase"))
    day = events["occurred_at"].cast("int64").to_numpy() // DAY_US
    users = events["user_id"].to_numpy(zero_copy_only=False)
    log = PurchaseLog.of(users, day, events["value"].to_numpy(), source="The Complete Journey")
    note = f"{len(log.user_ids):,} households, 26 weeks and 26 weeks"
    return Case("journey", log, log.first_day + 26 * WEEK, 26 * WEEK, note)


def journey_or_none() -> tuple[Case | None, str]:
    """The case, or the reason that there is none."""
    try:
        return journey(), ""
    except DataError as error:
        return None, error.problem


def planted(customers: int, seed: int) -> Case:
    """Customers who follow Pareto/NBD, for a run without any data set."""
    random = np.random.default_rng(seed)
    rate, leaving = random.gamma(0.6, 1 / 15, customers), random.gamma(0.8, 1 / 60, customers)
    users, days = list[str](), list[float]()
    for user in range(customers):
        start = int(random.integers(0, 90))
        end = min(start + random.exponential(1 / max(leaving[user], 1e-9)), 364.0)
        count = random.poisson(rate[user] * max(end - start, 0.0))
        bought = [float(start), *(start + random.random(count) * (end - start))]
        users += [f"c{user:05d}"] * len(bought)
        days += bought
    value = np.rint(random.lognormal(8, 0.6, len(days)))
    log = PurchaseLog.of(users, np.array(days).astype(np.int64), value, source="planted")
    return Case("planted", log, 182, 182, "planted Pareto/NBD customers")
