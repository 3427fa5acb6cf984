"""Spend budgets where they earn most: who gets which action, and the shadow price of each limit."""

from qiance.allocate.allocation import Allocation, LimitUse, allocate
from qiance.allocate.baselines import greedy_roi, lp_bound, top_response
from qiance.allocate.dual import InfeasibleError
from qiance.allocate.limits import (
    Budget,
    DailyBudgets,
    DepthFairness,
    FrequencyCap,
    MarginFloor,
    SegmentFloor,
    Stock,
)
from qiance.allocate.problem import Plan

__all__ = [
    "Allocation",
    "Budget",
    "DailyBudgets",
    "DepthFairness",
    "FrequencyCap",
    "InfeasibleError",
    "LimitUse",
    "MarginFloor",
    "Plan",
    "SegmentFloor",
    "Stock",
    "allocate",
    "greedy_roi",
    "lp_bound",
    "top_response",
]
