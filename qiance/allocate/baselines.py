"""What the allocator is compared with in the report: two rules of thumb, and the bound of an LP solver."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from qiance.allocate.limits import Budget, FrequencyCap, Limit
from qiance.allocate.master import solve_relaxation
from qiance.allocate.problem import Plan, Problem, checked_problem
from qiance.allocate.program import compile_program
from qiance.evaluate.arrays import FloatArray, IndexArray, finite_matrix

_MAX_LP_CELLS = 1_000_000


def greedy_roi(value: ArrayLike, cost: ArrayLike, budget: float, admissible: ArrayLike | None = None) -> Plan:
    """Everybody's action of highest value per cost, best ratios first, while the budget lasts.

    Arguments as for `allocate`, with one budget. What a spreadsheet does: it never gives a user a dearer
    action that would earn more.
    """
    problem = _one_budget(value, cost, budget, admissible)
    worth = _usable(problem, problem.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(worth > 0, worth / problem.cost[0], -np.inf)
    action = ratio.argmax(axis=1)
    top = ratio[np.arange(problem.users), action]
    return _in_order(problem, np.where(top > 0, action, 0), top)


def top_response(
    score: ArrayLike,
    cost: ArrayLike,
    budget: float,
    admissible: ArrayLike | None = None,
    value: ArrayLike | None = None,
) -> Plan:
    """Everybody's most likely response, likeliest users first, while the budget lasts.

    score: `[U, A]` response scores (probability to convert), 0 for doing nothing. value: `[U, A]` that the
    plan is summed with; the score itself if None. What response models are commonly used for: it pays for
    customers who would have bought anyway.
    """
    problem = _one_budget(score if value is None else value, cost, budget, admissible)
    likely = _usable(problem, finite_matrix("score", score, problem.value.shape))
    action = likely.argmax(axis=1)
    return _in_order(problem, action, likely[np.arange(problem.users), action])


def lp_bound(
    value: ArrayLike,
    cost: ArrayLike,
    budget: ArrayLike,
    admissible: ArrayLike | None = None,
    *,
    limits: Sequence[Limit | FrequencyCap] = (),
) -> float:
    """The linear relaxation's value by HiGHS: no allocation is worth more.

    Arguments as for `allocate`, up to a million user × action cells; for more use the bound that `allocate`
    reports.
    """
    problem = checked_problem(value, cost, budget, admissible)
    if problem.value.size > _MAX_LP_CELLS:
        raise ValueError(
            f"value: {problem.value.size} cells are too many for the LP; use allocate(...).bound"
        )
    budgets = [Budget(part, float(most)) for part, most in zip(problem.cost, problem.budget, strict=True)]
    solved = solve_relaxation(compile_program(problem.value, problem.admissible, [*budgets, *limits]))
    if solved is None:
        raise ArithmeticError("the LP solver found no plan; `allocate` names limits that cannot be kept")
    return solved.value


def _one_budget(value: ArrayLike, cost: ArrayLike, budget: float, admissible: ArrayLike | None) -> Problem:
    problem = checked_problem(value, cost, budget, admissible)
    if problem.budget.size != 1:
        raise ValueError(f"budget: has {problem.budget.size} entries; this rule knows one budget")
    return problem


def _usable(problem: Problem, array: FloatArray) -> FloatArray:
    if problem.admissible is None:
        return array.astype(np.float64)
    return np.where(problem.admissible, array, -np.inf)


def _in_order(problem: Problem, action: IndexArray, priority: FloatArray) -> Plan:
    """Give users their action in descending priority, passing over those that no longer fit."""
    choice = np.zeros(problem.users, dtype=np.int64)
    cost = problem.cost[0][np.arange(problem.users), action].astype(np.float64)
    order = np.argsort(-priority, kind="stable")
    left = float(problem.budget[0])
    order = order[(action[order] > 0) & (cost[order] <= left)]
    while order.size:
        spent = np.cumsum(cost[order])
        count = int(np.searchsorted(spent, left, side="right"))
        taken = order[:count]
        choice[taken] = action[taken]
        left -= float(cost[taken].sum())
        order = order[count:]
        order = order[cost[order] <= left]
        if count == 0:
            break
    return problem.plan(choice)
