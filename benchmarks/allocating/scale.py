"""How long the allocator takes for many rows and ten actions, and how far its plan can be from the best."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from qiance.allocate import (
    DailyBudgets,
    DepthFairness,
    FrequencyCap,
    MarginFloor,
    SegmentFloor,
    Stock,
    allocate,
)
from qiance.allocate.limits import Limit

ACTIONS = 10


def measure_scale(rows: int, seed: int) -> dict[str, Any]:
    """One budget alone, then with daily budgets, stocks, segment floors, a margin floor and fairness too."""
    rng = np.random.default_rng(seed)
    value = rng.gamma(1, 100, (rows, ACTIONS)).astype(np.float32)
    cost = rng.gamma(2, 30, (rows, ACTIONS)).astype(np.float32)
    value[:, 0], cost[:, 0] = 0, 0
    day, segment, group = (rng.integers(0, count, rows) for count in (7, 5, 2))
    value[group == 1] *= np.float32(1.1)
    total = float(cost.max(axis=1).sum(dtype=np.float64))
    units = np.full(ACTIONS, np.inf)
    units[[3, 5]] = 0.02 * rows
    limits: list[Limit | FrequencyCap] = [
        DailyBudgets(cost, day, np.array([0.012] * 3 + [0.02] * 4) * total),
        Stock(units),
        SegmentFloor(segment == 0, 0.6, "segment 0"),
        SegmentFloor(segment == 1, 0.65, "segment 1"),
        MarginFloor(0.5 * value, value + 50, 0.3),
        DepthFairness(group, np.linspace(0, 0.4, ACTIONS), 0.005),
    ]
    figures: dict[str, Any] = {"rows": rows, "actions": ACTIONS}
    for name, some in (("one_budget", []), ("all_limits", limits)):
        wall, cpu = time.perf_counter(), time.process_time()
        found = allocate(value, cost, 0.1 * total, limits=some)
        figures[name] = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "gap": found.gap / found.bound,
            "limits": len(found.limits),
        }
    return figures
