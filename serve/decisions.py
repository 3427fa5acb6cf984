"""One decision, from the request to the durable log; a plain class, wrapped by the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from qiance.decide.holdout import holdout
from qiance.domain import Decision, Effect
from qiance.ledger import NO_VERSION, DuplicateDecisionError, Ledger
from serve.args import AppArgs
from serve.drawing import Case, Drawing, Pick
from serve.live import LiveState, Watcher, clears_floor
from serve.predictor import Scored, ScoreRequest
from serve.problems import Problem, invalid
from serve.schemas import DecisionRequest, within_reach

Scorer = Callable[[ScoreRequest], Awaitable[Scored]]
CONTACT_WINDOW = timedelta(days=7)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a client is told: the first decision, and (action, propensity, effect) per position."""

    decision_id: str
    picks: tuple[Pick, ...]
    model_version: str
    policy_version: str
    degraded: tuple[str, ...]
    holdout: bool


@dataclass(frozen=True)
class Asked:
    """What is known of the user before scoring."""

    stored: Decision | None
    pseudonym: str
    contacts_7d: int


class DecisionService:
    """Decides, reserves budget and logs, before anything is answered."""

    def __init__(self, ledger: Ledger, watcher: Watcher, scorer: Scorer, args: AppArgs) -> None:
        self._ledger, self._watcher, self._scorer, self._args = ledger, watcher, scorer, args
        self._underway: dict[str, asyncio.Event] = {}

    async def decide(self, request: DecisionRequest) -> Answer:
        """The answer to `request`; raises Problem for what the client must mend."""
        if request.request_id is None:
            return await self._decide(request)
        # The positions of a decision are logged one by one: a repeat waits until the first has them all.
        first = self._underway.get(request.request_id)
        if first is not None:
            await first.wait()
            return await self._decide(request)
        done = self._underway[request.request_id] = asyncio.Event()
        try:
            return await self._decide(request)
        finally:
            del self._underway[request.request_id]
            done.set()

    async def _decide(self, request: DecisionRequest) -> Answer:
        at = self._now(request)
        self._check(request)
        asked = await asyncio.to_thread(self._ask, request, at)
        state = self._watcher.state
        if asked.stored is not None:
            return await asyncio.to_thread(self._stored_answer, asked.stored, asked.pseudonym, state)
        scored, degraded = await self._score(request, asked, state, at)
        held = bool(holdout([asked.pseudonym], self._args.tenant, self._args.holdout)[0])
        idle = held or "no_policy" in degraded or "killed" in degraded
        case = Case(request, at, asked.pseudonym, held, idle, state, scored, degraded)
        return await asyncio.to_thread(self._commit, case)

    def _now(self, request: DecisionRequest) -> datetime:
        if self._args.clock == "system":
            return self._args.now()
        told = request.context.get("now")
        try:
            at = datetime.fromisoformat(str(told))
        except ValueError:
            raise invalid("context.now", told, "this server simulates time: send an ISO 8601 time") from None
        if at.tzinfo is None:
            raise invalid("context.now", told, "has no offset; end it with +00:00")
        try:
            return within_reach(at)
        except ValueError as error:
            raise invalid("context.now", told, str(error)) from None

    def _check(self, request: DecisionRequest) -> None:
        args = self._args
        if request.n > args.max_n:
            raise invalid("n", request.n, f"at most {args.max_n} actions a decision")
        if request.candidates is not None:
            if len(request.candidates) > args.max_candidates:
                raise invalid("candidates", len(request.candidates), f"at most {args.max_candidates} items")
            for item in request.candidates:
                if item not in self._watcher.catalogue.index:
                    raise invalid("candidates", item, "is not in the catalogue")

    def _ask(self, request: DecisionRequest, at: datetime) -> Asked:
        stored = self._ledger.find_request(request.request_id) if request.request_id else None
        pseudonym = self._ledger.pseudonym(request.user_id)
        if self._args.clock == "request":
            self._ledger.advance_clock(at)
        return Asked(stored, pseudonym, self._ledger.contacts_since(pseudonym, at - CONTACT_WINDOW))

    async def _score(
        self, request: DecisionRequest, asked: Asked, state: LiveState, at: datetime
    ) -> tuple[Scored, tuple[str, ...]]:
        """Scores from the predictor, or the strategies' mean effects when it does not answer in time."""
        if state.versions.policy == NO_VERSION or state.versions.killed:
            return self._means(state), ("killed" if state.versions.killed else "no_policy",)
        try:
            call = self._scorer(ScoreRequest(request.user_id, asked.contacts_7d, at))
            scored = await asyncio.wait_for(call, self._args.request_timeout_s)
            if not (np.isfinite(scored.value).all() and np.isfinite(scored.cost).all()):
                raise ValueError(f"model {scored.model_version} predicts values that are not finite")
        except Exception as error:  # whatever part of the predictor failed, the ladder's next step serves
            logger.warning("decided by the strategies' means: %r", error)
            return self._means(state), ("predictor",)
        return scored, scored.degraded

    def _commit(self, case: Case) -> Answer:
        drawing = Drawing(self._ledger, self._args, case)
        try:
            picks = drawing.picks()
        except DuplicateDecisionError as duplicate:
            return self._stored_answer(duplicate.stored, case.pseudonym, case.state)
        policy = case.state.versions.policy
        return Answer(drawing.decision_id, picks, case.scored.model_version, policy, case.degraded, case.held)

    def _stored_answer(self, decision: Decision, pseudonym: str, state: LiveState) -> Answer:
        """The answer given before, also where its strategies are no longer live."""
        if decision.pseudonym != pseudonym:
            raise Problem(409, "request_id: was used for another user; give each request its own")
        rows: list[Decision] = [decision]
        while (row := self._ledger.decision(f"{decision.decision_id}.{len(rows)}")) is not None:
            rows.append(row)
        actions = {action.action_id: action for action in state.actions}
        if any(row.action_id not in actions for row in rows):
            actions |= {a.action_id: a for s in self._ledger.strategies() for a in s.actions}
        picks = [(actions[row.action_id], row.propensity, None) for row in rows]
        return Answer(
            decision.decision_id,
            tuple(picks),
            decision.model_version,
            decision.policy_version,
            (*decision.degraded, "repeated"),
            decision.holdout,
        )

    def _means(self, state: LiveState) -> Scored:
        """The last step before control: every candidate at its strategy's mean predicted effect."""
        size = len(state.actions)
        value, cost = np.zeros(size), np.zeros(size)
        effects: list[Effect | None] = [None] * size
        everybody = np.ones(size, dtype=np.bool_)
        for column, action in enumerate(state.actions[1:], start=1):
            strategy = state.strategies[action.strategy_id]
            effects[column] = strategy.effect
            # Without the user's features an audience rule cannot be checked: only open audiences stay.
            everybody[column] = not strategy.audience.conditions and clears_floor(
                action, self._watcher.catalogue, self._args.min_margin
            )
            value[column] = strategy.effect.uplift.value if strategy.effect else 0.0
            cost[column] = float(state.liability[column])
        return Scored(
            serial=state.versions.serial,
            action_ids=state.action_ids,
            value=value,
            cost=cost,
            admissible=everybody,
            effects=tuple(effects),
            model_version=state.versions.model,
            degraded=(),
        )
