"""A small shop for tests that need no data package."""

from __future__ import annotations

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
from qiance.market import CONTACT_COST, Market

CATEGORIES = ("coffee", "cheese", "soup")


def small_catalogue() -> Catalogue:
    return Catalogue(
        tuple(
            Item(
                f"i{n}", f"{category} number {n}", category, "grocery", "National", 400 + 50 * n, 280 + 30 * n
            )
            for n, category in enumerate(CATEGORIES * 2)
        )
    )


def small_users(size: int = 400, seed: int = 0) -> tuple[UserTable, np.ndarray]:
    """Users with features, and `[U, C]` category shares."""
    rng = np.random.default_rng(seed)
    baskets = rng.gamma(2.0, 6.0, size).round()
    average = rng.lognormal(8.0, 0.4, size)
    columns = {
        "recency_days": rng.exponential(15.0, size),
        "baskets_90d": baskets,
        "spend_90d": baskets * average,
        "avg_basket": average,
        "discount_share": rng.beta(2.0, 8.0, size),
        "tenure_days": rng.uniform(30.0, 360.0, size),
        "categories_90d": rng.integers(1, 4, size).astype(float),
    }
    users = UserTable(tuple(f"u{n}" for n in range(size)), columns)
    return users, rng.dirichlet([1.0, 1.0, 1.0], size)


def small_market(size: int = 400, seed: int = 0, num_users: int | None = None) -> Market:
    users, shares = small_users(size)
    return Market.build(users, shares, CATEGORIES, small_catalogue(), seed, num_users)


def action(item: Item, channel: Channel, depth: float = 0.0, language: str = "en") -> Action:
    return Action(
        action_id=f"{item.item_id}-{channel.value}-{depth}-{language}",
        strategy_id="s",
        kind=StrategyKind.PROMOTION,
        item_id=item.item_id,
        offer=Offer(OfferKind.PERCENT, depth) if depth else Offer(),
        creative=Creative(
            channel, language, "A good {product} for your table", "Take {product} home", "Shop"
        ),
        channel=channel,
        contact_cost=CONTACT_COST[channel],
    )


def grid_of_actions(market: Market) -> tuple[Action, ...]:
    items = list(market.catalogue)[:3]
    channels = (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER)
    return (CONTROL_ACTION, *(action(i, c, d) for i in items for c in channels for d in (0.0, 0.2)))
