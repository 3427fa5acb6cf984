"""The simulated shop that bandits are tried in: who comes, what is known of them, what can be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from qiance.domain import (
    CONTROL_ACTION,
    Action,
    Catalogue,
    Channel,
    Creative,
    Item,
    Offer,
    OfferKind,
    StrategyKind,
    UserTable,
)
from qiance.evaluate.arrays import BoolArray, FloatArray, IndexArray
from qiance.market import CONTACT_COST, ActionTable, Market
from qiance.market.responses import CHANNELS
from qiance.workspace import Snapshot

NUM_ITEMS = 4
KINDS = ((Channel.EMAIL, 0.0), (Channel.EMAIL, 0.2), (Channel.MAILER, 0.2))
CONSENT = 0.8  # of a user to a channel, an assumption
_CATEGORIES = ("coffee", "cheese", "soup", "snacks")


@dataclass(frozen=True, eq=False)
class Shop:
    """U users and A actions, of which the first is control.

    features: names of what the bandit sees; known: `[U, d − 1]` all but the last, contacts of the last week.
    admissible: `[U, A]`, by the channels that a user agreed to. start: the first day.
    """

    template: Market
    table: ActionTable
    features: tuple[str, ...]
    known: FloatArray
    admissible: BoolArray
    start: datetime

    @property
    def arms(self) -> tuple[str, ...]:
        """Ids of the actions."""
        return tuple(action.action_id for action in self.table.actions)

    def market(self, seed: int) -> Market:
        """A fresh market; the same seed answers the same decisions alike."""
        of = self.template
        return Market(of.population, of.catalogue, of.intercepts, seed, of.coefficients)

    def context(self, users: IndexArray, contacts: FloatArray) -> FloatArray:
        """`[n, d]` what is known of `users` `[n]` with so many `contacts` `[n]` in the last seven days."""
        return np.column_stack([self.known[users], np.log1p(contacts)])

    @property
    def moments(self) -> tuple[FloatArray, FloatArray]:
        """`[d]` centre and scale of the features; the contacts, unknown beforehand, are left as they are."""
        spread = self.known.std(axis=0)
        scale = np.append(np.where(spread > 0, spread, 1.0), 1.0)
        return np.append(self.known.mean(axis=0), 0.0), scale


def made_up_shop(num_users: int = 20_000) -> Shop:
    """A shop of a made-up population and four items, always the same one."""
    rng = np.random.default_rng(0)
    columns = {
        "discount_share": rng.beta(2.0, 8.0, num_users),
        "baskets_90d": rng.poisson(8.0, num_users).astype(np.float64),
        "avg_basket": rng.lognormal(8.0, 0.5, num_users),
    }
    items = [
        Item(name, name.capitalize(), name, "grocery", "own", 600 + 150 * n, 380 + 80 * n)
        for n, name in enumerate(_CATEGORIES)
    ]
    users = UserTable(tuple(f"u{n}" for n in range(num_users)), columns)
    shares = rng.dirichlet(np.ones(len(items)), num_users)
    market = Market.build(users, shares, _CATEGORIES, Catalogue(tuple(items)))
    return _shop(market, users, shares, datetime(2025, 1, 1, tzinfo=UTC))


def shop_of(snapshot: Snapshot) -> Shop:
    """The shop of a run: its users, and the best seller of each of its four best-selling categories."""
    shares = snapshot.user_category["category_share"]
    market = Market.build(snapshot.users, shares, snapshot.categories, snapshot.catalogue)
    return _shop(market, snapshot.users, shares, snapshot.as_of)


def _shop(market: Market, users: UserTable, shares: FloatArray, start: datetime) -> Shop:
    first = {item.category: item for item in reversed(list(market.catalogue))}
    chosen = [first[name] for name in market.population.categories if name in first][:NUM_ITEMS]
    actions = (CONTROL_ACTION, *(_action(item, *kind) for item in chosen for kind in KINDS))
    places = [market.population.categories.index(item.category) for item in chosen]
    named = {
        "discount_share": users.columns["discount_share"],
        "log_baskets_90d": np.log1p(users.columns["baskets_90d"]),
        "log_avg_basket": np.log1p(users.columns["avg_basket"]),
        **{f"root_share_{n}": np.sqrt(shares[:, place]) for n, place in enumerate(places)},
    }
    table = market.table(actions)
    return Shop(
        template=market,
        table=table,
        features=(*named, "log_contacts_7d"),
        known=np.nan_to_num(np.column_stack(list(named.values()))),
        admissible=_consented(len(users), table.channel),
        start=start,
    )


def _consented(num_users: int, channel: IndexArray) -> BoolArray:
    agreed = np.random.default_rng(1).random((num_users, len(CHANNELS))) < CONSENT
    agreed[:, CHANNELS.index(Channel.NONE)] = True
    return np.asarray(agreed[:, channel])


def _action(item: Item, channel: Channel, depth: float) -> Action:
    words: Sequence[str] = ("A good {product} for your table", "Take {product} home", "Shop")
    return Action(
        action_id=f"{item.item_id}-{channel.value}-{round(100 * depth)}",
        strategy_id="bandit",
        kind=StrategyKind.PROMOTION,
        item_id=item.item_id,
        offer=Offer(OfferKind.PERCENT, depth) if depth else Offer(),
        creative=Creative(channel, "en", *words),
        channel=channel,
        contact_cost=CONTACT_COST[channel],
    )
