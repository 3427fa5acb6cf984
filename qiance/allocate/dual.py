"""The search for the shadow prices: few looks at all rows, and a model between that is exact at the edge.

L(λ) = λ·bound + Σ_u max_a (value − λ·use) is convex and bounds every plan from above. Rows whose choice may
change near the best price so far (the core) enter the model with their actions, all others by the sums that
they had at the prices tried. The model's lowest point within a trust region is the next price to try. It is
below L, so the search ends where they meet.
Source: Fisher, Management Science 27 (1981), 1-18; Marsten, Hogan & Blankenship, Operations Research 23
(1975), 389-405, for the trust region; master.py for the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qiance.allocate.master import Box, Cuts, Scale, Solved, solve_master
from qiance.allocate.memory import MAX_EDGE_ROWS, Edge, Look, Memory, Source, usable, without_value
from qiance.allocate.program import Program
from qiance.evaluate.arrays import FloatArray

# Whole problems of at most so many cells are solved in one go, and samples have at most so many.
WHOLE_CELLS = 10_000
_LOOKS = 25
# Above so many rows, prices are found on a sample of so many first.
_STEP_ROWS, _SAMPLE_ROWS = 200_000, 60_000
_TOLERANCE = 3e-7
# The first trust region, as a share of the prices found on the sample, and a fifth of that of typical ones.
_RADIUS = 0.1
_MAX_PRICE = 1e7  # of typical ones; a limit that is passed at this price cannot be kept


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """price: `[K]` λ; bound: L(λ); points: prices of the cuts `[J, K]`; solved: the last master; edge: its
    core. For a problem that is its own core, points is empty."""

    price: FloatArray
    bound: float
    points: FloatArray
    solved: Solved
    edge: Edge


class InfeasibleError(ValueError):
    """No plan keeps the limits; `limits` names those that cannot be kept together."""

    def __init__(self, limits: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.limits = limits


def find_prices(source: Source, first: Look) -> Found:
    """Prices that minimise L within 3e-7 of its value, or as near as 25 looks come.

    first: the look at price 0. InfeasibleError names the limits that cannot be kept.
    """
    if source.num_rows * source.num_actions <= WHOLE_CELLS:
        return _whole(source, source.everything())
    sample = source.sample(max(WHOLE_CELLS // source.num_actions, 1))
    scale = Scale.of(sample)
    start, radius, seen = _sample_price(sample, scale), _RADIUS, sample
    if source.num_rows > _STEP_ROWS:
        # Prices from some thousand rows are a few per cent off; on a million, more rows than the core has
        # change their mind within that.
        seen = source.sample(_SAMPLE_ROWS)
        middle = Memory(seen)
        look = middle.look(np.zeros_like(start), 0.0)
        search = _Search(middle, scale, _reach(seen, start), look)
        start, radius = search.run(start, _RADIUS, 1e-6).price, 0.1 * _RADIUS
    return _Search(source, scale, _reach(seen, start, source.num_rows), first).run(start, radius)


def _whole(source: Source, edge: Edge) -> Found:
    scale = Scale.of(edge.program)
    solved = solve_master(edge.program, edge.kept, _no_cuts(edge.program), None, scale)
    if solved is None:
        raise _infeasible(source, scale)
    look = source.look(solved.price, 0.0)
    bound = look.value + float(solved.price @ (source.bound - look.use))
    return Found(solved.price, bound, np.zeros((0, source.bound.size)), solved, edge)


def _no_cuts(program: Program) -> Cuts:
    return Cuts(np.zeros(0), np.zeros((0, program.bound.size)))


def _sample_price(sample: Program, scale: Scale) -> FloatArray:
    """Prices that solve the sample; a limit that it cannot keep gets a high one to begin with."""
    price = np.zeros_like(scale.price)
    for high in (1e2, 1e4, 1e6):
        box = Box(np.zeros_like(price), high * scale.price)
        solved = solve_master(sample, usable(sample), _no_cuts(sample), box, scale)
        if solved is None:
            break
        price = np.minimum(solved.price, 10 * scale.price)
        if (solved.price < box.high * (1 - 1e-9)).all():
            return solved.price
    return price


def _reach(sample: Program, price: FloatArray, rows: int | None = None) -> float:
    """How far behind the best an action may be, so that three quarters of `MAX_EDGE_ROWS` of `rows` have one
    that is not further behind."""
    rows = len(sample.value) if rows is None else rows
    net = sample.priced(price)
    second = np.partition(net, -2, axis=1)[:, -2] if net.shape[1] > 1 else np.full(len(net), -np.inf)
    behind = net.max(axis=1) - second
    behind = np.sort(behind[np.isfinite(behind)])  # rows with one action only have none that is near
    place = int(len(net) * min(0.75 * MAX_EDGE_ROWS / rows, 1.0))
    return float(behind[min(place, behind.size - 1)]) if behind.size else 0.0


class _Search:
    """The state of one search."""

    def __init__(self, source: Source, scale: Scale, reach: float, first: Look) -> None:
        self.source, self.scale, self.reach = source, scale, reach
        self.prices, self.looks = [np.zeros(source.bound.size)], [first]
        self.best, self.lowest, self.edge = self.prices[0], self._bound(self.prices[0], first), first.edge

    def _bound(self, price: FloatArray, look: Look) -> float:
        return look.value + float(price @ (self.source.bound - look.use))

    def run(self, start: FloatArray, share: float, tolerance: float = _TOLERANCE) -> Found:
        """Look at `start`, then at the model's lowest points until it meets L within `tolerance` of it.

        share: of the prices, the first trust region.
        """
        self._try(start)
        self.best, self.lowest = self.prices[1], self._bound(self.prices[1], self.looks[1])
        self.edge = self.looks[1].edge
        limit = _MAX_PRICE * self.scale.price
        radius = share * start + 0.2 * share * self.scale.price
        solved, core = None, self.edge
        for _ in range(_LOOKS):
            box = Box(np.maximum(self.best - radius, 0.0), np.minimum(self.best + radius, limit))
            found = solve_master(self.edge.program, self.edge.kept, self._cuts(), box, self.scale)
            if found is None:
                radius = radius / 2
                continue
            solved, core = found, self.edge
            edge_of_box = ((found.price <= box.low) & (box.low > 0)) | (found.price >= box.high)
            if self.lowest - found.value <= tolerance * abs(self.lowest):
                if not edge_of_box.any():
                    break
                if (found.price >= limit).any():
                    raise _infeasible(self.source, self.scale)
                radius = np.where(edge_of_box, radius * 8, radius)
                continue
            before = self.lowest
            self._try(found.price)
            if before - self.lowest > 0.3 * (before - found.value):
                radius = np.where(edge_of_box, radius * 4, radius)
            else:
                radius = radius * 0.5
        if solved is None:
            raise ArithmeticError("the master program was never solved; check the scale of values and costs")
        return Found(self.best, self.lowest, np.array(self.prices), solved, core)

    def _try(self, price: FloatArray) -> None:
        look = self.source.look(price, self.reach)
        self.prices.append(price)
        self.looks.append(look)
        bound = self._bound(price, look)
        if bound < self.lowest:
            self.best, self.lowest, self.edge = price, bound, look.edge

    def _cuts(self) -> Cuts:
        """What the rows outside of the core had at every price tried."""
        core = self.edge.program
        own = [core.sums(core.best(price)) for price in self.prices]
        value = [look.value - part.value for look, part in zip(self.looks, own, strict=True)]
        use = [look.use - part.use for look, part in zip(self.looks, own, strict=True)]
        return Cuts(np.array(value), np.array(use))


def _infeasible(source: Source, scale: Scale) -> InfeasibleError:
    """The limit that cannot be kept even alone, else those that cannot be kept together."""
    for k, name in enumerate(source.names):
        alone = np.zeros(source.bound.size)
        alone[k] = 1.0
        least = float(source.look(alone, 0.0, worthless=True).use[k])
        if least > source.bound[k] + source.slack[k]:
            said = (-source.bound[k], -least) if source.bound[k] < 0 else (source.bound[k], least)
            return InfeasibleError(
                (name,),
                f"{name}: cannot be met by any plan: it asks for {said[0]:g}, and the admissible actions "
                f"reach {said[1]:g}; relax it, or admit more actions",
            )
    together = _conflict(source, scale)
    return InfeasibleError(
        together,
        f"{', '.join(together)}: cannot be met together, though each can alone; relax one of them",
    )


def _conflict(source: Source, scale: Scale) -> tuple[str, ...]:
    """Limits with a price in the problem of passing the limits by as little as possible."""
    sample = without_value(source.sample(max(WHOLE_CELLS // source.num_actions, 1)))
    unit = Scale(1.0, scale.use)
    box = Box(np.zeros_like(unit.use), unit.price)
    solved = solve_master(sample, usable(sample), _no_cuts(sample), box, unit)
    if solved is None or not (solved.price > 0).any():
        return source.names
    return tuple(
        name for name, price in zip(source.names, solved.price * unit.use, strict=True) if price > 1e-6
    )
