"""A program in memory as a source of the sums and the undecided rows that the search for prices asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.allocate.program import Program, beyond_cap
from qiance.evaluate.arrays import BoolArray, FloatArray, IndexArray

# More undecided rows than this are thinned out at random: many are tied where values are known per segment.
MAX_EDGE_ROWS = 4_000


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """Rows whose choice may change near a price: their numbers, program, and the actions in question.

    rows: `[n]`; program: of those rows, with the bounds of the whole; kept: `[n, A]`.
    """

    rows: IndexArray
    program: Program
    kept: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Sums of the best choices at a price, and the rows at the edge. value; use: `[K]`."""

    value: float
    use: FloatArray
    edge: Edge


class Source(Protocol):
    """Where rows are kept: in memory, or in chunks on a cluster."""

    bound: FloatArray
    slack: FloatArray
    names: tuple[str, ...]
    num_rows: int
    num_actions: int

    def sample(self, rows: int) -> Program:
        """About so many rows, of whole persons, with the bounds scaled to them."""
        ...

    def everything(self) -> Edge:
        """All rows, with all their actions: for small problems."""
        ...

    def look(self, price: FloatArray, reach: float, worthless: bool = False) -> Look:
        """Sums at `price` `[K]`, and the rows with an action within `reach` of their best.

        worthless: as if every value were 0, which asks whether the limits can be kept at all.
        """
        ...


Tell = Callable[[float, str], None]


def looked(looks: int, within: float = 0.0) -> float:
    """A share for a progress bar after so many looks, `within` [0, 1) of the next one: how many there will be
    is not known, most problems take some ten."""
    return float(1.0 - 0.8 ** (looks + within))


class Told:
    """A source that tells of each look at it."""

    def __init__(self, source: Source, tell: Tell) -> None:
        self._source, self._tell, self._looks = source, tell, 0
        self.bound, self.slack, self.names = source.bound, source.slack, source.names
        self.num_rows, self.num_actions = source.num_rows, source.num_actions

    def sample(self, rows: int) -> Program:
        """See `Source.sample`."""
        return self._source.sample(rows)

    def everything(self) -> Edge:
        """See `Source.everything`."""
        return self._source.everything()

    def look(self, price: FloatArray, reach: float, worthless: bool = False) -> Look:
        """See `Source.look`."""
        found = self._source.look(price, reach, worthless)
        self._looks += 1
        self._tell(looked(self._looks), f"look {self._looks} at all rows")
        return found


