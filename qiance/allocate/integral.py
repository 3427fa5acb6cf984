"""From shares to a whole-number plan: almost all rows are whole already, a few are settled exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qiance.allocate.dual import Found, InfeasibleError
from qiance.allocate.master import Scale, solve_whole
from qiance.evaluate.arrays import FloatArray, IndexArray

# Problems of at most so many cells are searched to the end, within the second figure of their value; of
# larger ones, so many rows are settled.
EXACT_CELLS, _EXACT_GAP = 2_500, 2e-5
_SETTLED_ROWS = 150
# Nodes of the search: where all costs are proportional to values a small problem can take ten thousands, each
# of them cheap; so what bounds the time is nodes × cells.
_NODES, _NODES_EXACT, _NODE_CELLS = 200, 500, 2_000_000
# (choice of the core's rows [n]) → (value, use [K]) of the whole plan, summed as it will be
Totals = Callable[[IndexArray], tuple[float, FloatArray]]


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """choice: `[n]` of the core's rows; value; use: `[K]` of the whole plan; bound: on every plan."""

    choice: IndexArray
    value: float
    use: FloatArray
    bound: float


def settle(found: Found, num_rows: int, totals: Totals) -> Settled:
    """Settle the core, the choices of all other rows being fixed (see `memory.mixed`).

    Rows of the core that are split, and then those nearest to a change of mind, are left open and settled by
    a whole-number program; more of them where that finds no plan. InfeasibleError where there is none.
    """
    core = found.edge.program
    choice = np.asarray(found.solved.share.argmax(axis=1), dtype=np.int64)
    exact = num_rows * found.edge.kept.shape[1] <= EXACT_CELLS
    order = _undecided_first(found)
    count = len(order) if exact else min(_SETTLED_ROWS, len(order))
    while True:
        free = order[:count]
        if core.person is not None:
            free = np.flatnonzero(np.isin(core.person, core.person[free]))
        settled = _settle(found, choice, free, totals, exact)
        if settled is not None:
            everything = exact and free.size == num_rows
            return settled if everything else replace(settled, bound=found.bound)
        if count >= len(order):
            raise InfeasibleError(
                core.names,
                "limits: no whole-number plan was found that keeps them all, though shares of actions do; "
                "relax one slightly",
            )
        count *= 8


def _undecided_first(found: Found) -> IndexArray:
    """`[n]` rows of the core: split ones, then by how near their second action is at the prices."""
    core, share = found.edge.program, found.solved.share
    net = np.where(found.edge.kept, core.priced(found.price), -np.inf)
    ranked = np.sort(net, axis=1)
    lag = ranked[:, -1] - ranked[:, -2] if net.shape[1] > 1 else np.zeros(len(net))
    first = np.argsort(np.where(share.max(axis=1) < 1 - 1e-7, -1.0, lag), kind="stable")
    if core.person is None:
        return np.asarray(first, dtype=np.int64)
    # Whole persons, each at the place of their first row.
    rank = np.empty(len(first), dtype=np.int64)
    rank[first] = np.arange(len(first))
    place = np.full(int(core.person.max()) + 1, len(first), dtype=np.int64)
    np.minimum.at(place, core.person, rank)
    return np.asarray(np.lexsort((core.person, place[core.person])), dtype=np.int64)


def _settle(
    found: Found, choice: IndexArray, free: IndexArray, totals: Totals, exact: bool
) -> Settled | None:
    core = found.edge.program
    own = core.rows(free, core.bound)
    part = own.sums(choice[free])
    left = replace(own, bound=core.bound - (totals(choice)[1] - part.use))
    # The gap is asked of the whole plan's value, not of these few rows'.
    share = abs(found.bound) / max(abs(part.value), 1e-12 * abs(found.bound), 1e-300)
    gap = _EXACT_GAP if exact else min(5e-7 * share, 0.01)
    kept = found.edge.kept[free]
    nodes = max(_NODES_EXACT, _NODE_CELLS // max(kept.size, 1)) if exact else _NODES
    whole = solve_whole(left, kept, Scale.of(core), gap, nodes)
    if whole is None:
        return None
    final = choice.copy()
    final[free] = whole.choice
    return _shaved(found, final, free, totals, min(whole.bound, found.bound))


def _shaved(
    found: Found, choice: IndexArray, free: IndexArray, totals: Totals, bound: float
) -> Settled | None:
    """The plan, after taking back what a rounding in the last place is over a limit; None if that fails."""
    core = found.edge.program
    given = free[choice[free] > 0]
    cheap = given[np.argsort(core.value[given, choice[given]], kind="stable")][:20]
    for row in (None, *cheap):
        if row is not None:
            choice[row] = 0
        value, use = totals(choice)
        if (use <= core.bound + core.slack).all():
            return Settled(choice, value, use, bound)
    return None
