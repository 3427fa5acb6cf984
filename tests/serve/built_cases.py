"""What a small shop is served from: synthetic purchases, features, a trained model, live strategies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qiance.artifacts.manifest import write_artifact
from qiance.artifacts.pacing import write_rule
from qiance.decide.pacing import EvenPace
from qiance.decide.plan import KIND, PLAN_FILE, Plan
from qiance.domain import (
    CONTROL_ACTION,
    Action,
    Audience,
    Catalogue,
    Channel,
    Creative,
    Effect,
    Interval,
    Item,
    Offer,
    OfferKind,
    Strategy,
    StrategyKind,
    StrategyState,
)
from qiance.features.columns import EFFECT_SCHEMA, NO_VECTORS, ActionColumns, assemble
from qiance.features.online import OnlineReader
from qiance.features.session import no_session
from qiance.features.transforms import EventIndex
from qiance.features.words import Vectors
from qiance.guard import Guard
from qiance.guard.gate import move_strategy
from qiance.ledger import Ledger, Override, load_or_create_key
from qiance.market import CONTACT_COST, Market
from qiance.market.simulate import ContactWindow, MarketLog, collect_log, uniform_over
from qiance.workspace import Snapshot, Workspace
from serve.feature_store import open_reader
from training.effect.fit import TrainSettings, train_effect
from training.effect.split import split_by_unit
from training.featurise import materialise, snapshot_at, stage_repository, write_feature_tables

CATEGORIES = ("coffee", "cheese", "soup")
ITEMS = 6
USERS = 150
DAYS = 120
START = datetime(2025, 1, 1, tzinfo=UTC)
BRIEF = "brief-one"
GUARD = Guard.load(min_margin=0.05)
LOOSE = Guard.load(min_margin=0.0)
# Headline and body without and with an offer.
WORDS = (
    ("A good {product}", "Take {product} home"),
    ("A good {product}", "Take {product} home, {discount} until {ends}"),
)
CAP = 100_000
CHANNELS = (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER)
# The recent half of the users, roughly; every second strategy is for them alone.
RECENT = Audience("recent", (("recency_days", "<=", 10.0),))


def catalogue() -> Catalogue:
    return Catalogue(
        tuple(
            Item(f"i{n}", f"{c} {n}", c, "grocery", "National", 400 + 50 * n, 200 + 20 * n)
            for n, c in enumerate(CATEGORIES * (ITEMS // len(CATEGORIES)))
        )
    )


def user_ids() -> tuple[str, ...]:
    return tuple(f"u{n}" for n in range(USERS))


def events(seed: int = 0) -> pa.Table:
    """Purchase lines over `DAYS` days; heavy and light buyers, dear and cheap ones."""
    rng = np.random.default_rng(seed)
    items = list(catalogue())
    lines: dict[str, list[Any]] = {
        name: []
        for name in (
            "user_id", "item_id", "type", "occurred_at", "basket_id", "value", "discount", "quantity"
        )
    }  # fmt: skip
    for user in user_ids():
        taste = rng.dirichlet(np.ones(len(items)))
        for day in np.sort(rng.uniform(0, DAYS, rng.integers(3, 16))):
            for item in rng.choice(len(items), rng.integers(1, 4), p=taste):
                cut = int(rng.random() < 0.3) * items[item].price // 5
                row = (
                    user, items[item].item_id, "purchase", START + timedelta(days=float(day)),
                    f"{user}-{day:.4f}", items[item].price - cut, cut, 1,
                )  # fmt: skip
                for name, value in zip(lines, row, strict=True):
                    lines[name].append(value)
    return pa.table({**lines, "occurred_at": pa.array(lines["occurred_at"], pa.timestamp("us", "UTC"))})


def action(item: Item, channel: Channel, depth: float, strategy_id: str) -> Action:
    return Action(
        action_id=f"{strategy_id}-{channel.value}",
        strategy_id=strategy_id,
        kind=StrategyKind.PROMOTION if depth else StrategyKind.AD,
        item_id=item.item_id,
        offer=Offer(OfferKind.PERCENT, depth) if depth else Offer(),
        creative=Creative(channel, "en", *WORDS[bool(depth)], "Shop now"),
        channel=channel,
        contact_cost=CONTACT_COST[channel],
    )


def effect(uplift: float) -> Effect:
    def around(value: float) -> Interval:
        return Interval(value, value - 1.0, value + 1.0)

    return Effect(
        Interval(0.1, 0.05, 0.2), Interval(0.05, 0.01, 0.1), around(90.0), around(30.0), around(uplift)
    )


def strategy(number: int, brief_id: str = BRIEF, **changes: Any) -> Strategy:
    """Strategy number `number`: one item, two channels; depths 0 and 20 % by turns, odd ones for `RECENT`."""
    name = f"s{number}"
    item = list(catalogue())[number % ITEMS]
    depth = 0.2 * (number % 2)
    given: dict[str, Any] = {
        "strategy_id": name,
        "brief_id": brief_id,
        "kind": StrategyKind.PROMOTION if depth else StrategyKind.AD,
        "title": f"{item.title} by mail",
        "audience": RECENT if number % 2 else Audience("everybody"),
        "actions": tuple(action(item, c, depth, name) for c in (Channel.EMAIL, Channel.DISPLAY)),
        "starts": START,
        "ends": datetime(2190, 1, 1, tzinfo=UTC),
        "effect": effect(5.0 + number),
        "reach": USERS,
    }
    return Strategy(**{**given, **changes})


def go_live(
    ledger: Ledger, strategies: Sequence[Strategy], items: Catalogue | None = None, guard: Guard = GUARD
) -> None:
    """Through the gate; guard: another one than the service's, to bring in what it would refuse."""
    ledger.put_strategies(strategies)
    for s in strategies:
        for state in (StrategyState.APPROVED, StrategyState.LIVE):
            move_strategy(ledger, guard, items or catalogue(), s.strategy_id, state, "test", "test")


