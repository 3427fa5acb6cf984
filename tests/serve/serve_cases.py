"""A small shop that is served in this process, by whichever parts a test wants."""

from __future__ import annotations

import asyncio
import copy
import secrets
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

from qiance.decide.holdout import holdout
from qiance.decide.rule import policy_probabilities
from qiance.domain import (
    Decision,
)
from qiance.evaluate.arrays import FloatArray
from qiance.features.online import OnlineReader
from qiance.ledger import Ledger
from serve.args import AppArgs, LlmArgs
from serve.assemble import Service, model_loader, warm_sizes
from serve.desk import Clerk, ThreadDesk
from serve.effects import Planner
from serve.engine import Engine
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
from tests.serve.built_cases import DAYS, GUARD, START, Built, user_ids


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
        return copy.deepcopy(self._future.result(timeout_s))

    def cancel(self) -> None:
        self._future.cancel()


class InProcess:
    """A method of a deployment as a handle of Serve has it: copies go there and back, on another loop."""

    def __init__(self, method: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._method, self._loops = method, ThreadPoolExecutor(4)

    def remote(self, *given: Any) -> _Reply:
        sent = copy.deepcopy(given)
        return _Reply(self._loops.submit(lambda: asyncio.run(self._method(*sent))))

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
