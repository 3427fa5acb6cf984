"""Allocation by shadow prices: whole, within every limit, with a bound on what any allocation could earn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.allocate.dual import Found, InfeasibleError, find_prices
from qiance.allocate.integral import EXACT_CELLS, settle
from qiance.allocate.limits import Budget, FrequencyCap, Limit
from qiance.allocate.memory import Memory, Source, Tell, Told, mixed
from qiance.allocate.problem import Plan, Problem, checked_problem
from qiance.allocate.program import Program, Sums, compile_program
from qiance.allocate.rounding import fill, repair
from qiance.allocate.single import solve_single
from qiance.evaluate.arrays import FloatArray, IndexArray

# A plan this close to its bound (as a share of it) is not searched any further; the second figure holds for
# plans of more user × action cells than the third.
_CLOSE, _CLOSE_LARGE = 1e-9, 1e-6
_ALL_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class LimitUse:
    """How a limit ended. name; used and limit: in its units, a least amount where `minimum`; price: value
    gained per unit by which it is relaxed, 0 where it does not bind; kind: `budget`, `daily budget`, `stock`,
    `segment floor`, `margin floor` or `depth fairness`."""

    name: str
    used: float
    limit: float
    price: float
    minimum: bool = False
    kind: str = "budget"


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """An allocation and how far it can be from the best.

    choice: `[U]` action of each row. value: its sum. cost: `[K]` spend of each budget, never over it.
    shadow_price: `[K]` λ, value gained per further unit of each budget; 0 where a budget does not bind.
    bound: no allocation within the limits is worth more. gap: bound − value, ≥ 0.
    limits: every budget and limit with its use and price.
    """

    choice: IndexArray
    shadow_price: FloatArray
    value: float
    cost: FloatArray
    bound: float
    gap: float
    limits: tuple[LimitUse, ...] = ()


def allocate(
    value: ArrayLike,
    cost: ArrayLike,
    budget: ArrayLike,
    admissible: ArrayLike | None = None,
    *,
    limits: Sequence[Limit | FrequencyCap] = (),
    progress: Tell | None = None,
) -> Allocation:
    """Choose one of A actions for each of U rows to maximise total value within the budgets and limits.

    value: `[U, A]` expected value of each action, 0 for doing nothing (column 0).
    cost: `[U, A]`, or `[K, U, A]` for K budgets, expected cost ≥ 0; column 0 costs nothing.
    budget: a number, or `[K]`, ≥ 0, in the units of the cost.
    admissible: `[U, A]` bool, or None for all; column 0 always is.
    limits: of `qiance.allocate.limits`: daily budgets, stock, segment floors, a margin floor over the plan,
        a frequency cap, fairness of depth. Floors of single actions belong into `admissible`
        (`qiance.decide.margin_floor_mask`).
    progress: told of each look at all rows, with a share in [0, 1] and a sentence.

    Lagrangian relaxation: with a price λ_k on each limit every row takes argmax_a value − Σ_k λ_k use_k,
    and L(λ) = λ·bound + Σ_u max_a (…) bounds every allocation from above; λ minimises it. Rows that are
    undecided at λ are settled so that the limits hold. Problems of at most 2,500 cells are solved to the end.
    With one budget and no limits the gap is at most one row's gain.
    ValueError names the array, the row and the value that is wrong; InfeasibleError, which is one, the limits
    that no allocation can keep.
    Source: Everett, Operations Research 11 (1963), 399-417; Fisher, Management Science 27 (1981), 1-18.
    """
    problem = checked_problem(value, cost, budget, admissible)
    if problem.budget.size == 1 and not limits and problem.value.size > EXACT_CELLS:
        return _one_budget(problem)
    count = problem.budget.size
    names = ["budget"] if count == 1 else [f"budget {k}" for k in range(count)]
    budgets = [
        Budget(amount, float(most), name)
        for name, amount, most in zip(names, problem.cost, problem.budget, strict=True)
    ]
    return _solve(compile_program(problem.value, problem.admissible, [*budgets, *limits]), count, progress)


def _solve(program: Program, budgets: int, progress: Tell | None) -> Allocation:
    source: Source = Memory(program)
    source = source if progress is None else Told(source, progress)
    free = np.zeros(program.bound.size)
    first = source.look(free, 0.0)
    if program.fits(first.use):
        sums, price, bound = program.sums(program.best(free)), free, first.value
    else:
        found = find_prices(source, first)
        price = found.price
        sums, bound = _whole(program, found)
    gap = max(bound - sums.value, 0.0)
    return Allocation(
        choice=sums.choice,
        shadow_price=price[:budgets],
        value=sums.value,
        cost=sums.use[:budgets],
        bound=bound,
        gap=gap,
        limits=limit_uses(program, sums.use, price),
    )


def _whole(program: Program, found: Found) -> tuple[Sums, float]:
    """The whole-number plan of all rows, and a bound."""
    choice = mixed(program, found.points, found.solved.weight)

    def totals(core: IndexArray) -> tuple[float, FloatArray]:
        choice[found.edge.rows] = core
        sums = program.sums(choice)
        return sums.value, sums.use

    settled = settle(found, len(choice), totals)
    choice[found.edge.rows] = settled.choice
    return program.sums(choice), settled.bound


def limit_uses(program: Program, use: FloatArray, price: FloatArray) -> tuple[LimitUse, ...]:
    """Of every limit of a program, from a plan's use and prices `[K]`; minima turned round again."""
    of = [block for block in program.blocks for _ in block.names]
    found = []
    for name, one, bound, paid, block in zip(program.names, use, program.bound, price, of, strict=True):
        sign = -1.0 if block.minimum else 1.0
        used, limit = sign * float(one) + 0.0, sign * float(bound) + 0.0
        found.append(LimitUse(name, used, limit, float(paid), block.minimum, block.kind))
    return tuple(found)


def _one_budget(problem: Problem) -> Allocation:
    price, plan, rows = solve_single(problem)
    bound = problem.dual_value(price, problem.plan(problem.best(price)))
    plan = _finish(problem, plan, price, bound, rows)
    use = LimitUse("budget", float(plan.cost[0]), float(problem.budget[0]), float(price[0]))
    gap = max(bound - plan.value, 0.0)
    return Allocation(plan.choice, price, plan.value, plan.cost, bound, gap, (use,))


def _finish(problem: Problem, plan: Plan, price: FloatArray, bound: float, rows: NDArray[Any]) -> Plan:
    """Repair and fill: first the users in `rows`, then all where that is cheap or much is left to gain."""
    plan = fill(problem, repair(problem, plan, price), price, rows)
    enough = _CLOSE if problem.value.size <= _ALL_CELLS else _CLOSE_LARGE
    if bound - plan.value > enough * abs(bound):
        plan = fill(problem, plan, price)
    return plan


__all__ = ["Allocation", "InfeasibleError", "LimitUse", "allocate"]