class Memory:
    """All rows in one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.bound, self.slack, self.names = program.bound, program.slack, program.names
        self.num_rows, self.num_actions = program.value.shape

    def sample(self, rows: int) -> Program:
        """Seeded, so that the same problem gets the same prices."""
        return sample_rows(self.program, rows, self.num_rows)

    def everything(self) -> Edge:
        """See `Source.everything`."""
        return Edge(np.arange(self.num_rows), self.program, usable(self.program))

    def look(self, price: FloatArray, reach: float, worthless: bool = False) -> Look:
        """See `Source.look`."""
        program = without_value(self.program) if worthless else self.program
        choice, edge = look_at(program, price, reach)
        sums = program.sums(choice)
        return Look(sums.value, sums.use, edge)


def mixed(program: Program, points: FloatArray, weight: FloatArray) -> IndexArray:
    """`[U]` each row's best action at one of the prices `[J, K]` tried, as often as `[J]` weights say.

    In seeded random order; a person's rows take the same turn, or the cap would not hold.
    """
    choice = np.zeros(len(program.value), dtype=np.int64)
    if weight.size == 0:
        return choice
    people = len(choice) if program.person is None else int(program.person.max()) + 1
    turn = turns(np.random.default_rng(0).permutation(people) / people, weight)
    if program.person is not None:
        turn = turn[program.person]
    for number in np.unique(turn):
        choice = np.where(turn == number, program.best(points[number]), choice)
    return choice


def turns(place: FloatArray, weight: FloatArray) -> IndexArray:
    """Numbers of the prices that rows follow whose places are even in [0, 1): each as often as its weight."""
    ends = np.cumsum(np.where(weight > 1e-9, weight, 0.0))
    last = int(np.flatnonzero(weight > 1e-9)[-1])
    return np.minimum(np.searchsorted(ends / ends[-1], place, side="right"), last)


def usable(program: Program) -> BoolArray:
    """`[U, A]` the admissible actions."""
    everything = np.ones(program.value.shape, dtype=np.bool_)
    return everything if program.admissible is None else program.admissible


def without_value(program: Program) -> Program:
    """The same limits, nothing worth anything."""
    return replace(program, value=np.zeros_like(program.value))


def sample_rows(program: Program, rows: int, of: int) -> Program:
    """About `rows` rows of whole persons, the bounds scaled by what they are `of` all rows."""
    rng = np.random.default_rng(0)
    total = len(program.value)
    if rows >= total:
        chosen = np.arange(total)
    elif program.person is None:
        chosen = np.sort(rng.choice(total, rows, replace=False))
    else:
        people = int(program.person.max()) + 1
        some = rng.random(people) < rows / total
        chosen = np.flatnonzero(some[program.person])
    return program.rows(chosen, program.bound * (chosen.size / of))


def look_at(program: Program, price: FloatArray, reach: float) -> tuple[IndexArray, Edge]:
    """The best choices `[U]` at `price`, and the edge: rows with another action within `reach` of theirs."""
    rows = len(program.value)
    if program.person is not None:
        choice = program.best(price)
        return choice, _edge(program, price, choice, _near(program, price, choice, reach), reach)
    choice, near = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.bool_)
    for block in _blocks(rows):
        net = program.priced(price, block)
        choice[block] = net.argmax(axis=1)
        near[block] = np.count_nonzero(net >= net.max(axis=1, keepdims=True) - reach, axis=1) > 1
    return choice, _edge(program, price, choice, near, reach)


def _near(program: Program, price: FloatArray, choice: IndexArray, reach: float) -> BoolArray:
    near, spare = np.empty(len(choice), dtype=np.bool_), _cap_prices(program, price)
    for block in _blocks(len(choice)):
        near[block] = (_lag(program, price, choice, spare, block) <= reach).sum(axis=1) > 1
    return near


def _edge(program: Program, price: FloatArray, choice: IndexArray, near: BoolArray, reach: float) -> Edge:
    near[0] |= not near.any()  # a core of nobody is no program
    rows = np.flatnonzero(near)
    if rows.size > MAX_EDGE_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_EDGE_ROWS, replace=False))
    if program.person is not None:
        mine = np.zeros(int(program.person.max()) + 1, dtype=np.bool_)
        mine[program.person[rows]] = True
        rows = np.flatnonzero(mine[program.person])
    part = program.rows(rows, program.bound)
    chosen = choice[rows]
    lag = _lag(part, price, chosen, _cap_prices(part, price), slice(None))
    kept = (lag <= reach) & np.isfinite(lag)
    # Doing nothing gives back what a limit lacks, and the choice itself is always there.
    kept[:, 0] = True
    kept[np.arange(rows.size), chosen] = True
    return Edge(rows, part, kept)


def _blocks(rows: int) -> list[slice]:
    return [slice(start, start + (1 << 14)) for start in range(0, rows, 1 << 14)]


def _lag(
    program: Program, price: FloatArray, choice: IndexArray, spare: FloatArray | None, rows: slice
) -> FloatArray:
    """`[U', A]` how far an action is behind the choice, with the cap's own price; inf if inadmissible."""
    net = program.priced(price, rows)
    if spare is not None:
        net[:, 1:] -= spare[rows, None]
    chosen: NDArray[Any] = net[np.arange(len(net)), choice[rows]]
    return np.asarray(chosen[:, None] - net)


def _cap_prices(program: Program, price: FloatArray) -> FloatArray | None:
    """`[U]` what one more offer would be worth to the row's person: the best gain that the cap refuses."""
    if program.person is None:
        return None
    gain = np.empty(len(program.value))
    for block in _blocks(gain.size):
        net = program.priced(price, block)
        gain[block] = net.max(axis=1) - net[:, 0]
    refused = beyond_cap(program.person, gain, program.cap)
    worst = np.zeros(int(program.person.max()) + 1)
    np.maximum.at(worst, program.person[refused], gain[refused])
    return np.asarray(worst[program.person])
