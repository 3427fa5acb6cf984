"""One budget: the exact shadow price, by bracketing on the dual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.allocate.problem import Plan, Problem
from qiance.evaluate.arrays import FloatArray, IndexArray

_MAX_STEPS = 200


@dataclass(slots=True, eq=False)
class _End:
    """An end of the bracket: its price, total value and spend there, and the choices of the open users."""

    price: float
    value: float
    spend: float
    choice: IndexArray

    def line(self, price: float, budget: float) -> float:
        """The tangent of L that this end's choices give, at `price`."""
        return self.value + price * (budget - self.spend)


def solve_single(problem: Problem) -> tuple[FloatArray, Plan, NDArray[Any]]:
    """(shadow price `[1]`, a plan that fits, numbers of the users who are undecided at that price).

    L(λ) = λ·B + Σ_u max_a (v − λ·c) is convex and piecewise linear. The bracket moves to where the lines of
    its ends cross (there the search ends, if L touches the crossing) and to its middle, in turn. A user who
    chooses the same at both ends does so in between too, and is left out of later steps: the work shrinks
    with the bracket. The plan takes the dear end's choice for undecided users.
    Source: Sinha & Zoltners, Operations Research 27 (1979), 503-515 (the
    relaxation of the multiple-choice knapsack).
    """
    free = problem.plan(problem.best(np.zeros(1)))
    if problem.fits(free):
        return np.zeros(1), free, np.empty(0, dtype=np.int64)
    ceiling = problem.price_ceilings()
    dear = problem.plan(problem.best(ceiling))
    rows = np.flatnonzero(free.choice != dear.choice)
    low = _End(0.0, free.value, float(free.cost[0]), free.choice[rows])
    high = _End(float(ceiling[0]), dear.value, float(dear.cost[0]), dear.choice[rows])
    choice = dear.choice.copy()
    price, rows = _bracket(problem, low, high, rows, choice)
    return np.array([price]), problem.plan(choice), rows


def _bracket(
    problem: Problem, low: _End, high: _End, rows: NDArray[Any], choice: IndexArray
) -> tuple[float, NDArray[Any]]:
    """Shrink the bracket; writes the dear end's choices into `choice` `[U]`; (price, undecided rows)."""
    budget = float(problem.budget[0])
    part = problem.rows(rows, problem.budget)
    for step in range(_MAX_STEPS):
        price = _next_price(low, high, step)
        if not low.price < price < high.price:
            break
        mid = _at(part, price, high)
        crossing = high.line(price, budget)
        if step % 2 == 0 and mid.line(price, budget) <= crossing + 1e-13 * abs(crossing):
            return price, rows
        if mid.spend <= budget:
            high = mid
            choice[rows] = mid.choice
        else:
            low = mid
        open_users = np.flatnonzero(low.choice != high.choice)
        if open_users.size < rows.size:
            rows, part = rows[open_users], part.rows(open_users, problem.budget)
            low.choice, high.choice = low.choice[open_users], high.choice[open_users]
    # Both ends are tangent to L within rounding: the lower of them is the better bound.
    best = min((low, high), key=lambda end: end.line(end.price, budget))
    return best.price, rows


def _next_price(low: _End, high: _End, step: int) -> float:
    if step % 2 == 0:
        return (low.value - high.value) / (low.spend - high.spend)
    middle = low.price * high.price
    return float(np.sqrt(middle)) if middle > 0 else high.price / 2


def _at(part: Problem, price: float, high: _End) -> _End:
    """The end at `price`: settled users add the same as at `high`, so only open users are priced."""
    plan, same = part.plan(part.best(np.array([price]))), part.plan(high.choice)
    value = high.value + (plan.value - same.value)
    return _End(price, value, high.spend + float(plan.cost[0] - same.cost[0]), plan.choice)
