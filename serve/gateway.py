"""The HTTP interface: routes over plain services."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials

from qiance import __version__
from qiance.artifacts.explain import Method
from qiance.domain import Outcome, OutcomeType, StrategyState
from qiance.ledger import NO_VERSION, Ledger, LedgerUnavailableError, Scope
from serve import problems
from serve.admission import Admission
from serve.args import AppArgs
from serve.briefs import BriefService, add_briefs
from serve.creatives import CreativeService, add_creatives
from serve.decisions import DecisionService, lost
from serve.desk import Desk, DeskLostError
from serve.effect_schemas import EffectsRequest, EffectsResponse, effects_out
from serve.effects import Effects
from serve.keys import KeyCache
from serve.live import Watcher
from serve.metrics import GatewayMetrics
from serve.outage import record_and_settle
from serve.people import PeopleService, add_people
from serve.policies import LOOPBACK, PolicyService, add_policies
from serve.problems import Problem, invalid
from serve.schemas import (
    DecisionRequest,
    DecisionResponse,
    DecisionsRequest,
    DecisionsResponse,
    Health,
    OutcomesRequest,
    OutcomesResponse,
    RejectedOut,
    StrategyOut,
    strategy_out,
)
from serve.spool import SpoolFullError
from serve.strict_json import BEARER, HotRoute, StrictRoute

logger = logging.getLogger(__name__)
RETRY_AFTER_S = 1
HOT = (Scope.DECIDE, Scope.OUTCOMES)  # asked so often that what a key may do is looked up once a second


class Gateway:
    """Services behind the routes; the deployment in app.py wires in the handles."""

    def __init__(
        self,
        args: AppArgs,
        ledger: Ledger,
        watcher: Watcher,
        desk: Desk,
        effects: Callable[[list[str] | None, str | None, list[str], Method | None], Awaitable[Effects]],
        wake: Callable[[], None],
        metrics: GatewayMetrics,
        people: PeopleService | None = None,
        policies: PolicyService | None = None,
    ) -> None:
        self.args, self.ledger, self.watcher, self.metrics = args, ledger, watcher, metrics
        self.decisions = DecisionService(desk, watcher, args)
        self._keys, self.desk = KeyCache(ledger), desk
        self.effects = effects
        self._people, self._policies = people, policies
        self.briefs = BriefService(
            ledger, args.currency, lambda: self.watcher.catalogue, wake, args.llm.max_waiting
        )
        self.creatives = CreativeService(ledger, watcher.guard, watcher.catalogue)

    @property
    def people(self) -> PeopleService:
        """Consent, shop events and erasure, where this server has them."""
        if self._people is None:
            raise Problem(503, "users: this server was started without consent, events and erasure")
        return self._people

    @property
    def policies(self) -> PolicyService:
        """What judges policies, where this server has it."""
        if self._policies is None:
            raise Problem(503, "policies: this server was started without what judges them")
        return self._policies

    async def authorise(
        self, request: Request, credentials: HTTPAuthorizationCredentials | None, scope: Scope
    ) -> str:
        """Without keys only loopback may call; with keys every call needs one that allows `scope`.

        The name of the key, for the audit log.
        """
        now = scope not in HOT or (credentials is not None and not self._keys.known)
        if not await self._keys.any(now):
            client = request.client.host if request.client else ""
            if client in ("127.0.0.1", "::1", ""):
                return LOOPBACK
            if not await self._keys.any(now=True):  # the first key may be younger than what was known
                raise Problem(403, f"client {client}: no API keys exist, so only loopback may call; make one")
        if credentials is None:
            raise Problem(401, "Authorization: send `Bearer` and an API key from `qiance keys create`")
        principal = await self._keys.verify(credentials.credentials, scope not in HOT)
        if principal is None:
            raise Problem(401, "Authorization: the API key is unknown or revoked")
        if not principal.may(scope):
            raise Problem(403, f"Authorization: the key {principal.name!r} lacks the scope {scope.value!r}")
        return principal.name

    async def decide(self, body: DecisionRequest) -> Response:
        """The decision as JSON, written without going through a model: it was made here."""
        started = time.perf_counter()
        answer = await self.decisions.decide(body)
        self.metrics.decided(body.surface, answer.holdout, answer.degraded, time.perf_counter() - started)
        return Response(answer.body, media_type="application/json")

    async def decide_all(self, body: DecisionsRequest) -> Response:
        """One decision or problem per request, in order."""
        started = time.perf_counter()
        found: list[bytes] = []
        results = await self.decisions.decide_all(body.requests)
        each = (time.perf_counter() - started) / len(results)
        for request, result in zip(body.requests, results, strict=True):
            if isinstance(result, Problem):
                found.append(bytes(problems.response(result).body))
                continue
            self.metrics.decided(request.surface, result.holdout, result.degraded, each)
            found.append(result.body)
        return Response(b'{"decisions":[%b]}' % b",".join(found), media_type="application/json")

    async def record(self, body: OutcomesRequest) -> OutcomesResponse:
        """Store events durably, then settle what conversions used of their budgets."""
        events = [
            Outcome(e.event_id, e.decision_id, OutcomeType(e.type), e.occurred_at, e.value)
            for e in body.events
        ]
        try:
            receipt = await asyncio.to_thread(record_and_settle, self.ledger, events)
        except LedgerUnavailableError as error:
            return await self._keep(events, error)
        self.metrics.recorded(receipt.accepted, receipt.duplicates, len(receipt.rejected))
        return OutcomesResponse(
            accepted=receipt.accepted,
            duplicates=receipt.duplicates,
            rejected=[RejectedOut(index=r.index, code=r.code, detail=r.detail) for r in receipt.rejected],
        )

    async def _keep(self, events: list[Outcome], error: LedgerUnavailableError) -> OutcomesResponse:
        """Outcomes go to the local disk while the ledger is down; they are checked when it is back."""
        logger.warning("outcomes are kept here, since the ledger does not answer: %s", error)
        try:
            await self.desk.keep(events)
        except DeskLostError as ended:
            raise lost(ended) from None
        except SpoolFullError:
            raise Problem(
                503, "ledger: does not answer, and what can be kept here is full", retry_after=RETRY_AFTER_S
            ) from None
        degraded = ["ledger"]
        self.metrics.recorded(len(events), 0, 0, degraded)
        return OutcomesResponse(accepted=len(events), duplicates=0, rejected=[], degraded=degraded)

    async def predict(self, body: EffectsRequest, explain: Method | None = None) -> EffectsResponse:
        if (body.user_ids is None) == (body.segment is None):
            raise invalid("user_ids", body.user_ids, "give either user_ids or segment")
        try:
            found = await self.effects(body.user_ids, body.segment, body.actions, explain)
        except ValueError as error:
            field = str(error).split(":", 1)[0]
            raise Problem(422, str(error), [{"field": field, "value": "", "detail": str(error)}]) from error
        except Exception as error:  # whatever failed behind the handle, a later try may do
            logger.error("effects cannot be predicted: %r", error)
            raise Problem(503, "predictor: does not answer; try again", retry_after=RETRY_AFTER_S) from error
        return effects_out(body, found)

    async def health(self) -> Health:
        versions = self.watcher.state.versions
        missing = [n for n, v in (("model", versions.model), ("policy", versions.policy)) if v == NO_VERSION]
        degraded = missing + (["ledger"] if self.watcher.age_s > 5.0 else [])
        degraded += [] if self.desk.is_up else ["engine"]
        return Health(
            status="degraded" if degraded else "ready",
            model_version=versions.model,
            policy_version=versions.policy,
            degraded=degraded,
        )


def build_api(gateway_of: Callable[[], Gateway], max_body_bytes: int) -> FastAPI:
    """The FastAPI application; `gateway_of` gives the services once the replica has made them."""
    app = FastAPI(
        title="Qiance",
        version=__version__,
        description="The decision loop for e-commerce marketing: decisions, outcomes, effects, briefs.",
    )
    problems.install(app, max_body_bytes)
    # Added last, so that it comes first.
    app.add_middleware(Admission, service_of=lambda: gateway_of().decisions, paths=("/v1/decisions",))
    app.router.route_class = StrictRoute

    @app.exception_handler(LedgerUnavailableError)
    async def _(_: Request, error: LedgerUnavailableError) -> Any:
        logger.error("the ledger does not answer: %s", error)
        return problems.response(
            Problem(503, "ledger: does not answer; try again", retry_after=RETRY_AFTER_S)
        )

    def allow(scope: Scope) -> Any:
        async def check(
            request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
        ) -> str:
            return await gateway_of().authorise(request, credentials, scope)

        return Depends(check)

    async def decisions(body: DecisionRequest) -> Response:
        """What to do for a user; logged before it is answered."""
        return await gateway_of().decide(body)

    app.router.add_api_route(
        "/v1/decisions",
        decisions,
        methods=["POST"],
        dependencies=[allow(Scope.DECIDE)],
        tags=["live"],
        response_model=DecisionResponse,
        route_class_override=HotRoute,
    )

    @app.post(
        "/v1/decisions:batch",
        dependencies=[allow(Scope.DECIDE)],
        tags=["live"],
        response_model=DecisionsResponse,
    )
    async def decisions_batch(body: DecisionsRequest) -> Response:
        """What to do for many users; each decision is logged before any is answered."""
        return await gateway_of().decide_all(body)

    @app.post("/v1/outcomes", status_code=202, dependencies=[allow(Scope.OUTCOMES)], tags=["live"])
    async def outcomes(body: OutcomesRequest) -> OutcomesResponse:
        """What came of decisions; accepted means durable, a repeated event_id is harmless."""
        return await gateway_of().record(body)

    @app.post("/v1/effects", dependencies=[allow(Scope.READ)], tags=["planning"])
    async def effects(
        body: EffectsRequest,
        explain: Annotated[Method | None, Query(description="Also say why, by SHAP or LIME")] = None,
    ) -> EffectsResponse:
        """Predicted effects of live actions, per user or over a segment."""
        return await gateway_of().predict(body, explain)

    @app.get("/v1/strategies", dependencies=[allow(Scope.READ)], tags=["planning"])
    async def strategies(
        state: Annotated[StrategyState | None, Query()] = None,
        brief_id: Annotated[str | None, Query()] = None,
    ) -> list[StrategyOut]:
        """Strategies in the order they were proposed."""
        found = await asyncio.to_thread(gateway_of().ledger.strategies, state, brief_id)
        return [strategy_out(s) for s in found]

    add_briefs(app, lambda: gateway_of().briefs, allow)
    add_creatives(app, lambda: gateway_of().creatives, allow)
    add_people(app, lambda: gateway_of().people, allow)
    add_policies(app, lambda: gateway_of().policies, allow)

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Health:
        """Whether this replica can decide with a model and a policy."""
        return await gateway_of().health()

    return app
