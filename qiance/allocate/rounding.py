"""From a priced choice to an integral plan within budget: repair, then fill."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.allocate.problem import Plan, Problem
from qiance.evaluate.arrays import FloatArray, IndexArray

# Least weight of a cost and least load: small against any money, yet safe to divide by.
_TINY = 1e-100
# Filling a large plan stops here: each round after the first moves ever fewer users.
_MAX_ROUNDS = 200


def repair(problem: Problem, plan: Plan, price: FloatArray) -> Plan:
    """Take actions back, least worth per weighed cost first, until every budget holds.

    price: `[K]`; weighs the budgets that are over against each other.
    """
    choice = plan.choice.copy()
    user = np.arange(problem.users)
    while not problem.fits(plan):
        over = plan.cost > problem.budget
        spent = problem.cost[:, user, choice]
        weight = np.where(over, np.maximum(price, _TINY) + over / np.maximum(problem.budget, 1.0), 0.0)
        load = weight @ spent
        movers = np.flatnonzero(load > 0)
        gain = problem.value[user, choice][movers] - problem.value[movers, 0]
        order = movers[np.argsort(gain / load[movers], kind="stable")]
        excess = (plan.cost - problem.budget)[over]
        freed = np.cumsum(spent[np.ix_(over, order)], axis=1, dtype=np.float64)
        # As many as settle the budget that is settled first; the others, and rounding, go round again.
        settled = (freed >= excess[:, None]).any(axis=0)
        count = int(settled.argmax()) + 1 if settled.any() else order.size
        choice[order[:count]] = 0
        plan = problem.plan(choice)
    return plan


def fill(problem: Problem, plan: Plan, price: FloatArray, rows: NDArray[Any] | None = None) -> Plan:
    """Spend what is left: raise users to better actions that fit, most gain per weighed cost first.

    rows: numbers of the users that may move, or None for all. The plan given must fit, and the one returned
    does; it is never worth less.
    """
    choice = plan.choice.copy()
    rows = np.arange(problem.users) if rows is None else rows
    weight = np.maximum(price, _TINY)
    for _ in range(_MAX_ROUNDS):
        slack = problem.budget - plan.cost
        rows, action, rise, density = _moves(problem, choice, rows, slack, weight)
        if rows.size == 0:
            break
        order = np.argsort(-density, kind="stable")
        fits = (np.cumsum(rise[:, order], axis=1) <= slack[:, None]).all(axis=0)
        count = int(fits.argmin()) if not fits.all() else order.size
        moved = order[: max(count, 1)]
        before = choice[rows[moved]]
        choice[rows[moved]] = action[moved]
        found = problem.plan(choice)
        if not problem.fits(found):  # rounding in the last place: take the least dense back and stop
            choice[rows[moved[-1]]] = before[-1]
            found = problem.plan(choice)
            return found if problem.fits(found) else plan
        plan = found
    return plan


def _moves(
    problem: Problem, choice: IndexArray, rows: NDArray[Any], slack: FloatArray, weight: FloatArray
) -> tuple[NDArray[Any], IndexArray, FloatArray, FloatArray]:
    """Each user's best single move that fits on its own: (rows, action, rise of cost `[K, n]`, density)."""
    now = choice[rows]
    gain = problem.value[rows] - problem.value[rows, now][:, None].astype(np.float64)
    possible = gain > 0
    if problem.admissible is not None:
        possible &= problem.admissible[rows]
    load = np.zeros_like(gain)
    for k, cost in enumerate(problem.cost):
        rise = cost[rows] - cost[rows, now][:, None].astype(np.float64)
        possible &= rise <= slack[k]
        load += weight[k] * np.maximum(rise, 0.0)
    density = np.where(possible, gain / np.maximum(load, _TINY), -np.inf)
    action = density.argmax(axis=1)
    kept = np.flatnonzero(possible[np.arange(rows.size), action])
    rows, now, action = rows[kept], now[kept], action[kept]
    change = (problem.cost[:, rows, action] - problem.cost[:, rows, now]).astype(np.float64)
    return rows, action, change, density[kept, action]
