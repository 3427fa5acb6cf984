"""One decision, from the request to the durable log; a plain class, wrapped by the gateway."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.decide.holdout import holdout
from qiance.decide.rule import decide
from qiance.domain import Action, Decision, Effect
from qiance.ledger import NO_VERSION, DuplicateDecisionError, Ledger, Reservation
from serve.args import AppArgs
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
    picks: tuple[tuple[Action, float, Effect | None], ...]
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
        scored, degraded = await self._score(request, asked, state)
        return await asyncio.to_thread(self._commit, request, at, asked, state, scored, degraded)

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
        self, request: DecisionRequest, asked: Asked, state: LiveState
    ) -> tuple[Scored, tuple[str, ...]]:
        """Scores from the predictor, or the strategies' mean effects when it does not answer in time."""
        if state.versions.policy == NO_VERSION or state.versions.killed:
            return self._means(state), ("killed" if state.versions.killed else "no_policy",)
        try:
            call = self._scorer(ScoreRequest(request.user_id, asked.contacts_7d))
            scored = await asyncio.wait_for(call, self._args.request_timeout_s)
            if not (np.isfinite(scored.value).all() and np.isfinite(scored.cost).all()):
                raise ValueError(f"model {scored.model_version} predicts values that are not finite")
        except Exception as error:  # whatever part of the predictor failed, the ladder's next step serves
            logger.warning("decided by the strategies' means: %r", error)
            return self._means(state), ("predictor",)
        return scored, scored.degraded

    def _commit(
        self,
        request: DecisionRequest,
        at: datetime,
        asked: Asked,
        state: LiveState,
        scored: Scored,
        degraded: tuple[str, ...],
    ) -> Answer:
        index = state.index()
        known = [a in index for a in scored.action_ids]
        actions = [state.actions[index[a]] if a in index else None for a in scored.action_ids]
        held = bool(holdout([asked.pseudonym], self._args.tenant, self._args.holdout)[0])
        idle = held or "no_policy" in degraded or "killed" in degraded
        mask = self._mask(request, at, state, scored, actions, known, idle)
        decision_id = secrets.token_hex(16)
        picks: list[tuple[Action, float, Effect | None]] = []
        for position in range(request.n):
            if position and not mask[1:].any():
                break
            decision, column = self._one(
                request, at, asked, state, scored, mask, held, degraded, decision_id, position
            )
            if decision.decision_id != (decision_id if not position else f"{decision_id}.{position}"):
                return self._stored_answer(decision, asked.pseudonym, state)
            action = actions[column]
            assert action is not None, "masked columns are never chosen"
            picks.append((action, decision.propensity, scored.effects[column]))
            if column == 0:
                break
            mask[column] = False
        return Answer(decision_id, tuple(picks), scored.model_version, state.versions.policy, degraded, held)

    def _mask(
        self,
        request: DecisionRequest,
        at: datetime,
        state: LiveState,
        scored: Scored,
        actions: Sequence[Action | None],
        known: Sequence[bool],
        idle: bool,
    ) -> NDArray[np.bool_]:
        mask = scored.admissible & np.array(known)
        scheduled = dict(zip(state.action_ids, state.in_schedule(at), strict=True))
        mask &= np.array([scheduled.get(a, False) for a in scored.action_ids])
        if request.candidates is not None:
            wanted = set(request.candidates)
            mask &= np.array([a is not None and (a.is_control or a.item_id in wanted) for a in actions])
        if idle:
            mask[:] = False
        mask[0] = True
        return np.asarray(mask, dtype=np.bool_)

    def _one(
        self,
        request: DecisionRequest,
        at: datetime,
        asked: Asked,
        state: LiveState,
        scored: Scored,
        mask: NDArray[np.bool_],
        held: bool,
        degraded: tuple[str, ...],
        decision_id: str,
        position: int,
    ) -> tuple[Decision, int]:
        """Choose, reserve and log one position; an action that its budget refuses is masked and redrawn."""
        while True:
            decided = decide(
                scored.value[None],
                scored.cost[None],
                mask[None],
                state.versions.shadow_price,
                self._args.epsilon,
                uniforms=np.array([secrets.randbits(53) / (1 << 53)]),
            )
            column = int(decided.choice[0])
            decision = Decision(
                decision_id=decision_id if position == 0 else f"{decision_id}.{position}",
                tenant_id=self._args.tenant,
                request_id=request.request_id if position == 0 else None,
                pseudonym=asked.pseudonym,
                surface=request.surface,
                decided_at=at,
                candidates=scored.action_ids,
                scores=tuple(float(x) for x in decided.score[0]),
                costs=tuple(float(x) for x in scored.cost),
                probabilities=tuple(float(x) for x in decided.probabilities[0]),
                chosen=column,
                holdout=held,
                model_version=scored.model_version,
                policy_version=state.versions.policy,
                degraded=degraded,
                snapshot=str(scored.serial),
                uniform=float(decided.uniforms[0]),
            )
            try:
                if self._ledger.record_decision(decision, self._reservation(state, decision, at)):
                    return decision, column
            except DuplicateDecisionError as duplicate:
                return duplicate.stored, duplicate.stored.chosen
            except ValueError as error:
                if column == 0:
                    raise
                # Such as a budget that was never opened: an action that cannot be booked is not shown.
                logger.error("action %s is left out: %s", decision.action_id, error)
            mask[column] = False

    def _reservation(self, state: LiveState, decision: Decision, at: datetime) -> Reservation | None:
        column = state.index().get(decision.action_id, 0)
        if column == 0 or state.liability[column] == 0:
            return None
        strategy = state.strategies[state.actions[column].strategy_id]
        window = timedelta(hours=self._args.outcome_window_hours)
        contact = state.actions[column].contact_cost
        return Reservation(strategy.brief_id, state.liability[column], at + window, contact)

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
