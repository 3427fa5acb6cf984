"""Several budgets: shadow prices by cutting planes on the dual, then an LP on the users at the edge."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from qiance.allocate.problem import Plan, Problem
from qiance.allocate.single import solve_single
from qiance.evaluate.arrays import FloatArray, IndexArray

_SAMPLE = 20_000
_TOLERANCE = 1e-9
# Users at the edge of their choice that are solved together exactly, and the LP's largest size.
_CORE_USERS = 1_500
_CORE_CELLS = 60_000


def solve_several(problem: Problem, max_evaluations: int = 60) -> tuple[FloatArray, IndexArray]:
    """(shadow prices `[K]` that about minimise L(λ) = λ·B + Σ_u max_a (v − Σ_k λ_k c_k), choice `[U]`).

    The choice is a mixture of the best ones at the last prices, and meets the budgets but for rounding: it
    matters where many users are tied, as when values are known per segment only. Large problems are solved on
    a sample of the users first.
    Source: Kelley, J. SIAM 8 (1960), 703-712, with a trust region around the best price (Marsten, Hogan &
    Blankenship, Operations Research 23 (1975), 389-405).
    """
    ceilings = problem.price_ceilings()
    if problem.users > 2 * _SAMPLE:
        # Seeded, so that the same problem gets the same prices.
        rows = np.sort(np.random.default_rng(0).choice(problem.users, _SAMPLE, replace=False))
        sample = problem.rows(rows, problem.budget * (_SAMPLE / problem.users))
        start = np.minimum(solve_several(sample, max_evaluations)[0], ceilings)
        return _cutting_planes(problem, start, ceilings, max_evaluations, reach=0.02)
    start = np.zeros(problem.budget.size)
    for k in range(start.size):
        alone = Problem(problem.value, problem.cost[k : k + 1], problem.budget[k : k + 1], problem.admissible)
        start[k] = solve_single(alone)[0][0] / start.size
    return _cutting_planes(problem, np.minimum(start, ceilings), ceilings, max_evaluations, reach=1.0)


def _cutting_planes(
    problem: Problem, start: FloatArray, ceilings: FloatArray, max_evaluations: int, reach: float
) -> tuple[FloatArray, IndexArray]:
    """(best price, mixed choice); `reach` is the first trust region as a share of the prices at the start."""
    best, radius = start, reach * np.maximum(start, 0.1 * start.mean() + 1e-3 * ceilings)
    lowest, slope = _evaluate(problem, start)
    points, values, slopes, weights = [start], [lowest], [slope], np.ones(1)
    for _ in range(max_evaluations):
        low, high = np.maximum(best - radius, 0.0), np.minimum(best + radius, ceilings)
        price, model, weights = _master(points, values, slopes, low, high)
        bounded = ((price <= low) & (low > 0)) | ((price >= high) & (high < ceilings))
        if lowest - model <= _TOLERANCE * abs(lowest):
            if not bounded.any():
                break
            radius = radius * 4
            continue
        value, slope = _evaluate(problem, price)
        points.append(price)
        values.append(value)
        slopes.append(slope)
        if value < lowest:
            good = lowest - value > 0.5 * (lowest - model)
            best, lowest = price, value
            radius = radius * (2.0 if good and bounded.any() else 1.0)
        else:
            radius = radius * 0.6
    return best, _mix(problem, points, weights)


def _mix(problem: Problem, points: list[FloatArray], weights: FloatArray) -> IndexArray:
    """Each user takes the best action at one of `points`, the shares of users being `weights`."""
    ends = np.cumsum(weights) / max(float(weights.sum()), _TOLERANCE)
    # Evenly spaced and shuffled with a fixed seed: the shares are met to a user, the same way every time.
    place = np.random.default_rng(0).permutation(problem.users) / problem.users
    turn = np.minimum(np.searchsorted(ends, place, side="right"), weights.size - 1)
    choice = np.zeros(problem.users, dtype=np.int64)
    for number in np.flatnonzero(weights > _TOLERANCE):
        choice = np.where(turn == number, problem.best(points[number]), choice)
    return choice


def _evaluate(problem: Problem, price: FloatArray) -> tuple[float, FloatArray]:
    """L at `price` and a subgradient of it, budget − spend."""
    plan = problem.plan(problem.best(price))
    return problem.dual_value(price, plan), problem.budget - plan.cost


def _master(
    points: list[FloatArray],
    values: list[float],
    slopes: list[FloatArray],
    low: FloatArray,
    high: FloatArray,
) -> tuple[FloatArray, float, FloatArray]:
    """Lowest point of the cuts within the box: (price `[K]`, value there, weight of each cut)."""
    count, scale = low.size, max(abs(values[0]), 1.0)
    width = np.maximum(high - low, np.finfo(np.float64).tiny)
    rows, right = np.empty((len(points), count + 1)), np.empty(len(points))
    for cut, (point, value, slope) in enumerate(zip(points, values, slopes, strict=True)):
        rows[cut, :count], rows[cut, count] = slope * width / scale, -1.0
        right[cut] = (slope @ (point - low) - value) / scale
    limits = [(0.0, 1.0)] * count + [(None, None)]
    found = optimize.linprog([0.0] * count + [1.0], A_ub=rows, b_ub=right, bounds=limits, method="highs")
    if found.status != 0:
        return low, -np.inf, np.full(len(points), 1 / len(points))
    # HiGHS keeps bounds only within its tolerance, and a negative price would not give a bound.
    price = np.clip(low + found.x[:count] * width, low, high)
    weights = np.maximum(-np.asarray(found.ineqlin.marginals, dtype=np.float64), 0.0)
    return price, float(found.x[count]) * scale, weights


def solve_core(
    problem: Problem, price: FloatArray, choice: IndexArray
) -> tuple[FloatArray, Plan, NDArray[Any]] | None:
    """Solve the users nearest to a change of mind at `price` together, by linear programming.

    Everybody else keeps `choice` `[U]`. A vertex of the LP leaves at most K users split between
    actions; those do nothing, and `fill` raises them again. (prices of the LP `[K]`, plan that fits, core
    rows), or None where the others alone pass a budget. Source: Balas & Zemel, Operations Research 28 (1980),
    1130-1154, for the core of a knapsack.
    """
    rows = _core_rows(problem, price)
    fixed = choice.copy()
    fixed[rows] = 0
    rest = problem.budget - problem.plan(fixed).cost
    if (rest < 0).any():
        return None
    solved = solve_relaxation(problem.rows(rows, rest), method="highs-ds")
    if solved is None:
        return None
    share, prices = solved
    whole = share.max(axis=1) > 1 - 1e-7
    fixed[rows] = np.where(whole, share.argmax(axis=1), 0)
    plan = problem.plan(fixed)
    return (prices, plan, rows) if problem.fits(plan) else None


def _core_rows(problem: Problem, price: FloatArray) -> NDArray[Any]:
    most = max(min(_CORE_USERS, _CORE_CELLS // problem.actions), 1)
    if problem.users <= most:
        return np.arange(problem.users)
    if problem.actions == 1:
        return np.arange(most)
    top = np.partition(problem.priced(price), -2, axis=1)[:, -2:]
    return np.sort(np.argpartition(top[:, 1] - top[:, 0], most)[:most])


def solve_relaxation(problem: Problem, method: str) -> tuple[FloatArray, FloatArray] | None:
    """(shares `[U, A]`, prices `[K]`) of the linear relaxation by HiGHS, or None where it finds no answer."""
    users, actions = problem.value.shape
    cells = np.arange(users * actions)
    once = sparse.csr_matrix((np.ones(cells.size), (cells // actions, cells)), shape=(users, cells.size))
    costs = sparse.csr_matrix(problem.cost.reshape(problem.budget.size, -1).astype(np.float64))
    upper = np.ones(cells.size)
    if problem.admissible is not None:
        upper = problem.admissible.astype(np.float64).ravel()
    found = optimize.linprog(
        -problem.value.astype(np.float64).ravel(),
        A_ub=costs,
        b_ub=problem.budget,
        A_eq=once,
        b_eq=np.ones(users),
        bounds=np.column_stack([np.zeros(cells.size), upper]),
        method=method,
    )
    if found.status != 0:
        return None
    prices = np.maximum(-np.asarray(found.ineqlin.marginals, dtype=np.float64), 0.0)
    return np.asarray(found.x, dtype=np.float64).reshape(users, actions), prices
