"""The Ray Serve application: thin deployments over plain classes. Scaling lives in the Serve YAML."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from qiance.artifacts.explain import Method
from qiance.artifacts.word_vectors import WordVectors
from qiance.artifacts.writer import load_writer
from qiance.decide.predictor import vectors_of
from qiance.domain import Action, GridPrediction
from qiance.features.words import VectorsOf
from qiance.launch import Evaluation, Launched
from qiance.ledger import Ledger, Override
from qiance.market.responses import CONTACT_COST
from qiance.privacy import Eraser, online_eraser
from qiance.workspace import Workspace
from serve.args import AppArgs, LlmArgs
from serve.assemble import (
    clock_of,
    open_engine,
    open_guard,
    open_ledger,
    open_predictor,
    read_catalogue,
)
from serve.assemble_planning import open_policy_desk, open_proposer, open_retrieval
from serve.desk import Clerk, Desk, ThreadDesk
from serve.desk_process import ProcessDesk
from serve.effects import Effects, Planner
from serve.feature_store import SessionPusher
from serve.gateway import Gateway, build_api
from serve.generator.remote import RemoteEngine
from serve.live import Watcher
from serve.metrics import GatewayMetrics, PacerMetrics
from serve.people import PeopleService
from serve.policies import PolicyJudge, PolicyService
from serve.profile import KnownRow
from serve.remote_scorer import RemoteScorer, cause_of
from serve.scoring import ScoredBatch, ScoreRequest
from serve.words import WordKeeper

PATIENCE = 0.3  # most of a request's time that a predictor elsewhere may take
# How long a new Gateway waits for the predictor, whose machine may have to be started first. Serve gives a
# deployment up after three replicas in a row that did not start.
PREDICTOR_START_S = 600.0


@serve.deployment(name="Predictor")
class PredictorDeployment:
    """Holds the effect model and the candidates; every call brings a whole batch of users."""

    def __init__(self, args: AppArgs) -> None:
        self._predictor = open_predictor(args, open_ledger(args))
        self._planner = Planner(self._predictor)

    async def score(self, requests: list[ScoreRequest]) -> ScoredBatch:
        """Scores of the live candidates for every request."""
        return await asyncio.to_thread(self._predictor.score, requests)

    async def effects(
        self, user_ids: list[str] | None, segment: str | None, actions: list[str], explain: Method | None
    ) -> Effects:
        """Effects per user, or over a segment of the snapshot, with the reasons if asked for."""
        return await asyncio.to_thread(self._planner.effects, user_ids, segment, actions, explain)

    async def describe(self, user_id: str) -> list[KnownRow]:
        """What is known of one user."""
        return await asyncio.to_thread(self._predictor.describe, user_id)

    async def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions for proposers."""
        return await asyncio.to_thread(self._predictor.predict, user_ids, actions)


class _RemotePredictor:
    """The predictor deployment as the proposers' `EffectPredictor`; new words get vectors here first."""

    def __init__(self, handle: DeploymentHandle, vectors: VectorsOf) -> None:
        self._handle, self._vectors = handle, vectors

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions for every user × action."""
        vectors_of(actions, self._vectors)
        try:
            found: GridPrediction = self._handle.predict.remote(user_ids, actions).result()
        except Exception as error:
            raise cause_of(error) from None
        return found


def _load_engine(llm: LlmArgs) -> Any:
    if llm.endpoint is not None:
        return RemoteEngine(llm.endpoint, llm.model, llm.endpoint_key_file)
    # Imported here: transformers takes seconds, and a replica without the model never needs it.
    from serve.generator.engine import TransformersEngine

    adapter = None if llm.adapter is None else load_writer(llm.adapter)
    return TransformersEngine.load(llm.model, llm.cache_dir, llm.threads, adapter=adapter)


@serve.deployment(name="Generator")
class GeneratorDeployment:
    """Works in the background: on briefs, and on the evaluation of policies; one of each at a time."""

    def __init__(self, args: AppArgs, predictor: DeploymentHandle) -> None:
        from serve.generator.loop import BriefLoop
        from serve.generator.worker import BriefWorker

        ledger = open_ledger(args)
        vectors = WordVectors(ledger)
        keeper = WordKeeper(ledger, vectors)
        worker = BriefWorker(
            Workspace(args.workspace).snapshot,
            ledger,
            _RemotePredictor(predictor, vectors),
            args.llm,
            _load_engine,
            CONTACT_COST,
            args.seed,
            open_guard(args),
            proposer=open_proposer(args),
            country=args.briefs.country,
            retrieval=open_retrieval(args, ledger),
        )

        def work() -> None:
            worker.work()
            keeper.work()

        self._briefs, self._judging = BriefLoop(work), asyncio.Lock()
        self._judge = PolicyJudge(open_policy_desk(args, ledger), ledger, args.gate.timeout_s)

    def check_health(self) -> None:
        """Ray replaces the replica when its thread has died."""
        if not self._briefs.is_alive:
            raise RuntimeError("the thread that works on briefs has ended")

    def __del__(self) -> None:
        if hasattr(self, "_briefs"):
            self._briefs.stop()

    def wake(self) -> None:
        """A brief came; it would be found before long without being told."""
        self._briefs.wake()

    async def evaluate_policy(self, version: str) -> Evaluation:
        """What a policy would have earned; one at a time."""
        asked_at = time.monotonic()
        async with self._judging:
            return await asyncio.to_thread(self._judge.evaluate, version, asked_at)

    async def promote_policy(self, version: str, by: str, override: Override | None) -> Launched:
        """Make a policy live, if the gate opens or is overridden."""
        asked_at = time.monotonic()
        async with self._judging:
            return await asyncio.to_thread(self._judge.promote, version, by, override, asked_at)


@serve.deployment(name="Pacer")
class PacerDeployment:
    """Moves the shadow price with the day; exactly one replica."""

    def __init__(self, args: AppArgs) -> None:
        from qiance.artifacts.pacing import ExportedPolicy
        from serve.pacer import Pacer

        ledger = open_ledger(args)
        self._pacer = Pacer(
            Workspace(args.workspace),
            ledger,
            ExportedPolicy.load,
            clock=ledger.clock if args.clock == "request" else args.now,
            publish=PacerMetrics().paced,
        )
        self._thread = threading.Thread(target=self._pacer.run, name="qiance-pacer", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Ray replaces the replica when its thread has died."""
        if not self._thread.is_alive():
            raise RuntimeError("the pacing thread has ended")


