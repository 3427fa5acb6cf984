"""Spend budgets where they earn most: who gets which action, and the shadow price of each budget."""

from qiance.allocate.baselines import greedy_roi, lp_bound, top_response
from qiance.allocate.dual import Allocation, allocate
from qiance.allocate.problem import Plan

__all__ = ["Allocation", "Plan", "allocate", "greedy_roi", "lp_bound", "top_response"]
