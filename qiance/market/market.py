"""The simulated market: real households, products and prices; known responses.

It answers decisions with outcomes and can be asked for the truth, so that regret and true uplift can
be measured. It stands in for live traffic and is always called simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.decide.floors import discounted_price
from qiance.domain import Action, Catalogue, GridPrediction, UserTable
from qiance.features.words import creative_features
from qiance.market.calibrate import Intercepts, calibrate
from qiance.market.population import Population
from qiance.market.responses import (
    CHANNELS,
    Coefficients,
    click_logit,
    creative_logit,
    purchase_logit,
    sigmoid,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CREATIVE_INPUTS = (
    "headline_length",
    "exclamations",
    "mentions_product",
    "has_question",
    "has_discount_slot",
    "language_zh",
)
FATIGUE_DECAY = 0.8  # per day
STOCK_DECAY = 0.9  # per day
INDUCED_BASKET = 0.4  # of a usual basket; an assumption: a trip for one item is a small one


@dataclass(frozen=True)
class ActionTable:
    """Actions as arrays, `[A]` each; category is −1 for an action without an item.

    price: of one unit, minor units; paid: what is left of it after the offer, which holds for one unit.
    """

    actions: tuple[Action, ...]
    channel: Ints
    category: Ints
    depth: Floats
    price: Floats
    paid: Floats
    unit_cost: Floats
    contact_cost: Floats
    words: Floats

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Truth:
    """True expectations per row: click, organic and induced purchase probabilities, money in minor units.

    cost is the expected budget use (contact + discount given); margin is before the contact cost.
    """

    click: Floats
    organic: Floats
    induced: Floats
    sales: Floats
    margin: Floats
    cost: Floats

    @property
    def conversion(self) -> Floats:
        """Probability of any purchase in the outcome window."""
        return np.asarray(1.0 - (1.0 - self.organic) * (1.0 - self.induced), dtype=np.float64)


@dataclass(frozen=True)
class Responses:
    """Sampled outcomes per row: click and conversion in {0, 1}; sales, margin, discount in minor units."""

    click: Ints
    conversion: Ints
    sales: Ints
    margin: Ints
    discount: Ints


class Market:
    """Simulated users who answer actions; one instance is one world with its own state.

    State per user: fatigue (decayed count of contacts) and stock (decayed units bought on offer, per
    category). `step` changes it, `truth` does not, `advance_day` lets it decay.
    """

    def __init__(
        self,
        population: Population,
        catalogue: Catalogue,
        intercepts: Intercepts,
        seed: int = 0,
        coefficients: Coefficients | None = None,
    ) -> None:
        self.population = population
        self.catalogue = catalogue
        self.intercepts = intercepts
        self.coefficients = coefficients or Coefficients()
        self.rng = np.random.default_rng(seed)
        self.fatigue: Floats = np.zeros(len(population))
        self.stock: Floats = np.zeros((len(population), len(population.categories)))
        self.day = 0

    @classmethod
    def build(
        cls,
        users: UserTable,
        affinity: Floats,
        categories: Sequence[str],
        catalogue: Catalogue,
        seed: int = 0,
        num_users: int | None = None,
    ) -> Market:
        """A calibrated market over `users`; `num_users` resamples them (with noise) to another size."""
        population = Population.build(users, affinity, categories, seed, num_users)
        coefficients = Coefficients()
        return cls(population, catalogue, calibrate(population, coefficients), seed, coefficients)

    def table(self, actions: Sequence[Action]) -> ActionTable:
        """Arrays for `actions`; unknown items are refused with the id."""
        items = [None if a.item_id is None else self.catalogue[a.item_id] for a in actions]
        categories = {name: code for code, name in enumerate(self.population.categories)}
        words = {
            name: np.array([creative_features(a.creative)[name] if a.creative else 0.0 for a in actions])
            for name in CREATIVE_INPUTS
        }
        price = np.array([i.price if i else 1 for i in items], dtype=np.int64)
        depth = np.array([a.offer.depth for a in actions])
        known = np.array([i is not None for i in items])
        return ActionTable(
            actions=tuple(actions),
            channel=np.array([CHANNELS.index(a.channel) for a in actions], dtype=np.int64),
            category=np.array([categories.get(i.category, -1) if i else -1 for i in items], dtype=np.int64),
            depth=depth,
            price=np.where(known, price, 0.0),
            paid=np.where(known, discounted_price(price, depth), 0.0),
            unit_cost=np.array([float(i.unit_cost) if i else 0.0 for i in items]),
            contact_cost=np.array([float(a.contact_cost) for a in actions]),
            words=creative_logit(words, self.coefficients),
        )

    def truth(self, users: Ints, actions: ActionTable, choice: Ints | None = None) -> Truth:
        """Expectations of `users` `[n]` under every action (`[n, A]`), or under `choice` `[n]` only."""
        if choice is None:
            rows, columns = users[:, None], np.arange(len(actions))[None, :]
        else:
            rows, columns = users, choice
        population, c = self.population, self.coefficients
        channel, category = actions.channel[columns], actions.category[columns]
        depth, sensitivity = actions.depth[columns], population.sensitivity[rows]
        affinity = np.where(category >= 0, population.affinity[rows, category], 0.0)
        stock = np.where(category >= 0, self.stock[rows, category], 0.0)
        contacted = channel > 0
        logit = click_logit(
            self.intercepts.channel[channel],
            affinity,
            sensitivity,
            depth,
            actions.words[columns],
            population.taste[rows, channel],
            self.fatigue[rows],
            stock,
            c,
        )
        click = np.where(contacted, sigmoid(logit), 0.0)
        buying = purchase_logit(self.intercepts.purchase[channel], affinity, sensitivity, depth, stock, c)
        induced = click * np.where(contacted, sigmoid(buying), 0.0)
        organic = np.broadcast_to(population.organic[rows], induced.shape)
        return self._money(rows, columns, actions, click, induced, np.asarray(organic))

    def _money(
        self, rows: Ints, columns: Ints, actions: ActionTable, click: Floats, induced: Floats, organic: Floats
    ) -> Truth:
        depth, price = actions.depth[columns], actions.price[columns]
        # Baskets: a whole one on an organic trip, a part of one on a trip that only the contact induced.
        baskets = organic + (1.0 - organic) * induced * INDUCED_BASKET
        converted = 1.0 - (1.0 - organic) * (1.0 - induced)
        # Who has an offer in hand uses it on any trip: that is what cannibalisation is.
        taken = np.where(depth > 0, converted, induced)
        basket, rate = self.population.basket[rows], self.population.margin_rate
        paid = actions.paid[columns]
        return Truth(
            click=click,
            organic=organic,
            induced=induced,
            sales=baskets * basket + taken * paid,
            margin=baskets * basket * rate + taken * (paid - actions.unit_cost[columns]),
            cost=actions.contact_cost[columns] + taken * (price - paid),
        )

    def step(self, users: Ints, actions: ActionTable, choice: Ints) -> Responses:
        """Sample what `users` `[n]` do after action `choice` `[n]`, and remember the contacts."""
        truth = self.truth(users, actions, choice)
        draws = self.rng.random((3, len(users)))
        click = draws[0] < truth.click
        after_click = np.divide(truth.induced, truth.click, out=np.zeros(len(users)), where=truth.click > 0)
        induced = click & (draws[1] < after_click)
        organic = draws[2] < truth.organic
        offered = actions.depth[choice] > 0
        taken = np.where(offered, induced | organic, induced)
        sigma = self.population.basket_sigma
        noise = np.exp(sigma * self.rng.standard_normal(len(users)) - 0.5 * sigma**2)
        part = np.where(organic, 1.0, np.where(induced, INDUCED_BASKET, 0.0))
        basket = part * self.population.basket[users] * noise
        paid, price = actions.paid[choice], actions.price[choice]
        goods = basket * self.population.margin_rate + taken * (paid - actions.unit_cost[choice])
        self._remember(users, actions, choice, taken & offered)
        return Responses(
            click=click.astype(np.int64),
            conversion=(induced | organic).astype(np.int64),
            sales=np.rint(basket + taken * paid).astype(np.int64),
            margin=np.rint(goods).astype(np.int64),
            discount=(taken * (price - paid)).astype(np.int64),
        )

    def _remember(self, users: Ints, actions: ActionTable, choice: Ints, stocked: NDArray[np.bool_]) -> None:
        np.add.at(self.fatigue, users, (actions.channel[choice] > 0).astype(np.float64))
        np.add.at(self.stock, (users[stocked], actions.category[choice][stocked]), 1.0)

    def advance_day(self, days: int = 1) -> None:
        """Let fatigue and stock decay over `days`."""
        self.fatigue *= FATIGUE_DECAY**days
        self.stock *= STOCK_DECAY**days
        self.day += days

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """The truth in the form of a prediction (one draw): the oracle behind the same interface."""
        table = self.table(actions)
        rows = self.population.rows(user_ids)
        truth, control = self.truth(rows, table), self._control_margin(rows)
        return GridPrediction(
            click=_one_draw(truth.click),
            conversion=_one_draw(truth.conversion),
            sales=_one_draw(truth.sales),
            margin=_one_draw(truth.margin),
            control_margin=_one_draw(control),
            contact_cost=table.contact_cost.astype(np.float32),
        )

    def _control_margin(self, rows: Ints) -> Floats:
        population = self.population
        value = population.organic[rows] * population.basket[rows] * population.margin_rate
        return np.asarray(value, dtype=np.float64)


def _one_draw(values: Floats) -> NDArray[np.float32]:
    return values.astype(np.float32)[..., None]
