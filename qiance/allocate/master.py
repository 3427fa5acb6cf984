"""The linear and the whole-number programs over few rows, solved by HiGHS.

The master program has a share of every kept action of the core's rows, a weight of every cut (sums of all
other rows at prices tried before), and what each limit is passed by, at a price: its optimum is the lowest
point of a model of the dual within a box of prices.
Source: Dantzig & Wolfe, Operations Research 8 (1960), 101-111; Balas & Zemel, Operations Research 28 (1980),
1130-1154, for the core.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, sparse

from qiance.allocate.program import Program
from qiance.evaluate.arrays import BoolArray, FloatArray, IndexArray

_TINY = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Units in which numbers are near 1: HiGHS's tolerances are absolute. value; use: `[K]`."""

    value: float
    use: FloatArray

    @property
    def price(self) -> FloatArray:
        """`[K]` a typical price."""
        return np.asarray(self.value / self.use)

    @classmethod
    def of(cls, program: Program) -> Scale:
        """From the mean size of values and uses."""
        worth = np.abs(program.value - program.value[:, :1]).max(axis=1).mean(dtype=np.float64)
        use = np.abs(program.coefficients()).max(axis=2, initial=0.0).mean(axis=1)
        value = float(worth) or 1.0
        return cls(value, np.where(use > 0, use, np.maximum(np.abs(program.bound), 1.0)))


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """Sums of the rows outside of the core at J prices. value: `[J]`; use: `[J, K]`."""

    value: FloatArray
    use: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Prices that the master may choose. low, high: `[K]`."""

    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """price: `[K]`; value: the model's at it; share: `[n, A]` of each action; weight: `[J]` of each cut."""

    price: FloatArray
    value: float
    share: FloatArray
    weight: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """The kept actions of the core as columns. row, action: `[C]`."""

    row: IndexArray
    action: IndexArray


def solve_master(core: Program, kept: BoolArray, cuts: Cuts, box: Box | None, scale: Scale) -> Solved | None:
    """The master's optimum, or None where no plan keeps the limits (without a box) or HiGHS fails.

    kept: `[n, A]` actions of the core that may be chosen. box None: any price, no limit may be passed.
    """
    cells = _Cells(*np.nonzero(kept))
    count, limits = cells.row.size, core.bound.size
    worth = np.concatenate([core.value[kept].astype(np.float64), cuts.value])
    use = np.hstack([core.coefficients()[:, kept], cuts.use.T]) / scale.use[:, None]
    elastic = 0 if box is None else limits
    ones = sparse.identity(elastic, format="csr")
    above = sparse.hstack([sparse.csr_matrix(use), -ones, ones]) if elastic else sparse.csr_matrix(use)
    cost = -worth / scale.value
    if box is not None:
        # Passing limit k costs its highest price, leaving it unused earns its lowest: prices stay between.
        cost = np.concatenate([cost, box.high / scale.price, -box.low / scale.price])
    total = cost.size
    right = core.bound / scale.use
    capped = _caps(core, cells, total)
    if capped is not None:
        above, right = sparse.vstack([above, capped[0]]), np.concatenate([right, capped[1]])
    once = _once(cells, len(kept), cuts.value.size, total)
    found = optimize.linprog(
        cost, above, right, once, np.ones(once.shape[0]), bounds=(0, None), method="highs"
    )
    if found.status != 0:
        return None
    price = np.maximum(-np.asarray(found.ineqlin.marginals[:limits]), 0.0) * scale.price
    if box is not None:
        # HiGHS keeps bounds only within its tolerance, and a negative price would give no bound.
        price = np.clip(price, box.low, box.high)
    share = np.zeros(kept.shape)
    share[kept] = found.x[:count]
    return Solved(price, -float(found.fun) * scale.value, share, found.x[count : count + cuts.value.size])


def solve_relaxation(program: Program) -> Solved | None:
    """The linear relaxation of a whole program, or None where no plan keeps the limits."""
    everything = np.ones(program.value.shape, dtype=np.bool_)
    kept = everything if program.admissible is None else program.admissible
    none = Cuts(np.zeros(0), np.zeros((0, program.bound.size)))
    return solve_master(program, kept, none, None, Scale.of(program))


def _once(cells: _Cells, rows: int, cuts: int, total: int) -> Any:
    """Every row has shares of 1 in all, and so have the cuts."""
    count = cells.row.size
    row = np.concatenate([cells.row, np.full(cuts, rows)])
    return sparse.csr_matrix((np.ones(row.size), (row, np.arange(count + cuts))), (rows + (cuts > 0), total))


def _caps(core: Program, cells: _Cells, total: int) -> tuple[Any, FloatArray] | None:
    """The frequency cap of each person of the core who has more rows than the cap."""
    if core.person is None:
        return None
    giving = np.flatnonzero(cells.action > 0)
    person = core.person[cells.row[giving]]
    rows_of = np.bincount(core.person)
    giving, person = giving[rows_of[person] > core.cap], person[rows_of[person] > core.cap]
    if not giving.size:
        return None
    number = np.unique(person, return_inverse=True)[1]
    count = int(number.max()) + 1
    matrix = sparse.csr_matrix((np.ones(giving.size), (number, giving)), (count, total))
    return matrix, np.full(count, float(core.cap))


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """HiGHS prints a line of its own to standard output, whatever it is told; there it would spoil results
    that are read from a pipe."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A whole-number plan of the rows. choice: `[n]`; bound: no plan of them is worth more."""

    choice: IndexArray
    bound: float


def solve_whole(rows: Program, kept: BoolArray, scale: Scale, gap: float, nodes: int) -> Whole | None:
    """The best whole-number choice among the kept actions `[n, A]`, within `gap` (of the value) and after at
    most `nodes` nodes of the search; None where there is none, or none was found.

    The cap of `rows` is for these rows alone. HiGHS keeps limits within a tolerance only, so limits that its
    answer passes by a hair are tightened and it is asked again.
    """
    cells = _Cells(*np.nonzero(kept))
    cost = -rows.value[kept].astype(np.float64) / scale.value
    use = sparse.csr_matrix(rows.coefficients()[:, kept] / scale.use[:, None])
    once = _once(cells, len(kept), 0, cost.size)
    fixed = [optimize.LinearConstraint(once, 1, 1)]
    capped = _caps(rows, cells, cost.size)
    if capped is not None:
        fixed.append(optimize.LinearConstraint(capped[0], -np.inf, capped[1]))
    right = rows.bound.copy()
    for _ in range(6):
        limits = [optimize.LinearConstraint(use, -np.inf, right / scale.use)] if right.size else []
        with _stdout_to_stderr():
            found = optimize.milp(
                cost,
                integrality=np.ones(cost.size),
                bounds=optimize.Bounds(0, 1),
                constraints=[*limits, *fixed],
                options={"mip_rel_gap": gap, "node_limit": nodes},
            )
        if found.x is None:
            return None
        share = np.zeros(kept.shape)
        share[kept] = found.x
        choice = share.argmax(axis=1)
        passed = rows.sums(choice).use - rows.bound
        if (passed <= rows.slack).all():
            bound = found.mip_dual_bound
            return Whole(choice, np.inf if bound is None else -float(bound) * scale.value)
        right = np.where(passed > rows.slack, right - 2 * passed - _TINY, right)
    return None
