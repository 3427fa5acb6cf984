"""Customers whose truth is known: Pareto/NBD with planted rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qiance.data.purchases import PurchaseLog
from training.customers.settings import CustomerSettings, ProcessSettings, TreeSettings

QUICK = CustomerSettings(
    process=ProcessSettings(rates=12, dropouts=6, turns=40),
    trees=TreeSettings(rounds=40, patience=10, min_rows=50),
    members=2,
)
MAPPING = """kind: purchases
name: planted
columns:
  user_id: who
  value: {column: paid, unit: major}
  occurred_at: day
"""


@dataclass(frozen=True)
class Plant:
    """log; rate, leaving: `[U]` true rates per day of `log.user_ids`."""

    log: PurchaseLog
    rate: np.ndarray
    leaving: np.ndarray


def plant(customers: int = 600, days: int = 240, seed: int = 0) -> Plant:
    """First purchase in the first third of the log; rates are gamma distributed; a purchase is worth 20."""
    random = np.random.default_rng(seed)
    rate, leaving = random.gamma(0.9, 1 / 15, customers), random.gamma(1.0, 1 / 150, customers)
    users, at = list[str](), list[int]()
    for user in range(customers):
        start = int(random.integers(0, days // 3))
        end = min(start + random.exponential(1 / leaving[user]), days)
        bought = {
            start,
            *(
                int(d)
                for d in start + random.random(random.poisson(rate[user] * (end - start))) * (end - start)
            ),
        }
        users += [f"c{user:05d}"] * len(bought)
        at += sorted(bought)
    value = np.rint(random.lognormal(7.5, 0.4, len(at)))
    return Plant(PurchaseLog.of(users, np.array(at), value), rate, leaving)


def write_log(folder: Path, log: PurchaseLog) -> tuple[Path, Path]:
    """The log as CSV in major units, and its mapping."""
    data, mapping = folder / "bought.csv", folder / "bought.map.yaml"
    rows = zip(log.user_ids[log.user], log.day.astype("datetime64[D]"), log.value, strict=True)
    lines = [f"{user},{day},{value / 100:.2f}" for user, day, value in rows]
    data.write_text("\n".join(["who,day,paid", *lines]) + "\n", encoding="utf-8")
    mapping.write_text(MAPPING, encoding="utf-8")
    return data, mapping