class _RemoteJudges:
    """The deployment that judges policies, as the gateway asks it."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def evaluate(self, version: str) -> Evaluation:
        """See `PolicyJudge`."""
        try:
            found: Evaluation = await self._handle.evaluate_policy.remote(version)
        except Exception as error:
            raise cause_of(error) from None
        return found

    async def promote(self, version: str, by: str, override: Override | None) -> Launched:
        """See `PolicyJudge`."""
        try:
            done: Launched = await self._handle.promote_policy.remote(version, by, override)
        except Exception as error:
            raise cause_of(error) from None
        return done


def _open_desk(args: AppArgs, ledger: Ledger, predictor: DeploymentHandle) -> Desk:
    """In a process of its own; in a thread here where it must hold a handle."""
    if args.topology == "ingress":
        return ProcessDesk(args)
    remote = RemoteScorer(predictor, PATIENCE * args.request_timeout_s)
    desk = ThreadDesk(Clerk(args, open_engine(args, ledger, remote)), args.batching.workers)
    try:
        desk.warm_up(PREDICTOR_START_S)
    except BaseException:
        desk.close()
        raise  # Serve makes another replica
    return desk


@serve.deployment(name="Gateway")
@serve.ingress()
class GatewayDeployment:
    """Speaks HTTP; decides and logs. Ready once model, items and a first pass are done."""

    def __init__(
        self,
        args: AppArgs,
        predictor: DeploymentHandle,
        generator: DeploymentHandle,
        pacer: DeploymentHandle,  # bound so that it is deployed with the application
    ) -> None:
        self._args, workspace = args, Workspace(args.workspace)
        ledger = open_ledger(args, args.ledger_timeout_s)
        self._desk = _open_desk(args, ledger, predictor)
        self._watcher = Watcher(ledger, read_catalogue(args), open_guard(args))
        catalogue = self._watcher.catalogue

        async def effects(
            users: list[str] | None, segment: str | None, actions: list[str], explain: Method | None
        ) -> Effects:
            try:
                found: Effects = await predictor.effects.remote(users, segment, actions, explain)
            except Exception as error:
                raise cause_of(error) from None
            return found

        async def profile(user_id: str) -> list[KnownRow]:
            rows: list[KnownRow] = await predictor.describe.remote(user_id)
            return rows

        people = PeopleService(
            ledger,
            # An erasure rewrites the database, which takes the time it takes.
            Eraser(open_ledger(args), workspace, online_eraser(workspace.features, os.environ)),
            SessionPusher(ledger, workspace.features, args.unrecorded),
            known_item=catalogue.index.__contains__,
            unrecorded=args.unrecorded,
            profile=profile,
            now=clock_of(args, ledger),
        )
        # What an earlier process left of erasures is finished behind the first answers.
        threading.Thread(target=people.resume, name="qiance-erasures", daemon=True).start()
        self.gateway = Gateway(
            args,
            ledger,
            self._watcher,
            self._desk,
            effects,
            lambda: generator.wake.remote() and None,
            GatewayMetrics(),
            people,
            PolicyService(_RemoteJudges(generator)),
        )
        gc.collect()
        gc.freeze()  # what is loaded by now lives as long as the replica: no later collection looks at it

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(lambda: self.gateway, self._args.max_body_bytes)

    def check_health(self) -> None:
        """Ray replaces the replica when its engine does not come up again."""
        self._desk.check_health()

    def __del__(self) -> None:
        # Called by Ray when the replica is drained: what it leased goes back now, not after the term.
        for part in ("_desk", "_watcher"):
            if (opened := getattr(self, part, None)) is not None:
                opened.close()


def build(args: dict[str, Any]) -> Application:
    """The application from the `args` of the Serve YAML (see `AppArgs`)."""
    # Serve hands over a plain dict.
    app_args = AppArgs.model_validate(args)
    predictor = PredictorDeployment.bind(app_args)  # type: ignore[attr-defined]
    generator = GeneratorDeployment.bind(app_args, predictor)  # type: ignore[attr-defined]
    pacer = PacerDeployment.bind(app_args)  # type: ignore[attr-defined]
    application: Application = GatewayDeployment.bind(app_args, predictor, generator, pacer)  # type: ignore[attr-defined]
    return application
