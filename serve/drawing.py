"""The draw of a decision: who may get what, one choice per position, logged with its share of the budget."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.decide.rule import Decided, decide
from qiance.domain import Action, Decision, Effect
from qiance.ledger import Ledger, Reservation
from serve.args import AppArgs
from serve.live import LiveState
from serve.predictor import Scored
from serve.schemas import DecisionRequest

Mask = NDArray[np.bool_]
Pick = tuple[Action, float, Effect | None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """What a decision is drawn from; arrays over actions are in the order of `scored`.

    held: the user is in the holdout. idle: nothing but control may be done, for whatever reason.
    """

    request: DecisionRequest
    at: datetime
    pseudonym: str
    held: bool
    idle: bool
    state: LiveState
    scored: Scored
    degraded: tuple[str, ...]


class Drawing:
    """Draws the positions of one decision."""

    def __init__(self, ledger: Ledger, args: AppArgs, case: Case) -> None:
        self._ledger, self._args, self._case = ledger, args, case
        self.decision_id = secrets.token_hex(16)
        live = {action.action_id: action for action in case.state.actions}
        self._actions = [live.get(name) for name in case.scored.action_ids]
        self._claims = [self._claim(action) for action in self._actions]
        self._mask = self._admissible()

    def picks(self) -> tuple[Pick, ...]:
        """The choices, each logged; raises DuplicateDecisionError where the request was answered before.

        Ends early with control, or when nothing else is left.
        """
        found: list[Pick] = []
        for position in range(self._case.request.n):
            if position and not self._mask[1:].any():
                break
            decision = self._one(position)
            action = self._actions[decision.chosen]
            assert action is not None, "masked columns are never chosen"
            found.append((action, decision.propensity, self._case.scored.effects[decision.chosen]))
            if action.is_control:
                break
            self._mask[decision.chosen] = False
        return tuple(found)

    def _admissible(self) -> Mask:
        """`[A]`: live, for this audience, on schedule, a candidate; control always."""
        case, size = self._case, len(self._actions)
        if case.idle:
            return np.asarray(np.arange(size) == 0, dtype=np.bool_)
        scheduled = dict(zip(case.state.action_ids, case.state.in_schedule(case.at), strict=True))
        mask = case.scored.admissible & [scheduled.get(name, False) for name in case.scored.action_ids]
        if case.request.candidates is not None:
            wanted = set(case.request.candidates)
            mask &= [a is not None and a.item_id in wanted for a in self._actions]
        mask[0] = True
        return np.asarray(mask, dtype=np.bool_)

    def _one(self, position: int) -> Decision:
        """Choose, reserve and log one position."""
        while True:
            # Looked up before the draw: what a budget cannot pay is no choice, or propensities were wrong.
            mask = self._mask & self._affordable()
            decision = self._decision(position, self._draw(mask))
            if self._ledger.record_decision(decision, self._claims[decision.chosen]):
                return decision
            # Another replica took the money after we looked: drawn again without the action.
            self._mask[decision.chosen] = False

    def _draw(self, mask: Mask) -> Decided:
        scored = self._case.scored
        uniform = secrets.randbits(53) / (1 << 53)
        price, epsilon = self._case.state.versions.shadow_price, self._args.epsilon
        return decide(
            scored.value[None], scored.cost[None], mask[None], price, epsilon, uniforms=np.array([uniform])
        )

    def _decision(self, position: int, decided: Decided) -> Decision:
        case = self._case
        return Decision(
            decision_id=f"{self.decision_id}.{position}" if position else self.decision_id,
            tenant_id=self._args.tenant,
            request_id=None if position else case.request.request_id,
            pseudonym=case.pseudonym,
            surface=case.request.surface,
            decided_at=case.at,
            candidates=case.scored.action_ids,
            scores=tuple(float(x) for x in decided.score[0]),
            costs=tuple(float(x) for x in case.scored.cost),
            probabilities=tuple(float(x) for x in decided.probabilities[0]),
            chosen=int(decided.choice[0]),
            holdout=case.held,
            model_version=case.scored.model_version,
            policy_version=case.state.versions.policy,
            degraded=case.degraded,
            snapshot=str(case.scored.serial),
            uniform=float(decided.uniforms[0]),
        )

    def _claim(self, action: Action | None) -> Reservation | None:
        """What the action sets aside: all that it may cost."""
        state = self._case.state
        if action is None or action.is_control:
            return None
        amount = state.liability[state.index()[action.action_id]]
        if amount == 0:
            return None
        expires = self._case.at + timedelta(hours=self._args.outcome_window_hours)
        return Reservation(
            state.strategies[action.strategy_id].brief_id, amount, expires, action.contact_cost
        )

    def _affordable(self) -> Mask:
        """`[A]` whether its budget can pay each admissible action now."""
        wanted = [claim if open_ else None for claim, open_ in zip(self._claims, self._mask, strict=True)]
        left = {name: self._left(name) for name in {claim.budget_id for claim in wanted if claim}}
        return np.array([claim is None or claim.amount <= left[claim.budget_id] for claim in wanted])

    def _left(self, budget_id: str) -> int:
        try:
            return self._ledger.budget(budget_id).left
        except ValueError as error:  # never opened: its strategies cannot spend
            logger.error("%s", error)
            return -1
