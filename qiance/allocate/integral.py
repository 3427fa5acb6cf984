"""From shares to a whole-number plan: almost all rows are whole already, a few are settled exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qiance.allocate.dual import Found
from qiance.allocate.master import Scale, solve_whole
from qiance.allocate.program import Program, Sums
from qiance.evaluate.arrays import FloatArray, IndexArray

# Problems of at most so many cells are searched to the end; of larger ones, so many rows are settled.
EXACT_CELLS = 2_500
_SETTLED_ROWS = 150
_NODES, _NODES_EXACT = 200, 2_000


def whole_plan(program: Program, found: Found) -> tuple[Sums, float]:
    """(a plan that keeps the limits, a bound on every plan).

    Rows outside of the core follow the cuts' weights, rows of the core the master's shares. Rows that are
    split, and then those nearest to a change of mind, are left open and settled by a whole-number program;
    more of them where that finds no plan.
    """
    choice = _mixed(program, found)
    share = found.solved.share
    choice[found.edge.rows] = share.argmax(axis=1)
    order = _undecided_first(found)
    count = len(order) if program.value.size <= EXACT_CELLS else _SETTLED_ROWS
    scale = Scale.of(found.edge.program)
    while True:
        plan, bound = _settle(program, found, choice, order[:count], scale)
        if plan is not None:
            return plan, min(bound, found.bound)
        if count >= len(order):
            raise ArithmeticError(
                "no whole-number plan was found that keeps every limit, though shares of actions do; "
                "relax a limit slightly"
            )
        count *= 8


def _mixed(program: Program, found: Found) -> IndexArray:
    """Each row's best action at one of the prices tried, the shares of rows being the cuts' weights."""
    weight = found.solved.weight
    if weight.size == 0:
        return np.zeros(len(program.value), dtype=np.int64)
    turn = turns(len(program.value), weight)
    if program.person is not None:  # a person's rows take turns together, or the cap would not hold
        turn = turns(int(program.person.max()) + 1, weight)[program.person]
    choice = np.zeros(len(program.value), dtype=np.int64)
    for number in np.unique(turn):
        choice = np.where(turn == number, program.best(found.points[number]), choice)
    return choice


def turns(count: int, weight: FloatArray) -> IndexArray:
    """`[count]` numbers of the cuts, each as often as its weight says, in seeded random order."""
    ends = np.cumsum(np.where(weight > 1e-9, weight, 0.0))
    place = np.random.default_rng(0).permutation(count) / count
    last = int(np.flatnonzero(weight > 1e-9)[-1])
    return np.minimum(np.searchsorted(ends / ends[-1], place, side="right"), last)


def _undecided_first(found: Found) -> IndexArray:
    """`[n]` rows of the core: split ones, then by how near their second action is at the prices."""
    core, share = found.edge.program, found.solved.share
    net = np.where(found.edge.kept, core.priced(found.price), -np.inf)
    order = np.sort(net, axis=1)
    lag = order[:, -1] - order[:, -2] if net.shape[1] > 1 else np.zeros(len(net))
    lag = np.where(share.max(axis=1) < 1 - 1e-7, -1.0, lag)
    first = np.argsort(lag, kind="stable")
    if core.person is None:
        return np.asarray(first, dtype=np.int64)
    # Whole persons, each at the place of their first row.
    rank = np.empty(len(first), dtype=np.int64)
    rank[first] = np.arange(len(first))
    place = np.full(int(core.person.max()) + 1, len(first), dtype=np.int64)
    np.minimum.at(place, core.person, rank)
    return np.asarray(np.lexsort((core.person, place[core.person])), dtype=np.int64)


def _settle(
    program: Program, found: Found, choice: IndexArray, free: IndexArray, scale: Scale
) -> tuple[Sums | None, float]:
    core = found.edge.program
    if core.person is not None and free.size < len(core.person):
        free = np.flatnonzero(np.isin(core.person, core.person[free]))
    rows = found.edge.rows[free]
    without = program.sums(choice)
    own = program.rows(rows, program.bound)
    part = own.sums(choice[rows])
    left = replace(own, bound=program.bound - (without.use - part.use), slack=program.slack)
    everything = rows.size == len(program.value)
    exact = program.value.size <= EXACT_CELLS
    gap = 1e-5 if exact else 1e-6 * max(abs(found.bound) / max(abs(part.value), 1e-300), 1.0)
    nodes = _NODES_EXACT if exact else _NODES
    solved = solve_whole(left, found.edge.kept[free], scale, min(gap, 0.01), nodes)
    if solved is None:
        return None, np.inf
    final = choice.copy()
    final[rows] = solved.choice
    sums = program.sums(final)
    if not program.fits(sums.use):  # the parts' sums round otherwise than the whole
        return _shave(program, sums, rows), found.bound
    return sums, solved.bound if everything else np.inf


def _shave(program: Program, sums: Sums, rows: IndexArray) -> Sums | None:
    """Take actions back, least value first, for a rounding in the last place; None if that is not enough."""
    choice = sums.choice.copy()
    given = rows[choice[rows] > 0]
    for row in given[np.argsort(program.value[given, choice[given]], kind="stable")][:20]:
        choice[row] = 0
        found = program.sums(choice)
        if program.fits(found.use):
            return found
    return None
