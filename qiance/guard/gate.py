"""The one gate to service: words are linted here, and the ledger takes them from nowhere else.

propose ─ put_strategies ─ draft ─┐
                                  ├─ move_strategy ─ lint ─ bank ─ approved, live
qiance strategies approve, start ─┘
serve.live.read_state ─ servable ─ only approved words of the bank, linted again if anything changed
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qiance.domain import Catalogue, Strategy, StrategyState
from qiance.guard.guard import Guard
from qiance.guard.results import Linted, creative_id_of
from qiance.guard.subject import subjects_of

if TYPE_CHECKING:
    from qiance.ledger import Ledger

logger = logging.getLogger(__name__)
BY = "guard"


def bank_strategies(
    ledger: Ledger, guard: Guard, catalogue: Catalogue | None, strategies: Sequence[Strategy], by: str = BY
) -> list[Linted]:
    """Puts the words of `strategies` into the bank as drafts, with what the lint says of them."""
    linted = [each for strategy in strategies for each in guard.lint_strategy(strategy, catalogue)]
    ledger.put_creatives(linted, by)
    return linted


def move_strategy(
    ledger: Ledger,
    guard: Guard,
    catalogue: Catalogue | None,
    strategy_id: str,
    state: StrategyState,
    by: str,
    reason: str,
) -> Strategy:
    """Moves a strategy on, with its words linted on the way; ValueError says which rule blocks them."""
    known = ledger.strategy(strategy_id)
    linted = () if known is None else tuple(guard.lint_strategy(known, catalogue))
    return ledger.set_strategy_state(strategy_id, state, by, reason, linted)


def relint_creative(ledger: Ledger, guard: Guard, catalogue: Catalogue | None, creative_id: str) -> Linted:
    """The words of one entry of the bank under the rules and facts of now; ValueError if it is not there."""
    entry = ledger.creative(creative_id)
    if entry is None:
        raise ValueError(f"creative_id: {creative_id!r} is not in the bank; `qiance creatives list` shows it")
    subject = entry.subject
    if catalogue is not None and subject.item_id is not None and subject.item_id in catalogue.index:
        subject = replace(subject, item=catalogue[subject.item_id])
    return guard.lint(subject)


def servable(
    ledger: Ledger, guard: Guard, catalogue: Catalogue, strategies: Sequence[Strategy]
) -> frozenset[str]:
    """Ids of the actions of `strategies` that may be served: those whose words are approved and pass.

    Words whose rules or facts changed since their last lint are linted again first. An action without words
    says nothing that could be wrong, and may be served.
    """
    approved = ledger.approved_creatives()
    found: set[str] = set()
    again: list[Linted] = []
    for strategy in strategies:
        found.update(action.action_id for action in strategy.actions if action.creative is None)
        for action_id, subject in subjects_of(strategy, catalogue).items():
            creative_id = creative_id_of(subject)
            if creative_id not in approved:
                logger.error("%s is left out: its words %s are not approved", action_id, creative_id)
                continue
            if approved[creative_id] != guard.checked(subject):
                again.append(guard.lint(subject))
                if again[-1].result.blocked:
                    logger.error("%s is left out: %s", action_id, again[-1].result.why())
                    continue
            found.add(action_id)
    ledger.put_creatives(again, BY)
    return frozenset(found)
