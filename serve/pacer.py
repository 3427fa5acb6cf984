"""The pacer: once a day it moves the shadow price, and it gives expired reservations back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from qiance.decide.pacing import PacingPolicy, PacingState, observe
from qiance.decide.plan import KIND, Plan
from qiance.domain import CONTROL
from qiance.ledger import NO_VERSION, Ledger, LedgerUnavailableError
from qiance.workspace import Workspace

TICK_S = 0.25
DAY = timedelta(days=1)
PolicyLoader = Callable[[Path], PacingPolicy]
logger = logging.getLogger(__name__)


class Pacer:
    """Follows the plan that the version row names; a plain class, wrapped by a deployment in app.py.

    clock: tells the time, or None while a simulation has not begun.
    """

    def __init__(
        self,
        workspace: Workspace,
        ledger: Ledger,
        load_policy: PolicyLoader,
        clock: Callable[[], datetime | None],
        publish: Callable[[str, int, int, float], None] = lambda budget, spent, cap, price: None,
    ) -> None:
        self._workspace, self._ledger, self._load_policy = workspace, ledger, load_policy
        self._clock, self._publish = clock, publish
        self._version = ""
        self._plan: Plan | None = None
        self._policy: PacingPolicy | None = None
        self._day = -1
        self._multiplier, self._spent_before = 1.0, 0
        self._stop = threading.Event()

    def run(self) -> None:
        """Tick until stopped; errors of the ledger are waited out."""
        while not self._stop.wait(TICK_S):
            try:
                self.tick(self._clock())
            except (LedgerUnavailableError, ValueError) as error:
                logger.warning("pacing waits: %s", error)

    def stop(self) -> None:
        """End `run` at its next tick."""
        self._stop.set()

    def tick(self, now: datetime | None) -> float | None:
        """Do what is due at `now`; the new shadow price, or None if nothing changed."""
        if now is None:
            return None
        self._ledger.release_expired(now)
        self._adopt()
        if self._plan is None or self._policy is None:
            return None
        self._publish_state(self._plan)
        day = (now - self._plan.starts) // DAY  # rounded down: negative before the start
        if day <= self._day or not 0 <= day < self._plan.horizon_days:
            return None
        state = self._observe(self._plan, day, now)
        self._multiplier = self._policy.multiplier(observe(state))
        self._day, self._spent_before = day, int(state.spent)
        price = self._plan.shadow_price * self._multiplier
        self._ledger.set_versions(shadow_price=price, by="pacer")
        return price

    def _publish_state(self, plan: Plan) -> None:
        """At every tick: Ray forgets a gauge that is not set again within some seconds."""
        budget = self._ledger.budget(plan.budget_id)
        price = self._ledger.versions().shadow_price
        self._publish(plan.budget_id, budget.spent, budget.cap, price)

    def _adopt(self) -> None:
        version = self._ledger.versions().policy
        if version in (NO_VERSION, self._version):
            return
        plan = Plan.load(self._workspace.artifact(KIND, version))
        self._policy = self._load_policy(self._workspace.artifact("pacing-policy", plan.pacing))
        self._plan, self._version, self._day, self._multiplier = plan, version, -1, 1.0
        self._spent_before = self._ledger.budget(plan.budget_id).spent

    def _observe(self, plan: Plan, day: int, now: datetime) -> PacingState:
        budget = self._ledger.budget(plan.budget_id)
        recent = self._ledger.decision_outcomes(since=now - timedelta(days=7), until=now)
        contacts = recent.filter(pc.not_equal(recent["action_id"], CONTROL))
        users = len(pc.unique(recent["pseudonym"])) if recent.num_rows else 0
        return PacingState(
            horizon_days=plan.horizon_days,
            day=day,
            budget_cap=float(budget.cap),
            spent=float(budget.spent),
            contacts_per_user=contacts.num_rows / users if users else 0.0,
            last_cost=float(max(budget.spent - self._spent_before, 0)),
            last_value=self._predicted_value(contacts, now),
            last_multiplier=self._multiplier,
        )

    def _predicted_value(self, contacts: pa.Table, now: datetime) -> float:
        """Predicted incremental margin of the last day's contacts, by the mean effect of their strategies."""
        if not contacts.num_rows:
            return 0.0
        uplift = {
            action.action_id: strategy.effect.uplift.value if strategy.effect else 0.0
            for strategy in self._ledger.strategies()
            for action in strategy.actions
        }
        last = contacts.filter(pc.greater_equal(contacts["decided_at"], pa.scalar(now - DAY)))
        return float(sum(uplift.get(action, 0.0) for action in last["action_id"].to_pylist()))
