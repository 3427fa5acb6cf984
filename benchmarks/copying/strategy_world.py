"""Segments of the simulated market in which whole strategies are tried, and what they truly bring.

A member of a segment is contacted every second day that a strategy runs, on a channel drawn from its mix. An
offer with a threshold holds on a contact with the chance that a basket of the user reaches it, and counts as
no offer otherwise; that a threshold makes baskets larger is not modelled. Before a strategy begins, the
fatigue and stock of earlier campaigns decay. Response functions, costs and outcomes are the market's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from scipy import stats
from sklearn.cluster import KMeans

from qiance.domain import (
    Action,
    Brief,
    Catalogue,
    Creative,
    Item,
    Money,
    Objective,
    Offer,
    OfferKind,
    StrategyKind,
    UserTable,
)
from qiance.market import CONTACT_COST, ActionTable, Market
from qiance.market.responses import CHANNELS as MARKET_CHANNELS
from qiance.proposer.vector import CHANNELS, Floats, Ints, Space, Vectors, rounded_shares
from training.propose.log import StrategyLog

ITEM = Item("item", "House coffee", "a", "grocery", "House", 900, 500)
PERIOD, EVERY = 21, 2
SPACE = Space(deepest=0.4, highest=6_000, period=PERIOD)
BRIEF = Brief(
    "brief",
    Objective.MARGIN,
    Money(1_000_000),
    datetime(2025, 3, 3, tzinfo=UTC),
    datetime(2025, 3, 3, tzinfo=UTC) + timedelta(days=PERIOD),
    channels=CHANNELS,
    n=1,
)
GOALS = tuple(Objective)
GROUP = (30, 90)


@dataclass(frozen=True)
class Truth:
    """Expected per member of a segment: cost, and by goal what is added to leaving the member alone."""

    cost: float
    value: dict[Objective, float]

    def gain(self, goal: Objective, budget: float) -> float:
        """What a budget per member brings per member."""
        return self.value[goal] * min(1.0, budget / max(self.cost, 1e-9))


class StrategyWorld:
    """A made-up population cut into `num_segments` clusters; another seed is another population."""

    def __init__(self, seed: int, num_segments: int, num_users: int) -> None:
        self.rng = np.random.default_rng([seed, 3])
        users = _users(num_users, self.rng)
        shares = self.rng.dirichlet(np.ones(4), num_users)
        self.market = Market.build(users, shares, tuple("abcd"), Catalogue((ITEM,)), seed)
        people = self.market.population
        tastes = people.taste[:, [MARKET_CHANNELS.index(channel) for channel in CHANNELS]]
        traits = np.column_stack([people.sensitivity, np.log(people.basket), people.affinity[:, 0], tastes])
        scaled = (traits - traits.mean(axis=0)) / traits.std(axis=0)
        code = KMeans(num_segments, n_init=1, random_state=seed).fit_predict(scaled)
        self.members = [np.flatnonzero(code == k) for k in range(num_segments)]
        self.fatigue = self.rng.uniform(0.0, 4.0, num_segments)
        self.stock = self.rng.uniform(0.0, 1.0, num_segments)
        columns = [users.columns["discount_share"], people.basket, shares[:, 0], *tastes.T]
        means = [[column[rows].mean() for column in columns] for rows in self.members]
        self.features = np.column_stack([means, self.fatigue, self.stock])
        self._tables: dict[float, ActionTable] = {}

    @property
    def feature_names(self) -> tuple[str, ...]:
        """As the log has them: what a shop knows of its segments, with past response by channel."""
        known = (
            "discount_share",
            "avg_basket",
            "category_share",
            *(c.value for c in CHANNELS),
            "contacts",
            "stock",
        )
        return tuple(f"segment_{name}" for name in known)

    def truth(self, segment: int, vectors: Vectors, row: int) -> Truth:
        """Expectation over channels, thresholds and purchases; of the stock its expectation counts."""
        users, table = self.members[segment], self._table(float(vectors.depth[row]))
        chance = self._chances(users, vectors, row)
        self._begin(segment, int(vectors.start[row]))
        cost, value = 0.0, dict.fromkeys(GOALS, 0.0)
        for _ in range(_contacts(vectors, row)):
            found = self.market.truth(users, table)
            each = {
                Objective.CLICKS: found.click,
                Objective.CONVERSIONS: found.conversion - found.organic,
                Objective.SALES: found.sales - self._control(users)[:, None],
                Objective.MARGIN: found.margin - table.contact_cost - self._control(users, True)[:, None],
            }
            for goal, numbers in each.items():
                value[goal] += float((numbers * chance).sum(axis=1).mean())
            cost += float((found.cost * chance).sum(axis=1).mean())
            self.market.fatigue[users] += 1.0
            self.market.stock[users, 0] += (found.conversion * chance * (table.depth > 0)).sum(axis=1)
            self.market.advance_day(EVERY)
        return Truth(cost, value)

    def trial(self, segment: int, vectors: Vectors, row: int) -> tuple[int, Floats, Floats]:
        """Size of a random group, and per user what was added: `[users, goals]`, and cost `[users]`.

        What is added is against the expectation of users left alone, as a large control group shows it.
        """
        rng = self.rng
        users = rng.choice(self.members[segment], rng.integers(*GROUP))
        users = np.unique(users)
        table, cost = self._table(float(vectors.depth[row])), np.zeros(len(users))
        total = np.zeros((len(users), 4))
        chance = self._chances(users, vectors, row).cumsum(axis=1)
        self._begin(segment, int(vectors.start[row]))
        for _ in range(_contacts(vectors, row)):
            choice = (rng.random((len(users), 1)) * chance[:, -1:] >= chance).sum(axis=1)
            found = self.market.step(users, table, choice)
            spent, margin = table.contact_cost[choice], found.margin - self._control(users, True)
            added = [found.click, found.conversion - self.market.population.organic[users]]
            added += [found.sales - self._control(users), margin - spent]
            total += np.stack(added, axis=1)
            cost += spent + found.discount
            self.market.advance_day(EVERY)
        return len(users), total, cost

    def log(self, per_segment: int) -> tuple[StrategyLog, Floats]:
        """Random strategies tried in every segment, and the standard error of each mean, `[n, goals]`."""
        size = per_segment * len(self.members)
        vectors = random_vectors(size, self.rng)
        segment = np.repeat(np.arange(len(self.members)), per_segment)
        trials = [self.trial(int(segment[row]), vectors, row) for row in range(size)]
        totals = np.stack([total.sum(axis=0) for _, total, _ in trials])
        errors = np.stack([total.std(axis=0, ddof=1) / np.sqrt(users) for users, total, _ in trials])
        return StrategyLog(
            np.array([f"s{k:02d}" for k in segment]),
            self.feature_names,
            self.features[segment],
            vectors,
            np.array([users for users, _, _ in trials]),
            np.array([cost.sum() for _, _, cost in trials]),
            {goal: totals[:, g] for g, goal in enumerate(GOALS)},
        ), errors

    def _table(self, depth: float) -> ActionTable:
        """An action per channel with the offer, then one per channel without."""
        if depth not in self._tables:
            offers = (Offer(OfferKind.PERCENT, depth) if depth > 0 else Offer(), Offer())
            actions = [_action(k, offer) for offer in offers for k in range(len(CHANNELS))]
            self._tables[depth] = self.market.table(actions)
        return self._tables[depth]

    def _begin(self, segment: int, wait: int) -> None:
        self.market.fatigue[:] = self.fatigue[segment]
        self.market.stock[:] = self.stock[segment]
        self.market.advance_day(wait)

    def _control(self, users: Ints, margin: bool = False) -> Floats:
        people = self.market.population
        return people.organic[users] * people.basket[users] * (people.margin_rate if margin else 1.0)

    def _chances(self, users: Ints, vectors: Vectors, row: int) -> Floats:
        """`[n, 2 · channels]` of the actions of `_table`: with the offer, and without."""
        people, threshold = self.market.population, float(vectors.threshold[row])
        holds = np.ones(len(users))
        if threshold > 0:
            sigma = people.basket_sigma
            middle = np.log(people.basket[users]) - 0.5 * sigma**2
            holds = stats.norm.sf((np.log(threshold) - middle) / sigma)
        return np.column_stack(
            [np.outer(holds, vectors.shares[row]), np.outer(1 - holds, vectors.shares[row])]
        )


def random_vectors(size: int, rng: np.random.Generator) -> Vectors:
    """Strategies as a shop might try them: a third without offer, half of the offers with a threshold."""
    shares = rounded_shares(rng.dirichlet(np.full(len(CHANNELS), 0.5), size) + 1e-9)
    return SPACE.decode(rng.integers(0, 3, size), rng.random((size, 4)), shares)


def _contacts(vectors: Vectors, row: int) -> int:
    return -(-int(vectors.days[row]) // EVERY)


def _users(size: int, rng: np.random.Generator) -> UserTable:
    columns = {
        "discount_share": rng.beta(2.0, 5.0, size),
        "baskets_90d": rng.poisson(8.0, size).astype(np.float64),
        "avg_basket": rng.lognormal(8.0, 0.5, size),
    }
    return UserTable(tuple(f"u{n}" for n in range(size)), columns)


def _action(k: int, offer: Offer) -> Action:
    channel = CHANNELS[k]
    words = Creative(channel, "en", "A good {product} for your table", "Take {product} home", "Shop")
    cost = CONTACT_COST[channel]
    return Action(
        f"{k}-{offer.depth}", "s", StrategyKind.PROMOTION, ITEM.item_id, offer, words, channel, cost
    )
