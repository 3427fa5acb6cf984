"""The Ray Serve application: thin deployments over plain classes. Scaling lives in the Serve YAML."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from qiance.domain import Action, GridPrediction
from qiance.ledger import Ledger, load_or_create_key
from qiance.market.responses import CONTACT_COST
from qiance.privacy import Eraser, online_eraser
from qiance.workspace import Workspace
from serve.args import AppArgs, LlmArgs
from serve.feature_store import SessionPusher, open_reader
from serve.gateway import Gateway, build_api
from serve.live import Watcher
from serve.metrics import GatewayMetrics, PacerMetrics
from serve.people import PeopleService
from serve.predictor import Effects, Predictor, Scored, ScoreRequest
from serve.profile import KnownRow
from serve.users import LedgerConsents

# Requests that arrive while the predictor is busy are scored together; nobody waits for company.
MAX_BATCH = 32
BATCH_WAIT_S = 0.001


def open_ledger(args: AppArgs) -> Ledger:
    """The ledger that the arguments name."""
    key_file = args.key_file or Workspace(args.workspace).key_file
    return Ledger.open(args.open_url(), tenant=args.tenant, key=load_or_create_key(key_file))


def _clock(args: AppArgs, ledger: Ledger) -> Callable[[], datetime]:
    """What time it is: the system's, or in a simulation the latest that a request told."""
    return (lambda: ledger.clock() or args.now()) if args.clock == "request" else args.now


@serve.deployment(name="Predictor")
class PredictorDeployment:
    """Holds the effect model and the candidates; scores micro-batches of users."""

    def __init__(self, args: AppArgs) -> None:
        workspace, ledger = Workspace(args.workspace), open_ledger(args)
        self._predictor = Predictor(
            workspace,
            ledger,
            open_reader(workspace.features, args.features.wait_ms / 1_000.0),
            LedgerConsents(ledger, args.unrecorded),
            _clock(args, ledger),
            args.min_margin,
            args.features.refresh_s,
        )

    # Ray's decorators carry no types.
    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)  # type: ignore[untyped-decorator]
    async def score(self, requests: list[ScoreRequest]) -> list[Scored]:
        """Scores of the live candidates, one per request."""
        return await asyncio.to_thread(self._predictor.score, requests)

    async def effects(self, user_ids: list[str] | None, segment: str | None, actions: list[str]) -> Effects:
        """Effects per user, or over a segment of the snapshot."""
        return await asyncio.to_thread(self._predictor.effects, user_ids, segment, actions)

    async def describe(self, user_id: str) -> list[KnownRow]:
        """What is known of one user."""
        return await asyncio.to_thread(self._predictor.describe, user_id)

    async def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions for proposers."""
        return await asyncio.to_thread(self._predictor.predict, user_ids, actions)


class _RemotePredictor:
    """The predictor deployment as the proposers' `EffectPredictor`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions for every user × action."""
        try:
            found: GridPrediction = self._handle.predict.remote(user_ids, actions).result()
        except Exception as error:
            raise _cause(error) from None
        return found


def _cause(error: Exception) -> Exception:
    """What was raised in the other deployment: Ray's own error repeats its whole traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _load_engine(llm: LlmArgs) -> Any:
    # Imported here: transformers takes seconds, and a replica without the model never needs it.
    from serve.generator.engine import TransformersEngine

    return TransformersEngine.load(llm.model, llm.cache_dir, llm.threads)


@serve.deployment(name="Generator")
class GeneratorDeployment:
    """Works on briefs in the background, one at a time."""

    def __init__(self, args: AppArgs, predictor: DeploymentHandle) -> None:
        from serve.generator.worker import BriefWorker

        self._worker = BriefWorker(
            Workspace(args.workspace).snapshot,
            open_ledger(args),
            _RemotePredictor(predictor),
            args.llm,
            _load_engine,
            CONTACT_COST,
            args.seed,
        )
        self._turn = asyncio.Lock()

    async def run(self, brief_id: str) -> None:
        """Take a brief to its end."""
        async with self._turn:
            await asyncio.to_thread(self._worker.run, brief_id)


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


@serve.deployment(name="Gateway")
@serve.ingress()
class GatewayDeployment:
    """Speaks HTTP; decides and logs."""

    def __init__(
        self,
        args: AppArgs,
        predictor: DeploymentHandle,
        generator: DeploymentHandle,
        pacer: DeploymentHandle,  # bound so that it is deployed with the application
    ) -> None:
        ledger, workspace = open_ledger(args), Workspace(args.workspace)
        catalogue = _catalogue(args)
        self._args = args

        async def score(request: ScoreRequest) -> Scored:
            scored: Scored = await predictor.score.remote(request)
            return scored

        async def effects(users: list[str] | None, segment: str | None, actions: list[str]) -> Effects:
            try:
                found: Effects = await predictor.effects.remote(users, segment, actions)
            except Exception as error:
                raise _cause(error) from None
            return found

        async def profile(user_id: str) -> list[KnownRow]:
            rows: list[KnownRow] = await predictor.describe.remote(user_id)
            return rows

        people = PeopleService(
            ledger,
            Eraser(ledger, workspace, online_eraser(workspace.features, os.environ)),
            SessionPusher(ledger, workspace.features, args.unrecorded),
            known_item=catalogue.index.__contains__,
            unrecorded=args.unrecorded,
            profile=profile,
            now=_clock(args, ledger),
        )
        # What an earlier process left of erasures is finished behind the first answers.
        threading.Thread(target=people.resume, name="qiance-erasures", daemon=True).start()
        self.gateway = Gateway(
            args,
            ledger,
            Watcher(ledger, catalogue),
            score,
            effects,
            lambda brief_id: generator.run.remote(brief_id) and None,
            GatewayMetrics(),
            people,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(lambda: self.gateway, self._args.max_body_bytes)


def _catalogue(args: AppArgs) -> Any:
    from qiance.workspace import Snapshot

    return Snapshot.load(Workspace(args.workspace).snapshot).catalogue


def build(args: dict[str, Any]) -> Application:
    """The application from the `args` of the Serve YAML (see `AppArgs`)."""
    # Serve hands over a plain dict.
    app_args = AppArgs.model_validate(args)
    predictor = PredictorDeployment.bind(app_args)  # type: ignore[attr-defined]
    generator = GeneratorDeployment.bind(app_args, predictor)  # type: ignore[attr-defined]
    pacer = PacerDeployment.bind(app_args)  # type: ignore[attr-defined]
    application: Application = GatewayDeployment.bind(app_args, predictor, generator, pacer)  # type: ignore[attr-defined]
    return application
