"""What is live right now, learned from one version row that is polled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from qiance.decide.floors import margin_floor_mask
from qiance.decide.predictor import liability_of
from qiance.domain import CONTROL_ACTION, Action, Catalogue, Strategy, StrategyState
from qiance.ledger import Ledger, LedgerUnavailableError, Versions

POLL_S = 0.25
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveState:
    """One consistent view: candidates in order, control first.

    liability: `[A]` most that an action may cost its budget, minor units.
    """

    versions: Versions
    actions: tuple[Action, ...]
    liability: tuple[int, ...]
    strategies: Mapping[str, Strategy] = field(default_factory=dict)

    @property
    def action_ids(self) -> tuple[str, ...]:
        return tuple(action.action_id for action in self.actions)

    def index(self) -> dict[str, int]:
        """Action id → column."""
        return {action.action_id: column for column, action in enumerate(self.actions)}

    def in_schedule(self, at: datetime) -> list[bool]:
        """Per action, whether its strategy runs at `at`; control always does."""
        return [
            action.is_control
            or self.strategies[action.strategy_id].starts <= at < self.strategies[action.strategy_id].ends
            for action in self.actions
        ]


def clears_floor(action: Action, catalogue: Catalogue, min_margin: float) -> bool:
    """Whether the item still earns `min_margin` of its price after the action's offer."""
    if action.item_id is None:
        return True
    item = catalogue[action.item_id]
    clears = margin_floor_mask(
        np.array([item.price]), np.array([item.unit_cost]), np.array([action.offer.depth]), min_margin
    )
    return bool(clears[0])


def read_state(ledger: Ledger, catalogue: Catalogue) -> LiveState:
    """The live strategies and versions as they are in the ledger now."""
    versions = ledger.versions()
    strategies = [s for s in ledger.strategies(state=StrategyState.LIVE) if _is_sold(s, catalogue)]
    actions = (CONTROL_ACTION, *(action for s in strategies for action in s.actions))
    liability = tuple(0 if a.is_control else liability_of(a, catalogue) for a in actions)
    return LiveState(versions, actions, liability, {s.strategy_id: s for s in strategies})


def _is_sold(strategy: Strategy, catalogue: Catalogue) -> bool:
    """Whether the catalogue has the strategy's items; one that it lacks must not hold up the others."""
    missing = [a.item_id for a in strategy.actions if a.item_id and a.item_id not in catalogue.index]
    if missing:
        logger.error("strategy %s is left out: item %s is not sold", strategy.strategy_id, missing[0])
    return not missing


class Watcher:
    """Polls the version row in a thread and swaps the state when its serial changes."""

    def __init__(
        self,
        ledger: Ledger,
        catalogue: Catalogue,
        on_change: Callable[[LiveState], None] | None = None,
    ) -> None:
        self._ledger, self.catalogue, self._on_change = ledger, catalogue, on_change
        self.state = read_state(ledger, catalogue)
        self._seen_at = time.monotonic()
        self._stop = threading.Event()
        if on_change:
            on_change(self.state)
        self._thread = threading.Thread(target=self._poll, name="qiance-versions", daemon=True)
        self._thread.start()

    @property
    def age_s(self) -> float:
        """Seconds since the ledger last answered."""
        return time.monotonic() - self._seen_at

    def close(self) -> None:
        """Stop polling."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def refresh(self) -> LiveState:
        """Read now rather than at the next poll; strategies are read only when the serial moved."""
        serial = self._ledger.versions().serial
        self._seen_at = time.monotonic()
        if serial != self.state.versions.serial:
            fresh = read_state(self._ledger, self.catalogue)
            if self._on_change:
                self._on_change(fresh)
            self.state = fresh
        return self.state

    def _poll(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.refresh()
            except LedgerUnavailableError as error:
                logger.warning("the version row cannot be read, the last state stays: %s", error)
            except Exception as error:  # a damaged artifact, say: what served before goes on
                logger.error("the new state cannot be used, the last one stays: %r", error)
