"""What a decision tells its client, and how that is written as JSON."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from qiance.domain import Action, Catalogue, Creative, Effect
from qiance.ledger.codec import effect_to_dict
from qiance.strategy.slots import bind, facts_for
from serve.live import LiveState
from serve.problems import Problem
from serve.schemas import creative_out, offer_out

Pick = tuple[Action, float, Effect | None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client is told: the first decision, and (action, propensity, effect) per position."""

    decision_id: str
    picks: tuple[Pick, ...]
    model_version: str
    policy_version: str
    degraded: tuple[str, ...]
    holdout: bool


@dataclass(frozen=True, slots=True)
class Written:
    """An answer as its client gets it: JSON, and what is counted of it."""

    body: bytes
    holdout: bool
    degraded: tuple[str, ...]


def of_another_user() -> Problem:
    """What is answered to whoever comes with the `request_id` of another user's request."""
    return Problem(409, "request_id: was used for another user; give each request its own")


class Writer:
    """Answers as JSON; the part of an action that is the same for every user is worked out once."""

    def __init__(self, catalogue: Catalogue, currency: str) -> None:
        self._catalogue, self._currency = catalogue, currency
        self._state: LiveState | None = None
        self._known: dict[str, dict[str, Any]] = {}

    def document(self, answer: Answer, state: LiveState) -> dict[str, Any]:
        """`DecisionResponse` as plain values; `words` is degraded where a contact lacks its words."""
        if state is not self._state:  # a schedule that moved changes the words of its actions
            self._state, self._known = state, {}
        actions = [self._action(*pick, state) for pick in answer.picks]
        wordless = any(a["channel"] != "none" and a["creative"] is None for a in actions)
        return {
            "decision_id": answer.decision_id,
            "actions": actions,
            "model_version": answer.model_version,
            "policy_version": answer.policy_version,
            "degraded": [*answer.degraded, *(["words"] if wordless else [])],
        }

    def write(self, answer: Answer, state: LiveState) -> Written:
        """The JSON of `document`, and what is counted of it: `words` too."""
        document = self.document(answer, state)
        body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return Written(body, answer.holdout, tuple(document["degraded"]))

    def words(self, action: Action, state: LiveState) -> Creative | None:
        """The action's words with the facts in their slots; None if a fact is missing: nothing is made up."""
        if action.creative is None or action.item_id is None:
            return action.creative
        if action.item_id not in self._catalogue.index:
            return None
        strategy = state.strategies.get(action.strategy_id)
        ends = strategy.ends if strategy else None
        facts = facts_for(action, self._catalogue[action.item_id], ends, self._currency)
        try:
            return bind(action.creative, facts, action.creative.language)
        except ValueError as error:
            logger.error("the words of %s are left out: %s", action.action_id, error)
            return None

    def _action(
        self, action: Action, propensity: float, effect: Effect | None, state: LiveState
    ) -> dict[str, Any]:
        known = self._known.get(action.action_id)
        if known is None or known["strategy_id"] != action.strategy_id:
            known = self._known[action.action_id] = self._fixed(action, state)
        return {**known, "propensity": propensity, "effect": effect_to_dict(effect) if effect else None}

    def _fixed(self, action: Action, state: LiveState) -> dict[str, Any]:
        return {
            "action_id": action.action_id,
            "strategy_id": action.strategy_id,
            "kind": action.kind.value if action.kind else None,
            "item_id": action.item_id,
            "offer": offer_out(action),
            "creative": creative_out(self.words(action, state)),
            "channel": action.channel.value,
        }
