"""From a spec and a batch of offers to the limits of the allocator, and from its choices back to offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from qiance.allocate.allocation import Allocation, allocate
from qiance.allocate.limits import (
    Budget,
    DailyBudgets,
    DepthFairness,
    FrequencyCap,
    Limit,
    MarginFloor,
    SegmentFloor,
    Stock,
)
from qiance.allocate.memory import Tell
from qiance.allocate.offers import Batch, Catalogue, Ints, cost_of, segment
from qiance.allocate.risk import Prior
from qiance.allocate.spec import AllocationSpec

# Why a user gets nothing.
NONE_LISTED, NONE_WORTH, LIMITS = "no offer in the data", "no offer is worth it", "budget and limits"


def check_named(spec: AllocationSpec, catalogue: Catalogue) -> None:
    """ValueError for names in the spec that the data does not have, or lacks in the spec."""
    if not catalogue.offers:
        raise ValueError(f"offer: the data has no offer but {spec.control!r}; nothing can be allocated")
    if spec.daily_budgets is not None and spec.daily_budgets.limits is not None:
        for day in catalogue.days:
            if day not in spec.daily_budgets.limits:
                raise ValueError(
                    f"daily_budgets.limits: {day!r} is in the data and has no limit; give it one"
                )
    if spec.stock is not None:
        known = sorted(set(catalogue.stock.values())) if spec.stock.column else catalogue.offers
        for one in spec.stock.units:
            _require("stock.units", one, known, spec.stock.column or spec.columns.offer)
    for floor in spec.segment_floors:
        _require("segment_floors", floor.value, catalogue.segments[floor.column], floor.column)
    fair = spec.depth_fairness
    if fair is not None and fair.depths is not None:
        for one in catalogue.offers:
            if one not in fair.depths:
                raise ValueError(f"depth_fairness.depths: offer {one!r} has no depth; give it one, such as 0")


def _require(where: str, name: str, known: Sequence[str], column: str) -> None:
    if name not in known:
        shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
        raise ValueError(f"{where}: {name!r} is in no row of the column {column}, which has: {shown}")


def limits_of(spec: AllocationSpec, catalogue: Catalogue, batch: Batch) -> list[Limit | FrequencyCap]:
    """All limits but the budget itself, of a batch with the bounds of the whole."""
    found: list[Limit | FrequencyCap] = [
        Budget(batch[cost_of(one.name)], one.limit, f"budget {one.name}") for one in spec.budgets
    ]
    if spec.daily_budgets is not None:
        most = spec.daily_budgets
        limits = [most.limits[day] if most.limits else most.limit for day in catalogue.days]
        by_day = np.array(limits, dtype=np.float64)
        found.append(DailyBudgets(batch["cost"], batch["day"], by_day, labels=catalogue.days))
    if spec.stock is not None:
        found.append(_stock(spec, catalogue))
    for floor in spec.segment_floors:
        place = catalogue.segments[floor.column].index(floor.value)
        found.append(SegmentFloor(batch[segment(floor.column)] == place, floor.share, floor.name))
    if spec.margin_floor is not None:
        found.append(MarginFloor(batch["margin"], batch["sales"], spec.margin_floor.floor))
    if spec.depth_fairness is not None:
        found.append(_fairness(spec, catalogue, batch))
    if spec.frequency_cap is not None:
        found.append(FrequencyCap(batch["person"], spec.frequency_cap.most))
    return found


def _stock(spec: AllocationSpec, catalogue: Catalogue) -> Stock:
    assert spec.stock is not None, "asked for"
    pools = list(spec.stock.units)
    taken = [catalogue.stock[offer] if spec.stock.column else offer for offer in catalogue.offers]
    pool = [-1, *(pools.index(one) if one in pools else -1 for one in taken)]
    units = np.array(list(spec.stock.units.values()))
    return Stock(units, pool=np.array(pool, dtype=np.int64), labels=pools)


def _fairness(spec: AllocationSpec, catalogue: Catalogue, batch: Batch) -> DepthFairness:
    fair = spec.depth_fairness
    assert fair is not None, "asked for"
    depths = catalogue.depth if fair.depths is None else fair.depths
    depth = np.array([0.0, *(depths[offer] for offer in catalogue.offers)])
    labels = catalogue.segments[fair.column]
    return DepthFairness(batch[segment(fair.column)], depth, fair.spread, labels=labels)


def solve(
    spec: AllocationSpec, catalogue: Catalogue, batch: Batch, progress: Tell | None = None
) -> Allocation:
    """The allocation of a batch that is the whole. ValueError and InfeasibleError as `allocate`."""
    limits = limits_of(spec, catalogue, batch)
    admissible = batch["admissible"]
    return allocate(batch["value"], batch["cost"], spec.budget, admissible, limits=limits, progress=progress)


def believed(batch: Batch) -> Batch:
    """The batch with values shrunken by their spread, offer by offer over the users who may have it.

    Of those who look best many were overestimated, see `qiance.allocate.risk`.
    """
    value, spread = batch["value"].copy(), batch["spread"]
    for offer in range(1, value.shape[1]):
        rows = np.flatnonzero(batch["admissible"][:, offer])
        if rows.size:
            # The first of two columns is doing nothing, which is known.
            own, error = (
                np.column_stack([part * 0, part]) for part in (value[rows, offer], spread[rows, offer])
            )
            value[rows, offer] = Prior.of(own, error).posterior(own, error)[:, 1]
    return {**batch, "value": value}


def chosen_rows(catalogue: Catalogue, batch: Batch, choice: Ints, users: Any) -> pa.Table:
    """A row per row of the batch: user, day, offer, value, cost, and why there is no offer.

    users: Arrow type of the users.
    """
    at = np.arange(len(choice))
    value, admissible = batch["value"], batch["admissible"]
    best = np.where(admissible[:, 1:], value[:, 1:], -np.inf).max(axis=1)
    why = np.where(best > value[:, 0], LIMITS, np.where(best == -np.inf, NONE_LISTED, NONE_WORTH))
    nothing = choice == 0
    named = pa.array(["", *catalogue.offers], pa.string())
    columns: dict[str, Any] = {"user": pa.array(batch["user"], pa.string()).cast(users)}
    if "day" in batch:
        columns["day"] = pa.array(catalogue.days, pa.string()).take(pa.array(batch["day"]))
    columns |= {
        "offer": pa.array(choice, mask=nothing).cast(pa.int64()),
        "value": pa.array(value[at, choice], pa.float64()),
        "cost": pa.array(batch["cost"][at, choice], pa.float64()),
        "reason": pa.array(why, pa.string(), mask=~nothing),
    }
    columns["offer"] = named.take(columns["offer"])
    return pa.table(columns)


@dataclass
class Tally:
    """What the rows of an allocation add up to. offers: by offer, how often it is given, value and cost.
    without: rows without an offer by reason."""

    rows: int = 0
    value: float = 0.0
    cost: float = 0.0
    offers: dict[str, dict[str, float]] = field(default_factory=dict)
    without: dict[str, int] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """The rows of `chosen_rows`."""
        self.rows += table.num_rows
        sums = table.group_by(["offer", "reason"]).aggregate(
            [("value", "sum"), ("cost", "sum"), ("value", "count")]
        )
        for one in sums.to_pylist():
            self.value += one["value_sum"]
            self.cost += one["cost_sum"]
            if one["offer"] is None:
                self.without[one["reason"]] = self.without.get(one["reason"], 0) + one["value_count"]
                continue
            found = self.offers.setdefault(one["offer"], {"given": 0, "value": 0.0, "cost": 0.0})
            found["given"] += one["value_count"]
            found["value"] += one["value_sum"]
            found["cost"] += one["cost_sum"]
