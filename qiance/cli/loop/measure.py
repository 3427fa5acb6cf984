"""What the live phase did, read back from the ledger: policy against holdout, prediction and oracle."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.allocate import allocate, greedy_roi
from qiance.cli.loop.live import LiveLog
from qiance.cli.loop.optimise import Optimised
from qiance.decide.margin import order_margin
from qiance.domain import Interval
from qiance.evaluate.ab import Comparison, SampleRatio, compare, mean_interval, sample_ratio
from qiance.ledger import BudgetStatus, Ledger
from qiance.market.market import ActionTable
from qiance.market.population import BASKET_MARGIN_RATE
from qiance.settings import Settings

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measured:
    """Measured margin per decision, minor units, after contact cost.

    rows: the ledger's rows in the order of the live log; reward: `[n]`.
    """

    rows: pa.Table
    reward: Floats
    margin: NDArray[np.int64]
    holdout_rows: NDArray[np.bool_]
    policy: Interval
    holdout: Interval
    uplift: Comparison
    ratio: SampleRatio
    contains: bool
    policy_value: float
    oracle_value: float
    comparisons: dict[str, float]
    budget: BudgetStatus


def measure(
    ledger: Ledger, live: LiveLog, actions: ActionTable, optimised: Optimised, settings: Settings
) -> Measured:
    """Join decisions with the outcomes that came over HTTP, and compare; offers not used by now are void."""
    window = timedelta(hours=settings.serve.outcome_window_hours)
    ledger.release_expired(datetime.fromtimestamp(int(live.at.max()), UTC) + window)
    rows = _in_order(ledger.decision_outcomes(), live)
    sales = rows["sales"].to_numpy().astype(np.int64)
    depth, paid, cost = (c[live.action] for c in (actions.depth, actions.paid, actions.unit_cost))
    margin = order_margin(sales, depth, paid, cost, BASKET_MARGIN_RATE)
    reward = (margin - actions.contact_cost[live.action]).astype(np.float64)
    held = rows["holdout"].to_numpy(zero_copy_only=False).astype(np.bool_)
    treated = ~held
    policy = mean_interval(reward[treated], CONFIDENCE, cluster=live.user[treated])
    predicted = optimised.predicted
    oracle, own, others = _oracle(live, treated, optimised, ledger, actions)
    users = np.unique(live.user[treated]).size, np.unique(live.user[held]).size
    return Measured(
        rows=rows,
        reward=reward,
        margin=margin,
        holdout_rows=held,
        policy=policy,
        holdout=mean_interval(reward[held], CONFIDENCE, cluster=live.user[held]),
        uplift=compare(
            reward[treated],
            reward[held],
            CONFIDENCE,
            cluster_treated=live.user[treated],
            cluster_control=live.user[held],
        ),
        ratio=sample_ratio(*users, 1.0 - settings.serve.holdout),
        contains=predicted.low <= policy.value <= predicted.high,
        policy_value=own,
        oracle_value=oracle,
        comparisons=others,
        budget=ledger.budget(optimised.plan.budget_id),
    )


def _in_order(table: pa.Table, live: LiveLog) -> pa.Table:
    position = {name: row for row, name in enumerate(table["decision_id"].to_pylist())}
    missing = [name for name in live.decision_id if name not in position]
    if missing:
        raise RuntimeError(f"{len(missing)} answered decisions are not in the ledger, the first {missing[0]}")
    return table.take(pa.array([position[name] for name in live.decision_id]))


def _oracle(
    live: LiveLog,
    treated: NDArray[np.bool_],
    optimised: Optimised,
    ledger: Ledger,
    actions: ActionTable,
) -> tuple[float, float, dict[str, float]]:
    """True incremental margin: of the best allocation in hindsight, of ours, and of simple rules.

    All under the same budget, on the same arrivals, with the state the market was in.
    """
    cap = float(ledger.budget(optimised.plan.budget_id).cap)
    value, cost = live.all_uplift[treated], live.all_cost[treated]
    admits = value > -1e8
    clean = np.where(admits, value, 0.0)
    best = allocate(clean, cost, cap, admits)
    ratio = greedy_roi(clean, cost, cap, admits)
    own = float(live.true_uplift[treated].sum())
    others = {
        "greedy return on cost with true values": float(clean[np.arange(len(clean)), ratio.choice].sum())
    }
    return float(best.bound), own, others


def live_training_rows(
    measured: Measured, live: LiveLog, ledger: Ledger, user_ids: tuple[str, ...]
) -> dict[str, Any]:
    """The outcomes of the live phase as labels; contacts counted from the ledger as serving counted them."""
    rows = measured.rows
    return {
        "user_ids": [user_ids[u] for u in live.user],
        "choice": live.action,
        "at": live.at,
        "contacts_7d": _contacts_before(live, rows),
        "labels": {
            "click": rows["click"].to_numpy().astype(np.int64),
            "conversion": rows["conversion"].to_numpy().astype(np.int64),
            "sales": rows["sales"].to_numpy().astype(np.int64),
            "margin": measured.margin,
        },
    }


def _contacts_before(live: LiveLog, rows: pa.Table) -> Floats:
    """Contacts of the same user in the seven days before each decision."""
    contacted = np.array([a != "control" for a in rows["action_id"].to_pylist()])
    counts = np.zeros(len(live.user))
    for user in np.unique(live.user):
        mine = np.flatnonzero(live.user == user)
        times = live.at[mine]
        since = (times[:, None] > times[None, :]) & (times[:, None] - times[None, :] <= 7 * 86_400)
        counts[mine] = (since & contacted[mine][None, :]).sum(axis=1)
    return counts
