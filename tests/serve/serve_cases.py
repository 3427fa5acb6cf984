"""A small shop that can be served: synthetic purchases, features, a trained model, live strategies."""

from __future__ import annotations

import asyncio
import pickle
import secrets
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from qiance.artifacts.manifest import write_artifact
from qiance.artifacts.pacing import write_rule
from qiance.decide.holdout import holdout
from qiance.decide.pacing import EvenPace
from qiance.decide.plan import KIND, PLAN_FILE, Plan
from qiance.decide.rule import policy_probabilities
from qiance.domain import (
    CONTROL_ACTION,
    Action,
    Audience,
    Catalogue,
    Channel,
    Creative,
    Decision,
    Effect,
    Interval,
    Item,
    Offer,
    OfferKind,
    Strategy,
    StrategyKind,
    StrategyState,
)
from qiance.evaluate.arrays import FloatArray
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
from serve.args import AppArgs, LlmArgs
from serve.assemble import Service, model_loader, warm_sizes
from serve.desk import Clerk, ThreadDesk
from serve.effects import Planner
from serve.engine import Engine
from serve.feature_store import open_reader
from serve.gateway import Gateway, build_api
from serve.housekeeping import Checkpointer
from serve.leases import LeaseBook
from serve.live import Watcher
from serve.outage import Outage
from serve.predictor import Predictor
from serve.remote_scorer import RemoteScorer
from serve.scoring import Scorer
from serve.spool import Spool
from serve.users import LedgerConsents
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


@dataclass
class Counted:
    """Metrics that only remember, in place of Ray's, which need a cluster."""

    decisions: list[tuple[str, bool, tuple[str, ...], float]] = field(default_factory=list)
    outcomes: list[tuple[int, int, int]] = field(default_factory=list)
    outcomes_degraded: list[str] = field(default_factory=list)

    def decided(self, surface: str, holdout: bool, degraded: Sequence[str], seconds: float) -> None:
        self.decisions.append((surface, holdout, tuple(degraded), seconds))

    def recorded(self, accepted: int, duplicates: int, rejected: int, degraded: Sequence[str] = ()) -> None:
        self.outcomes.append((accepted, duplicates, rejected))
        self.outcomes_degraded += degraded


@dataclass(frozen=True)
class Logged:
    """A logged decision, with what follows from it."""

    decision: Decision

    @property
    def probabilities(self) -> FloatArray:
        """`[A]` probability of every candidate, 0 where it was not admissible."""
        mask, score = self.decision.mask(), self.decision.score_row()
        value = np.where(mask, score, 0.0)[None]
        return policy_probabilities(value, np.zeros_like(value), mask[None], 0.0, self.decision.epsilon)[0]

    @property
    def possible(self) -> set[str]:
        """Actions that could have been chosen."""
        return {a for a, inside in zip(self.decision.candidates, self.decision.mask(), strict=True) if inside}


