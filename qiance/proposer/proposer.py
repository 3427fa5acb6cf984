"""Proposals for a brief: drawn, made admissible, deduplicated, ranked by what they are expected to bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Brief, Item, Objective
from qiance.proposer.outcome import Expected, OutcomeModel
from qiance.proposer.vector import Floats, Ints, Space, Vectors, constrained

PREFIX = "segment_"  # of the names of features
DRAWN = 512
APART = 0.15


class Drawn(NamedTuple):
    """Strategies as the network draws them: form `[n]`, numbers `[n, 4]`, shares `[n, channels]`."""

    form: Ints
    numbers: Floats
    shares: Floats


class Network(Protocol):
    """What strategies are drawn from."""

    def sample(self, condition: NDArray[np.float32], seed: int) -> Drawn:
        """One strategy per row of `condition` `[n, C]`; the same for the same seed."""
        ...


@dataclass(frozen=True)
class Conditions:
    """How a brief becomes the condition of the network: features of the segment, goal, budget and rank."""

    goals: tuple[Objective, ...]
    centre: Floats
    scale: Floats
    budgets: Floats

    @property
    def width(self) -> int:
        return len(self.centre) + len(self.goals) + 2

    def rows(self, features: Floats, goal: Ints, budget: Floats, level: Floats) -> NDArray[np.float32]:
        """`[n, width]`; features: `[n, F]`, the others `[n]`; budgets are clipped to those learned from."""
        low, high = np.log(self.budgets[[0, -1]])
        share = (np.clip(np.log(budget), low, high) - low) / max(high - low, 1e-9)
        parts = [(features - self.centre) / self.scale, np.eye(len(self.goals))[goal]]
        numbers = np.stack([2 * share - 1, 2 * level - 1], axis=1)
        return np.column_stack([*parts, numbers]).astype(np.float32)


@dataclass(frozen=True)
class Learned:
    """All that proposals are made of."""

    network: Network
    outcomes: OutcomeModel
    conditions: Conditions
    space: Space


@dataclass(frozen=True)
class Request:
    """Who (features `[F]` of the segment), what for, with how much: budget per member, minor units."""

    features: Floats
    item: Item
    brief: Brief
    budget: float

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise ValueError(f"budget: {self.budget:g} per member is not above 0")


@dataclass(frozen=True)
class Proposals:
    """Best first. gain: `[n]` expected of the budget, per member of the segment, in units of the goal."""

    vectors: Vectors
    expected: Expected
    gain: Floats


@dataclass(frozen=True)
class Proposer:
    """A fitted proposer with the segments of its log (name → features `[F]`) and the names of features.

    asked: proposals ask for trials that rank from here to 1. version: of the artifact that it was read from.
    """

    fitted: Learned
    names: tuple[str, ...]
    segments: Mapping[str, Floats]
    asked: float
    version: str = ""

    @property
    def goals(self) -> tuple[Objective, ...]:
        return self.fitted.conditions.goals

    def propose(self, request: Request, seed: int = 0, drawn: int = DRAWN) -> Proposals:
        """`brief.n` proposals, or fewer where no more differ; all are admissible for item and brief."""
        return self.choose(request, self.draw(request, seed, drawn))

    def draw(self, request: Request, seed: int = 0, drawn: int = DRAWN) -> Vectors:
        """Admissible strategies as the network has them for this request, unranked and with repetitions."""
        goal = self._goal(request)
        rng = np.random.default_rng(seed)
        condition = self.fitted.conditions.rows(
            np.tile(request.features, (drawn, 1)),
            np.full(drawn, goal),
            np.full(drawn, request.budget),
            rng.uniform(self.asked, 1.0, drawn),
        )
        found = self.fitted.network.sample(condition, int(rng.integers(2**31)))
        vectors = self.fitted.space.decode(*found)
        return constrained(vectors, request.item, request.brief)

    def expect(self, request: Request, vectors: Vectors) -> Expected:
        """What `vectors` are expected to bring in this segment, by the goal of the brief."""
        self._goal(request)
        features = np.tile(request.features, (len(vectors), 1))
        return self.fitted.outcomes.expect(features, vectors, request.brief.objective)

    def choose(self, request: Request, vectors: Vectors) -> Proposals:
        """Of admissible strategies the best by expected gain that differ from each better one."""
        expected = self.expect(request, vectors)
        gain = expected.gain(request.budget)
        rows = _apart(self._positions(vectors), np.argsort(-gain, kind="stable"), request.brief.n)
        parts = Expected(expected.value[rows], expected.deviation[rows], expected.cost[rows])
        return Proposals(vectors.take(rows), parts, gain[rows])

    def _goal(self, request: Request) -> int:
        if len(request.features) != len(self.names):
            raise ValueError(
                f"features: {len(request.features)} given; the model knows {', '.join(self.names)}"
            )
        if request.brief.objective not in self.goals:
            known = ", ".join(goal.value for goal in self.goals)
            raise ValueError(
                f"goal: {request.brief.objective.value!r} was not in the log; use one of {known}"
            )
        return self.goals.index(request.brief.objective)

    def _positions(self, vectors: Vectors) -> Floats:
        """`[n, …]` in which equal strategies are equal and a difference of the form counts 1."""
        found = self.fitted.space.encode(vectors)
        return np.column_stack([np.eye(3)[found.form] / np.sqrt(2), found.numbers * found.used, found.shares])


def _apart(positions: Floats, order: Ints, count: int) -> Ints:
    """The first of `order`, each further than `APART` (Euclidean) from those before, at most `count`."""
    kept: list[int] = []
    for row in order:
        if len(kept) == count:
            break
        if not kept or np.linalg.norm(positions[kept] - positions[row], axis=1).min() > APART:
            kept.append(int(row))
    return np.array(kept, dtype=np.int64)
