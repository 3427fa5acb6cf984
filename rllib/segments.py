"""Segments of the simulated market: mean users who tire of contacts and stock up on offers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Catalogue, Channel, UserTable
from qiance.market import CONTACT_COST, ActionTable, Market, Population, Truth
from qiance.market.calibrate import Intercepts, calibrate
from qiance.market.responses import CHANNELS, Coefficients
from rllib.world import load_world

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# With 0.5 a contact every second day is best in the long run. With the market's own 0.12 one every day is,
# and there would be nothing to plan.
FATIGUE = 0.5
NUM_SEGMENTS = 4
USUAL_WORDS = 0.25  # log-odds of words that name the product, as in qiance.market.calibrate
PRICE, UNIT_COST = 900.0, 500.0  # minor units
_COLUMNS = ("affinity", "sensitivity", "organic", "basket", "taste")


@dataclass(frozen=True)
class Segments:
    """S groups of users, each answering as its mean user does, and the item on offer.

    users: a row per segment, one category. size: `[S]` users in it. price, unit_cost: of the item, minor
    units. channel: of every contact.
    """

    users: Population
    size: Floats
    intercepts: Intercepts
    coefficients: Coefficients
    price: float = PRICE
    unit_cost: float = UNIT_COST
    channel: Channel = Channel.EMAIL

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def contact_cost(self) -> float:
        """Of one contact, minor units."""
        return float(CONTACT_COST[self.channel])

    @cached_property
    def control_margin(self) -> Floats:
        """Expected margin of a user who is left alone, `[S]`, minor units a day."""
        return np.asarray(self.users.organic * self.users.basket * self.users.margin_rate)

    def crowd(self, segment: Ints) -> Crowd:
        """Users of the given segments, `[n]`."""
        return Crowd(self, segment)


class Crowd:
    """Users, each the mean of a segment, who can be contacted all at once."""

    def __init__(self, segments: Segments, segment: Ints) -> None:
        columns = {name: getattr(segments.users, name)[segment] for name in _COLUMNS}
        users = replace(segments.users, user_ids=(), **columns)
        self._market = Market(users, Catalogue(()), segments.intercepts, 0, segments.coefficients)
        self._segments, self._rows = segments, np.arange(segment.size)
        self.control_margin = segments.control_margin[segment]

    def contacted(self, depth: Floats, demand: Floats, fatigue: Floats, stock: Floats) -> Truth:
        """Expectations of everybody when contacted with `depth` off, by `qiance.market.Market.truth`.

        demand: log-odds on top of the usual. fatigue, stock: decayed contacts, and units bought on offer, per
        user. All are `[n]`.
        """
        self._market.fatigue, self._market.stock = fatigue, stock[:, None]
        return self._market.truth(self._rows, self._offers(depth, demand), self._rows)

    def gain(self, truth: Truth) -> Floats:
        """Margin of a contact over leaving the user alone, its cost taken off, `[n]` minor units."""
        return np.asarray(truth.margin - self._segments.contact_cost - self.control_margin)

    def _offers(self, depth: Floats, demand: Floats) -> ActionTable:
        """An action per user: the same item and channel, a depth and a demand of its own."""
        segments, same = self._segments, np.ones(depth.size)
        return ActionTable(
            actions=(),
            channel=np.full(depth.size, CHANNELS.index(segments.channel)),
            category=np.zeros(depth.size, dtype=np.int64),
            depth=depth,
            price=segments.price * same,
            paid=segments.price * (1.0 - depth),
            unit_cost=segments.unit_cost * same,
            contact_cost=segments.contact_cost * same,
            words=USUAL_WORDS + demand,
        )


def split(
    population: Population,
    intercepts: Intercepts,
    coefficients: Coefficients,
    num_segments: int,
    category: int = 0,
) -> Segments:
    """Cut users into equal groups by price sensitivity, for an item of the given category (its column)."""
    if not 1 <= num_segments <= len(population):
        raise ValueError(
            f"num_segments: {num_segments} is outside [1, {len(population)}], the number of users"
        )
    groups = np.array_split(np.argsort(population.sensitivity, kind="stable"), num_segments)
    own = replace(population, affinity=population.affinity[:, [category]])
    columns = {
        name: np.stack([getattr(own, name)[rows].mean(axis=0) for rows in groups]) for name in _COLUMNS
    }
    names = {
        "user_ids": tuple(str(n) for n in range(num_segments)),
        "categories": (population.categories[category],),
    }
    users = replace(population, **names, **columns)
    return Segments(users, np.array([float(len(rows)) for rows in groups]), intercepts, coefficients)


def made_up(num_segments: int = NUM_SEGMENTS, num_users: int = 2_000, fatigue: float = FATIGUE) -> Segments:
    """Segments of a made-up population, always the same one: what the environment uses without a world."""
    rng = np.random.default_rng(0)
    users = UserTable(
        user_ids=tuple(f"u{n}" for n in range(num_users)),
        columns={
            "discount_share": rng.random(num_users),
            "baskets_90d": rng.poisson(8.0, num_users).astype(np.float64),
            "avg_basket": rng.lognormal(8.0, 0.5, num_users),
        },
    )
    shares = rng.dirichlet(np.ones(4), num_users)
    population = Population.build(users, shares, ("a", "b", "c", "d"), seed=0)
    coefficients = Coefficients(fatigue=fatigue)
    return split(population, calibrate(population, coefficients), coefficients, num_segments)


def segments_of(
    world: str | Path | None, num_segments: int = NUM_SEGMENTS, fatigue: float = FATIGUE
) -> Segments:
    """Segments of the users in a file of `rllib.world.save_world`, or of a made-up population for None.

    The item on offer is of the first category. fatigue: log-odds of a click lost per recent contact.
    """
    if world is None:
        return made_up(num_segments, fatigue=fatigue)
    found = load_world(Path(world))
    coefficients = replace(found.coefficients, fatigue=fatigue)
    return split(found.population, found.intercepts, coefficients, num_segments)
