"""Allocation by shadow prices: integral, within budget, with a bound on what any allocation could earn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.allocate.problem import Plan, Problem, checked_problem
from qiance.allocate.rounding import fill, repair
from qiance.allocate.several import solve_core, solve_several
from qiance.allocate.single import solve_single
from qiance.evaluate.arrays import FloatArray, IndexArray

# A plan this close to its bound (as a share of it) is not searched any further; the second figure holds for
# plans of more user × action cells than the third.
_CLOSE, _CLOSE_LARGE = 1e-9, 1e-6
_ALL_CELLS = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """An allocation and how far it can be from the best.

    choice: `[U]` action of each user. value: its sum. cost: `[K]` spend, never over budget.
    shadow_price: `[K]` λ, value gained per further unit of each budget; 0 where a budget does not bind.
    bound: no allocation within the budgets is worth more. gap: bound − value, ≥ 0.
    """

    choice: IndexArray
    shadow_price: FloatArray
    value: float
    cost: FloatArray
    bound: float
    gap: float


def allocate(
    value: ArrayLike, cost: ArrayLike, budget: ArrayLike, admissible: ArrayLike | None = None
) -> Allocation:
    """Choose one of A actions for each of U users to maximise total value within the budgets.

    value: `[U, A]` expected value of each action, 0 for doing nothing (column 0).
    cost: `[U, A]`, or `[K, U, A]` for K budgets, expected cost ≥ 0; column 0 costs nothing.
    budget: a number, or `[K]`, ≥ 0, in the units of the cost.
    admissible: `[U, A]` bool, or None for all; column 0 always is.

    Lagrangian relaxation: with a price λ_k on each budget every user takes argmax_a value − Σ_k λ_k cost_k,
    and L(λ) = λ·budget + Σ_u max_a (…) bounds every allocation from above; λ minimises it. Users who are
    undecided at λ are settled so that the budgets hold. With one budget the gap is at most one user's gain.
    ValueError names the array, the row and the value that is wrong.
    Source: Everett, Operations Research 11 (1963), 399-417; Fisher, Management Science 27 (1981), 1-18.
    """
    problem = checked_problem(value, cost, budget, admissible)
    if problem.budget.size == 1:
        price, plan, rows = solve_single(problem)
        bound = _bound(problem, price)
        plan = _finish(problem, plan, price, bound, rows)
    else:
        price, bound, plan = _several(problem)
    return Allocation(plan.choice, price, plan.value, plan.cost, bound, max(bound - plan.value, 0.0))


def _several(problem: Problem) -> tuple[FloatArray, float, Plan]:
    """Prices, bound and the better of two plans: the priced choice repaired, and the core's LP rounded."""
    free = problem.plan(problem.best(np.zeros(problem.budget.size)))
    if problem.fits(free):
        return np.zeros(problem.budget.size), free.value, free
    price, choice = solve_several(problem)
    bound = _bound(problem, price)
    core = solve_core(problem, price, choice)
    rows = None
    candidates = [problem.plan(choice)]
    if core is not None:
        core_price, plan, rows = core
        candidates.append(plan)
        core_bound = _bound(problem, core_price)
        if core_bound < bound:
            price, bound = core_price, core_bound
    plans = [_finish(problem, plan, price, bound, rows) for plan in candidates]
    return price, bound, max(plans, key=lambda plan: plan.value)


def _finish(problem: Problem, plan: Plan, price: FloatArray, bound: float, rows: NDArray[Any] | None) -> Plan:
    """Repair and fill: first the users in `rows`, then all where that is cheap or much is left to gain."""
    plan = repair(problem, plan, price)
    if rows is not None:
        plan = fill(problem, plan, price, rows)
    enough = _CLOSE if rows is None or problem.value.size <= _ALL_CELLS else _CLOSE_LARGE
    if bound - plan.value > enough * abs(bound):
        plan = fill(problem, plan, price)
    return plan


def _bound(problem: Problem, price: FloatArray) -> float:
    return problem.dual_value(price, problem.plan(problem.best(price)))