def build_features(workspace: Workspace) -> Snapshot:
    items = catalogue()
    index = EventIndex.build(events(), user_ids(), {i.item_id: i.category for i in items}, items, CATEGORIES)
    day = START.timestamp() / 86_400 + DAYS
    write_feature_tables(index, items, [day], workspace.features)
    stage_repository(workspace.features)
    snapshot = snapshot_at(index, items, day)
    snapshot.save(workspace.snapshot)
    materialise(workspace.features, snapshot.as_of)
    return snapshot


def training_rows(
    snapshot: Snapshot, actions: Sequence[Action], log: MarketLog, vectors: Vectors = NO_VECTORS
) -> pa.Table:
    """What `training.dataset` would join from Feast, taken from the snapshot."""
    items = snapshot.catalogue
    parts = ActionColumns.build(actions, items.index, [i.category for i in items], vectors)
    item_row, category = parts.item_row[log.action], parts.category[log.action]
    code = np.array([CATEGORIES.index(c) if c in CATEGORIES else -1 for c in category])
    columns = assemble(
        user={name: values[log.user] for name, values in snapshot.users.columns.items()}
        | no_session(len(log.user)),
        item={n: np.where(item_row >= 0, v[item_row], np.nan) for n, v in snapshot.item.items()},
        user_category={
            n: np.where(code >= 0, v[log.user, code], np.nan) for n, v in snapshot.user_category.items()
        },
        actions=parts.columns(log.action),
        contacts_7d=log.contacts_7d,
    )
    labels = {name: pa.array(getattr(log, name)) for name in ("click", "conversion", "sales", "margin")}
    ids = np.array(snapshot.users.user_ids, dtype=object)[log.user]
    return pa.table({**{n: pa.array(v) for n, v in columns.items()}, **labels, "user_id": ids.tolist()})