@dataclass
class Shop:
    """A gateway over a real predictor and a real ledger, asked over HTTP without sockets."""

    built: Built
    ledger: Ledger
    gateway: Gateway
    service: Service
    predictor: Predictor
    metrics: Counted
    woken: list[bool]

    def ask(self, method: str, path: str, *, client: str = "127.0.0.1", **request: Any) -> httpx.Response:
        """One request; an exception that nothing handled is raised here."""
        return asyncio.run(self.ask_all([(method, path, request)], client))[0]

    async def ask_all(
        self, requests: Sequence[tuple[str, str, dict[str, Any]]], client: str = "127.0.0.1", at_once: int = 8
    ) -> list[httpx.Response]:
        """Many requests, `at_once` at a time."""
        api = build_api(lambda: self.gateway, self.gateway.args.max_body_bytes)
        gate = asyncio.Semaphore(at_once)
        transport = httpx.ASGITransport(app=api, client=(client, 50_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as http:

            async def one(method: str, path: str, request: dict[str, Any]) -> httpx.Response:
                async with gate:
                    return await http.request(method, path, **request)

            return await asyncio.gather(*(one(*request) for request in requests))

    def post(self, path: str, body: Any, **request: Any) -> httpx.Response:
        return self.ask("POST", path, json=body, **request)

    def post_all(self, path: str, bodies: Sequence[Any], at_once: int = 8) -> list[httpx.Response]:
        return asyncio.run(self.ask_all([("POST", path, {"json": b}) for b in bodies], at_once=at_once))

    def decide(self, user: str = "u0", **body: Any) -> dict[str, Any]:
        response = self.post("/v1/decisions", {"user_id": user, "surface": "home", **body})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def refresh(self) -> None:
        """Let every part see what the test has just changed in the ledger."""
        self.gateway.watcher.refresh()
        self.predictor._watcher.refresh()

    def log(self, decision_id: str) -> Logged:
        """One logged decision, unpacked."""
        found = self.ledger.decision(decision_id)
        assert found is not None
        return Logged(found)

    def users(self, held: bool) -> list[str]:
        """Users of the shop that are (not) in the holdout."""
        args, ids = self.gateway.args, list(user_ids())
        mask = holdout(self.ledger.pseudonyms(ids), args.tenant, args.holdout)
        return [user for user, inside in zip(ids, mask, strict=True) if inside == held]


def open_predictor(
    built: Built, ledger: Ledger, args: AppArgs, reader: OnlineReader | None = None
) -> Predictor:
    """A predictor on the shop's features, or on another store of them."""
    consents = LedgerConsents(ledger, args.unrecorded)
    return Predictor(
        built.workspace,
        ledger,
        reader or built.reader,
        consents,
        args.now,
        0.05,
        GUARD,
        refresh_s=0.2,
        load=model_loader(args.predictor),
        warm=warm_sizes(args),
    )


class _Reply:
    """What a handle's call gives."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def result(self, timeout_s: float) -> Any:
        return pickle.loads(pickle.dumps(self._future.result(timeout_s)))

    def cancel(self) -> None:
        self._future.cancel()


class InProcess:
    """A method of a deployment as a handle of Serve has it: copies go there and back, on another loop."""

    def __init__(self, method: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._method, self._loops = method, ThreadPoolExecutor(4)

    def remote(self, *given: Any) -> _Reply:
        sent = pickle.dumps(given)
        return _Reply(self._loops.submit(lambda: asyncio.run(self._method(*pickle.loads(sent)))))

    def close(self) -> None:
        self._loops.shutdown()


@contextmanager
def open_behind_a_handle(built: Built, folder: Path) -> Iterator[Shop]:
    """A shop of the topology `deployment`: its predictor in the deployment's own class, in this process."""
    from serve.app import PredictorDeployment

    built.open_ledger(folder).close()  # makes the copy
    args = shop_args(
        built,
        topology="deployment",
        ledger_url=f"sqlite:///{folder / 'ledger.db'}",
        key_file=built.workspace.key_file,
        features={"wait_ms": 200.0, "refresh_s": 0.2},
    )
    deployment = PredictorDeployment.func_or_class(args)  # type: ignore[attr-defined]
    with closing(InProcess(deployment.score)) as score:
        scorer = RemoteScorer(SimpleNamespace(score=score), 30.0)
        with _opened(built, built.open_ledger(folder), folder, args, deployment._predictor, scorer) as shop:
            yield shop


def shop_args(built: Built, **args: Any) -> AppArgs:
    """The arguments of the application in the shop; keyword arguments replace single ones."""
    given = {
        "workspace": built.workspace.root,
        "holdout": 0.2,
        "epsilon": 0.5,
        "llm": LlmArgs(enabled=False),
        # An hour after the features were built, so that they are fresh; everybody agreed to being known.
        "clock_offset_s": (START + timedelta(days=DAYS, hours=1) - datetime.now(UTC)).total_seconds(),
        "unrecorded_consent": "granted",
    }
    return AppArgs(**{**given, **args})


@contextmanager
def open_shop(built: Built, folder: Path, scorer: Scorer | None = None, **args: Any) -> Iterator[Shop]:
    """A shop on its own copy of the ledger, or on `ledger_url`; `scorer` replaces the predictor of decisions.

    The ledger has the time that a replica gives it if `request_timeout_s` is given, else all the time.
    """
    app_args = shop_args(built, **args)
    url = app_args.ledger_url or built.copy_ledger(folder)
    ledger = built.open_url(url, app_args.ledger_timeout_s if "request_timeout_s" in args else None)
    predictor = open_predictor(built, ledger, app_args)
    with _opened(built, ledger, folder, app_args, predictor, scorer or predictor) as shop:
        yield shop


@contextmanager
def _opened(
    built: Built, ledger: Ledger, folder: Path, app_args: AppArgs, predictor: Predictor, scorer: Scorer
) -> Iterator[Shop]:
    watcher = Watcher(ledger, built.snapshot.catalogue, GUARD)
    leases = LeaseBook(ledger, secrets.token_hex(4), app_args.leases.term_s)
    outage = Outage(app_args, ledger, Spool(folder / "spool", app_args.spool_bytes))
    engine = Engine(app_args, ledger, watcher, scorer, leases, outage)
    service = Service(engine, watcher, outage, leases, Checkpointer(ledger), predictor)
    metrics, woken = Counted(), list[bool]()

    planner = Planner(predictor)

    async def effects(users: list[str] | None, segment: str | None, actions: list[str], explain: Any) -> Any:
        return await asyncio.to_thread(planner.effects, users, segment, actions, explain)

    gateway = Gateway(
        app_args,
        ledger,
        watcher,
        ThreadDesk(Clerk(app_args, service), app_args.batching.workers),
        effects,
        lambda: woken.append(True),
        metrics,  # type: ignore[arg-type]
    )
    try:
        yield Shop(built, ledger, gateway, service, predictor, metrics, woken)
    finally:
        gateway.desk.close()
        ledger.close()
