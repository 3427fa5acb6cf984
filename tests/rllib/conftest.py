"""A small simulated market with a budget that binds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qiance.decide.rule import decide
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
from qiance.market import CONTACT_COST, ActionTable, Market
from rllib.world import Campaign, save_world

CATEGORIES = ("coffee", "cheese", "pasta", "fruit")
USERS, DAYS, BUDGET_SHARE = 400, 10, 0.4
CELLS = tuple(
    (category, channel, depth)
    for category in CATEGORIES
    for channel, depth in (
        (Channel.EMAIL, 0.0),
        (Channel.EMAIL, 0.2),
        (Channel.PUSH, 0.1),
        (Channel.MAILER, 0.3),
    )
)[:15]


def build_market(seed: int = 0) -> Market:
    rng = np.random.default_rng(seed)
    users = UserTable(
        user_ids=tuple(f"u{n}" for n in range(USERS)),
        columns={
            "discount_share": rng.random(USERS),
            "baskets_90d": rng.poisson(8.0, USERS).astype(np.float64),
            "avg_basket": rng.lognormal(8.0, 0.5, USERS),
        },
    )
    items = tuple(Item(name, name.title(), name, "food", "own", 900, 500) for name in CATEGORIES)
    shares = rng.dirichlet(np.ones(len(CATEGORIES)), USERS)
    return Market.build(users, shares, CATEGORIES, Catalogue(items), seed)


def build_table(market: Market) -> ActionTable:
    def action(number: int, category: str, channel: Channel, depth: float) -> Action:
        offer = Offer(OfferKind.PERCENT, depth) if depth else Offer()
        words = Creative(channel, "en", "Fresh {product} for your table tonight", "", "Buy now")
        cost = CONTACT_COST[channel]
        return Action(f"a{number}", "s", StrategyKind.AD, category, offer, words, channel, cost)

    return market.table([CONTROL_ACTION, *(action(n, *cell) for n, cell in enumerate(CELLS))])


def predict(market: Market, table: ActionTable) -> tuple[np.ndarray, np.ndarray]:
    """Value and cost `[U, A]` as a good predictor would have them: the truth of fresh users, with errors."""
    truth = market.truth(np.arange(USERS), table)
    value = truth.margin - table.contact_cost - truth.margin[:, :1]
    noise = np.random.default_rng(7).normal(1.0, 0.3, value.shape)
    return value * noise, truth.cost


def base_price(value: np.ndarray, cost: np.ndarray, budget: float, visits: float) -> float:
    """The price at which `visits` visits of a mean user spend `budget`, by bisection."""
    mask, low, high = np.ones(value.shape, dtype=bool), 0.0, 50.0
    for _ in range(40):
        price = 0.5 * (low + high)
        choice = decide(value, cost, mask, price, 0.0, uniforms=np.zeros(len(value))).choice
        spend = cost[np.arange(len(value)), choice].mean() * visits
        low, high = (price, high) if spend > budget else (low, price)
    return high


@pytest.fixture(scope="session")
def market() -> Market:
    return build_market()


@pytest.fixture(scope="session")
def table(market: Market) -> ActionTable:
    return build_table(market)


@pytest.fixture(scope="session")
def world(market: Market, table: ActionTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    value, cost = predict(market, table)
    visits = 0.5 * USERS * DAYS
    free = cost[np.arange(USERS), value.argmax(axis=1)].mean() * visits
    budget = int(BUDGET_SHARE * free)
    campaign = Campaign(budget, base_price(value, cost, budget, visits), 0.5 * USERS, DAYS)
    return save_world(tmp_path_factory.mktemp("world") / "world.npz", market, table, value, cost, campaign)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    # Read when Ray is imported: with it every Ray socket binds to loopback.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        yield
        return
    folder = tempfile.mkdtemp(prefix="qiance-")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