def train_model(
    workspace: Workspace, snapshot: Snapshot, seed: int = 0, vectors: Vectors = NO_VECTORS
) -> str:
    """Version of a small effect model, trained in this process on a simulated log."""
    shares = snapshot.user_category["category_share"]
    market = Market.build(snapshot.users, shares, CATEGORIES, snapshot.catalogue, seed)
    offered = [
        action(i, c, d, f"t{d}-{i.item_id}") for i in snapshot.catalogue for c in CHANNELS for d in (0.0, 0.2)
    ]
    actions = (CONTROL_ACTION, *offered)
    everything = np.ones((USERS, len(actions)), dtype=np.bool_)
    log = collect_log(
        market,
        market.table(actions),
        uniform_over(lambda users: everything[users]),
        snapshot.as_of,
        30,
        USERS,
        ContactWindow(USERS),
        np.random.default_rng(seed),
    )
    table = training_rows(snapshot, actions, log, vectors)
    users = table["user_id"].to_numpy(zero_copy_only=False)
    settings = TrainSettings(epochs=2, heads=4, hidden=(16,), workers=0, threads=1, seed=seed)
    trained = train_effect(
        table,
        EFFECT_SCHEMA,
        labels=("click", "conversion", "sales", "margin"),
        split=split_by_unit(users, 0),
        settings=settings,
        out=workspace.artifacts,
        storage=workspace.root / "training",
        data_fingerprint=f"small-{seed}-{len(vectors)}",
        units=users,
    )
    return trained.artifact.version


def launch(ledger: Ledger, policy: str, shadow_price: float) -> None:
    """Past the gate, as a person may."""
    ledger.launch_policy(policy, shadow_price=shadow_price, override=Override("test", "a test"))


def stock(ledger: Ledger, model: str, policy: str) -> None:
    """Budget, live strategies, model and policy, in an empty ledger."""
    ledger.open_budget(BRIEF, CAP)
    go_live(ledger, [strategy(n) for n in range(4)])
    ledger.set_versions(model=model)
    launch(ledger, policy, 0.0)


def write_plan(workspace: Workspace, model: str, starts: datetime, shadow_price: float = 0.5) -> str:
    """Version of a policy: even pacing over 10 days from `starts`."""
    pacing = write_rule(workspace.artifacts, EvenPace(), metrics={}, data_fingerprint="small")
    plan = Plan(BRIEF, shadow_price, 0.3, starts, 10, pacing.version, model)
    artifact = write_artifact(
        workspace.artifacts,
        KIND,
        {PLAN_FILE: plan.save},
        metrics={},
        parents=(model, pacing.version),
        feature_service=EFFECT_SCHEMA.service,
        schema_hash=EFFECT_SCHEMA.hash,
        data_fingerprint=f"{starts.isoformat()} {shadow_price}",
    )
    return artifact.version


@dataclass(frozen=True)
class Built:
    """The workspace that all tests share, read only but for copies of its ledger."""

    workspace: Workspace
    snapshot: Snapshot
    model: str
    policy: str
    reader: OnlineReader

    def open_ledger(self, folder: Path, timeout_s: float | None = None) -> Ledger:
        """The ledger in `folder`, a copy of the built one at first: one test's own to write to."""
        return self.open_url(self.copy_ledger(folder), timeout_s)

    def copy_ledger(self, folder: Path) -> str:
        """URL of the ledger in `folder`, which is a copy of the built one at first."""
        file = folder / "ledger.db"
        if not file.exists():
            shutil.copy(self.workspace.root / "ledger.db", file)
        return f"sqlite:///{file}"

    def fill_ledger(self, url: str) -> str:
        """`url`, whose empty database now has what the built ledger has."""
        ledger = self.open_url(url)
        stock(ledger, self.model, self.policy)
        ledger.close()
        return url

    def open_url(self, url: str, timeout_s: float | None = None) -> Ledger:
        """The shop's ledger at `url`."""
        return Ledger.open(url, key=load_or_create_key(self.workspace.key_file), timeout_s=timeout_s)


def build(root: Path) -> Built:
    """Everything that `qiance run` leaves behind before it serves, small."""
    workspace = Workspace(root)
    snapshot = build_features(workspace)
    model = train_model(workspace, snapshot)
    policy = write_plan(workspace, model, START + timedelta(days=DAYS))
    ledger = Ledger.open(workspace.ledger_url, key=load_or_create_key(workspace.key_file))
    stock(ledger, model, policy)
    ledger.close()
    return Built(workspace, snapshot, model, policy, open_reader(workspace.features, 0.2))
