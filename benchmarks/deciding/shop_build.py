"""Builds the shop that every server decides for, by the product's own code."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from benchmarks.deciding.shop import DAYS, START, Shop, Size, user_ids
from benchmarks.harness import log
from benchmarks.targeting.world import training_columns
from qiance.artifacts.manifest import write_artifact
from qiance.artifacts.pacing import write_rule
from qiance.decide.pacing import EvenPace
from qiance.decide.plan import KIND, PLAN_FILE, Plan
from qiance.domain import (
    Action,
    Audience,
    Catalogue,
    Channel,
    Creative,
    Item,
    Offer,
    OfferKind,
    Purpose,
    Strategy,
    StrategyKind,
    StrategyState,
)
from qiance.features.columns import EFFECT_SCHEMA
from qiance.features.transforms import EventIndex
from qiance.guard import Guard
from qiance.guard.gate import move_strategy
from qiance.ledger import Ledger, Override, load_or_create_key
from qiance.market import CONTACT_COST
from qiance.workspace import Snapshot, Workspace
from training.effect.fit import TrainSettings, train_effect
from training.effect.split import split_by_unit
from training.featurise import (
    apply_definitions,
    materialise,
    snapshot_at,
    stage_repository,
    write_feature_tables,
)

BRIEF = "bench"
MIN_MARGIN = 0.05
BUDGET = 10**14
TASTES = 5  # categories that a user buys from
PER_STRATEGY = 10
CHANNELS = (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER, Channel.PUSH)
DEPTHS = (0.0, 0.1, 0.2, 0.3)
STOCK_VIEWS = ("user_profile", "user_category", "item_state", "item_popularity")
STOCK_CONFIG = (
    "project: stock\nprovider: local\nregistry: registry.db\noffline_store:\n  type: file\n"
    "online_store:\n  type: sqlite\n  path: online.db\nentity_key_serialization_version: 3\n"
)


def build(shop: Shop) -> None:
    """Everything that `qiance run` leaves behind before it serves; facts.json is written last."""
    log(f"building a shop of {shop.size.users:,} users and {shop.size.items:,} items")
    rng = np.random.default_rng(shop.size.seed)
    workspace, items = shop.workspace, catalogue(shop.size, rng)
    snapshot = _build_features(shop, items, rng)
    log("  training the effect model")
    strategies = live_strategies(shop.size, items, rng)
    actions = [action for strategy in strategies for action in strategy.actions]
    model = _train(workspace, snapshot, actions, shop.size, rng)
    policy = _write_plan(workspace, model, snapshot.as_of)
    log("  writing the ledger")
    _fill_ledger(shop, strategies, items, model, policy)
    facts = {"model": model, "features": len(EFFECT_SCHEMA.names), "size": asdict(shop.size)}
    (shop.root / "facts.json").write_text(json.dumps(facts))


def catalogue(size: Size, rng: np.random.Generator) -> Catalogue:
    """Items of all categories, with prices from 1 to 40 and costs of about half of them."""
    price = np.round(rng.uniform(100, 4_000, size.items)).astype(int)
    cost = np.round(price * rng.uniform(0.4, 0.6, size.items)).astype(int)
    category = rng.integers(0, size.categories, size.items)
    brand = rng.integers(0, size.brands, size.items)
    return Catalogue(
        tuple(
            Item(
                f"item-{n:06d}",
                f"Product {n}",
                f"category {category[n]}",
                "grocery",
                f"brand {brand[n]}",
                int(price[n]),
                int(cost[n]),
            )
            for n in range(size.items)
        )
    )


def events(size: Size, items: Catalogue, rng: np.random.Generator) -> pa.Table:
    """Purchase lines over `DAYS` days, in baskets of three, mostly from a user's own categories."""
    users, lines = size.users, size.lines
    by_category = _items_of_categories(size, items)
    tastes = np.argsort(rng.random((users, size.categories)), axis=1)[:, :TASTES]
    category = np.take_along_axis(tastes, rng.integers(0, tastes.shape[1], (users, lines)), axis=1).ravel()
    rank = (rng.random(users * lines) ** 2 * by_category[1][category]).astype(int)
    item = by_category[0][by_category[2][category] + rank]
    days = np.sort(rng.uniform(0, DAYS, (users, (lines + 2) // 3)), axis=1)
    basket = np.tile(np.arange(lines) // 3, users)
    user = np.repeat(np.arange(users), lines)
    price = np.array([i.price for i in items])[item]
    discount = np.where(rng.random(len(item)) < 0.3, price // 5, 0)
    at = START.timestamp() + days[user, basket] * 86_400
    names = np.array(user_ids(size), dtype=object)[user]
    columns = {
        "user_id": pa.array(names, pa.string()),
        "item_id": pa.array(np.array([i.item_id for i in items], dtype=object)[item], pa.string()),
        "type": pa.array(["purchase"] * len(item)),
        "occurred_at": pa.array((at * 1e6).astype(np.int64), pa.timestamp("us", "UTC")),
        "basket_id": pa.array([f"{u}-{b}" for u, b in zip(user, basket, strict=True)]),
        "value": pa.array(price - discount),
        "discount": pa.array(discount),
        "quantity": pa.array(np.ones(len(item), dtype=np.int64)),
    }
    return pa.table(columns)


def _items_of_categories(size: Size, items: Catalogue) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of items grouped by category, and per category how many there are and where they begin."""
    code = np.array([int(item.category.split()[1]) for item in items])
    counts = np.bincount(code, minlength=size.categories)
    return np.argsort(code, kind="stable"), counts, np.concatenate([[0], np.cumsum(counts)[:-1]])


def _build_features(shop: Shop, items: Catalogue, rng: np.random.Generator) -> Snapshot:
    size, workspace = shop.size, shop.workspace
    categories = sorted({item.category for item in items})
    index = EventIndex.build(
        events(size, items, rng),
        user_ids(size),
        {item.item_id: item.category for item in items},
        items,
        categories,
        {item.item_id: item.brand for item in items},
    )
    day = START.timestamp() / 86_400 + DAYS
    write_feature_tables(index, items, [day], workspace.features)
    snapshot = snapshot_at(index, items, day)
    snapshot.save(workspace.snapshot)
    log("  filling the online store")
    with _quiet():
        stage_repository(workspace.features)
        materialise(workspace.features, snapshot.as_of)
    if size.stock:
        log("  filling Feast's own online store")
        with _quiet():
            _fill_stock(shop, snapshot.as_of)
    return snapshot


def _fill_stock(shop: Shop, as_of: datetime) -> None:
    workspace = shop.workspace
    shutil.copytree(workspace.features / "data", shop.stock / "data")
    for file in ("features.py", "embeddings.yaml"):
        shutil.copy(workspace.features / file, shop.stock / file)
    (shop.stock / "feature_store.yaml").write_text(STOCK_CONFIG)
    apply_definitions(shop.stock)
    materialise(shop.stock, as_of, STOCK_VIEWS)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Feast's remarks on its own experiments."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def live_strategies(size: Size, items: Catalogue, rng: np.random.Generator) -> list[Strategy]:
    """One action on each of `size.actions` items, ten to a strategy, open to everybody."""
    chosen = [list(items)[row] for row in rng.choice(len(items), size.actions, replace=False)]
    groups = [chosen[start : start + PER_STRATEGY] for start in range(0, len(chosen), PER_STRATEGY)]
    return [_strategy(number, group) for number, group in enumerate(groups)]


def _strategy(number: int, items: Sequence[Item]) -> Strategy:
    name, depth = f"s{number:03d}", DEPTHS[number % len(DEPTHS)]
    kind = StrategyKind.PROMOTION if depth else StrategyKind.AD
    actions = [
        _action(f"{name}-{place}", name, kind, item, depth, CHANNELS[place % len(CHANNELS)])
        for place, item in enumerate(items)
    ]
    return Strategy(
        strategy_id=name,
        brief_id=BRIEF,
        kind=kind,
        title=f"{len(items)} products at {depth:.0%} off",
        audience=Audience("everybody"),
        actions=tuple(actions),
        starts=START,
        ends=datetime(2190, 1, 1, tzinfo=UTC),
    )


def _action(
    name: str, strategy_id: str, kind: StrategyKind, item: Item, depth: float, channel: Channel
) -> Action:
    words = "{discount} {product} until {ends}" if depth else "{product}, fresh today"
    return Action(
        action_id=name,
        strategy_id=strategy_id,
        kind=kind,
        item_id=item.item_id,
        offer=Offer(OfferKind.PERCENT, depth) if depth else Offer(),
        creative=Creative(channel, "en", words, "Take {product} home this week", "Shop now"),
        channel=channel,
        contact_cost=CONTACT_COST[channel],
    )


def _train(
    workspace: Workspace,
    snapshot: Snapshot,
    actions: Sequence[Action],
    size: Size,
    rng: np.random.Generator,
) -> str:
    """Version of an effect model of the default size, trained for one epoch: its speed is what matters."""
    user, action = rng.integers(0, size.users, size.rows), rng.integers(0, len(actions), size.rows)
    contacts = rng.integers(0, 4, size.rows).astype(np.float64)
    columns = training_columns(snapshot, actions, user, action, contacts)
    liking = 0.05 + 0.3 * np.nan_to_num(columns["category_share"]) + 0.3 * columns["depth"]
    click = rng.random(size.rows) < liking
    conversion = click & (rng.random(size.rows) < 0.4)
    sales = conversion * columns["price"] * (1.0 - columns["depth"])
    labels = {"click": click, "conversion": conversion, "sales": sales}
    labels["margin"] = 0.5 * sales
    table = pa.table({name: pa.array(values) for name, values in {**columns, **labels}.items()})
    trained = train_effect(
        table,
        EFFECT_SCHEMA,
        labels=tuple(labels),
        split=split_by_unit(user, size.seed),
        settings=TrainSettings(epochs=1, workers=0, threads=1, seed=size.seed),
        out=workspace.artifacts,
        storage=workspace.root / "training",
        data_fingerprint=f"bench-{size.seed}",
        units=user,
    )
    return trained.artifact.version


def _write_plan(workspace: Workspace, model: str, starts: datetime) -> str:
    """Version of a policy: even pacing over 10 days from `starts`."""
    pacing = write_rule(workspace.artifacts, EvenPace(), metrics={}, data_fingerprint="bench")
    plan = Plan(BRIEF, 0.5, 0.1, starts, 10, pacing.version, model)
    artifact = write_artifact(
        workspace.artifacts,
        KIND,
        {PLAN_FILE: plan.save},
        metrics={},
        parents=(model, pacing.version),
        feature_service=EFFECT_SCHEMA.service,
        schema_hash=EFFECT_SCHEMA.hash,
        data_fingerprint=starts.isoformat(),
    )
    return artifact.version


def _fill_ledger(
    shop: Shop, strategies: Sequence[Strategy], catalogue: Catalogue, model: str, policy: str
) -> None:
    """Everybody is known and has agreed, the strategies are live, the budget is ample."""
    workspace = shop.workspace
    key = load_or_create_key(workspace.key_file)
    ledger = Ledger.open(f"sqlite:///{workspace.root / 'ledger.db'}", key=key)
    ids = shop.users()
    for start in range(0, len(ids), 5_000):
        ledger.set_consents(ids[start : start + 5_000], dict.fromkeys(Purpose, True), by="bench")
    ledger.open_budget(BRIEF, BUDGET)
    ledger.put_strategies(strategies)
    guard = Guard.load(min_margin=MIN_MARGIN)  # as the service has it, which then need not lint again
    for strategy in strategies:
        for state in (StrategyState.APPROVED, StrategyState.LIVE):
            move_strategy(ledger, guard, catalogue, strategy.strategy_id, state, "bench", "bench")
    ledger.set_versions(model=model)
    ledger.launch_policy(
        policy, shadow_price=0.5, override=Override("bench", "there is no log to judge it by")
    )
    ledger.close()
