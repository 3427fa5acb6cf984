"""What is live right now, learned from one version row that is polled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from qiance.decide.floors import margin_floor_mask
from qiance.decide.predictor import liability_of, vectors_of
from qiance.domain import CONTROL_ACTION, Action, Catalogue, Channel, Strategy, StrategyState
from qiance.features.columns import NO_VECTORS, unread
from qiance.features.words import TEXT_ENCODER, Vectors
from qiance.guard import Guard
from qiance.guard.gate import servable
from qiance.ledger import Ledger, LedgerUnavailableError, Versions
from qiance.ledger.schema import to_micros

POLL_S = 0.25
_NO_CHANNEL = Channel.NONE.value
_FIRST, _LAST = -(2**62), 2**62  # before and after every instant
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveState:
    """One consistent view: candidates in order, control first.

    liability: `[A]` most that an action may cost its budget, minor units.
    candidate_set: content hash of the actions, under which the ledger keeps them for replay.
    item_row: `[A]` rows of the catalogue, −1 without an item. vectors: of the actions' words, by text.
    """

    versions: Versions
    actions: tuple[Action, ...]
    liability: NDArray[np.int64]
    item_row: NDArray[np.int64]
    strategies: Mapping[str, Strategy] = field(default_factory=dict)
    candidate_set: str = ""
    vectors: Vectors = field(default_factory=lambda: NO_VECTORS)

    @cached_property
    def action_ids(self) -> tuple[str, ...]:
        return tuple(action.action_id for action in self.actions)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Action id → column."""
        return {action_id: column for column, action_id in enumerate(self.action_ids)}

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """`[A]` where an action reaches the user; `none` for control."""
        return tuple(action.channel.value for action in self.actions)

    @cached_property
    def budgets(self) -> tuple[str, ...]:
        """Budgets that live actions spend."""
        return tuple(sorted({strategy.brief_id for strategy in self.strategies.values()}))

    @cached_property
    def budget_of(self) -> NDArray[np.int64]:
        """`[A]` place in `budgets`, −1 for control."""
        place = {name: n for n, name in enumerate(self.budgets)}
        return np.array(
            [-1 if a.is_control else place[self.strategies[a.strategy_id].brief_id] for a in self.actions]
        )

    @cached_property
    def needed(self) -> Mapping[str, int]:
        """Budget → the most that one of its actions may cost."""
        return {
            name: int(self.liability[self.budget_of == n].max(initial=0))
            for n, name in enumerate(self.budgets)
        }

    @cached_property
    def _schedule(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        live = [None if a.is_control else self.strategies[a.strategy_id] for a in self.actions]
        starts = [_FIRST if s is None else to_micros(s.starts) for s in live]
        ends = [_LAST if s is None else to_micros(s.ends) for s in live]
        return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)

    def in_schedule(self, at_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`[U, A]` whether each action's strategy runs at `at_us` `[U]`; control always does."""
        starts, ends = self._schedule
        return np.asarray((starts <= at_us[:, None]) & (at_us[:, None] < ends))

    def rows_of(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of the catalogue of those items that a live action is about."""
        rows = self._row_of_item
        return np.array([rows[name] for name in item_ids if name in rows], dtype=np.int64)

    @cached_property
    def _row_of_item(self) -> Mapping[str, int]:
        pairs = zip(self.actions, self.item_row.tolist(), strict=True)
        return {action.item_id: row for action, row in pairs if action.item_id is not None}

    def reach(self, channel: str | None) -> NDArray[np.bool_]:
        """`[A]` actions that contact the user over `channel`, over any if None."""
        return self._reached[channel]

    @cached_property
    def _reached(self) -> Mapping[str | None, NDArray[np.bool_]]:
        of_action = np.array(self.channels)
        contacts = of_action != _NO_CHANNEL
        return {None: contacts, **{c.value: contacts & (of_action == c.value) for c in Channel}}


def floors(state: LiveState, catalogue: Catalogue, min_margin: float) -> NDArray[np.bool_]:
    """`[A]` whether the item still earns `min_margin` of its price after the action's offer."""
    clear = np.ones(len(state.actions), dtype=np.bool_)
    sold = np.flatnonzero(state.item_row >= 0)
    if len(sold):
        items = list(catalogue)
        prices, costs = ([getattr(items[r], n) for r in state.item_row[sold]] for n in ("price", "unit_cost"))
        depths = [state.actions[column].offer.depth for column in sold]
        clear[sold] = margin_floor_mask(np.array(prices), np.array(costs), np.array(depths), min_margin)
    return clear


def read_state(ledger: Ledger, catalogue: Catalogue, guard: Guard) -> LiveState:
    """The live strategies and versions as they are in the ledger now; only words of the bank are in it."""
    versions = ledger.versions()
    strategies = [s for s in ledger.strategies(state=StrategyState.LIVE) if _is_sold(s, catalogue)]
    admitted = servable(ledger, guard, catalogue, strategies)
    actions = (
        CONTROL_ACTION,
        *(action for s in strategies for action in s.actions if action.action_id in admitted),
    )
    liability = [0 if a.is_control else liability_of(a, catalogue) for a in actions]
    rows = [-1 if a.item_id is None else catalogue.index[a.item_id] for a in actions]
    vectors = vectors_of(actions, partial(ledger.text_vectors, TEXT_ENCODER))
    missing = unread(actions, vectors)
    read_by = {
        action.action_id: TEXT_ENCODER
        for action, without in zip(actions, missing, strict=True)
        if action.creative is not None and not without
    }
    return LiveState(
        versions,
        actions,
        np.array(liability, dtype=np.int64),
        np.array(rows, dtype=np.int64),
        {s.strategy_id: s for s in strategies},
        ledger.put_candidates(actions, read_by),
        vectors,
    )


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
        guard: Guard,
        on_change: Callable[[LiveState], None] | None = None,
    ) -> None:
        self._ledger, self.catalogue, self.guard, self._on_change = ledger, catalogue, guard, on_change
        self.state = read_state(ledger, catalogue, guard)
        self._seen_at = time.monotonic()
        self._stop, self._lock = threading.Event(), threading.Lock()
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
        with self._lock:
            serial = self._ledger.versions().serial
            self._seen_at = time.monotonic()
            if serial != self.state.versions.serial:
                fresh = read_state(self._ledger, self.catalogue, self.guard)
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
