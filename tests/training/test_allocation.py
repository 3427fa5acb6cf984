"""Allocation over chunks of a Ray dataset: the same bound and value as in memory, every limit kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qiance.allocate import (
    Budget,
    DepthFairness,
    FrequencyCap,
    InfeasibleError,
    SegmentFloor,
    Stock,
    allocate,
)
from training.allocation import Rows, allocate_dataset

pytestmark = pytest.mark.usefixtures("ray_cluster")
DEPTH = np.array([0.0, 0.1, 0.2, 0.3])


def make_columns(users: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    value, cost = rng.gamma(1, 100, (users, 4)), rng.gamma(2, 30, (users, 4))
    value[:, 0], cost[:, 0] = 0, 0
    keys = rng.permutation(users) * 3
    return {"key": keys, "value": value, "cost": cost, "group": rng.integers(0, 2, users)}


def make_rows(budget: float, units: float, share: float) -> Any:
    def to_rows(batch: dict[str, Any]) -> Rows:
        limits = [
            Budget(batch["cost"], budget),
            Stock(np.array([np.inf, np.inf, np.inf, units])),
            SegmentFloor(batch["group"] == 1, share),
            DepthFairness(batch["group"], DEPTH, 0.01),
        ]
        return Rows(batch["value"], limits)

    return to_rows


@pytest.mark.parametrize("users", [3_000, 9_000])
def test_chunks_and_memory_agree(users: int) -> None:
    import ray

    columns = make_columns(users)
    budget, units = 0.1 * columns["cost"].max(axis=1).sum(), users // 20
    to_rows = make_rows(budget, units, 0.3)
    dataset = ray.data.from_items([{k: v[i] for k, v in columns.items()} for i in range(users)])
    found = allocate_dataset(dataset, to_rows, "key", batch_size=1_000)
    rows = to_rows(columns)
    memory = allocate(columns["value"], columns["cost"], budget, limits=rows.limits[1:])
    assert found.bound == pytest.approx(memory.bound, rel=1e-6)
    assert found.value == pytest.approx(memory.value, rel=2e-5)
    assert found.gap <= 2e-5 * found.bound
    table = found.choices.to_pandas().sort_values("key")
    order = np.argsort(columns["key"])
    choice = table["choice"].to_numpy()
    np.testing.assert_array_equal(table["key"], columns["key"][order])
    at = np.arange(users)
    assert columns["value"][order][at, choice].sum() == pytest.approx(found.value)
    assert columns["cost"][order][at, choice].sum() <= budget * (1 + 1e-12)
    assert (choice == 3).sum() <= units
    group = columns["group"][order]
    assert (choice[group == 1] > 0).mean() >= 0.3
    depth = DEPTH[choice]
    assert abs(depth[group == 0].mean() - depth[group == 1].mean()) <= 0.01 + 1e-9
    assert (choice != memory.choice[order]).mean() < 0.02


def test_what_cannot_be_met_is_named_and_a_cap_is_refused() -> None:
    import ray

    columns = make_columns(300)
    dataset = ray.data.from_items([{k: v[i] for k, v in columns.items()} for i in range(300)])
    with pytest.raises(InfeasibleError, match="segment floor"):
        allocate_dataset(dataset, make_rows(1.0, 300.0, 0.9), "key", batch_size=100)

    def capped(batch: dict[str, Any]) -> Rows:
        return Rows(batch["value"], [FrequencyCap(batch["group"], 1)])

    with pytest.raises(Exception, match="mask who is at the cap"):
        allocate_dataset(dataset, capped, "key", batch_size=100)
