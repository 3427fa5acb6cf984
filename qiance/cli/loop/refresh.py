"""Features of what happened while serving: from the ledger into tables, and from tables online."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa

from qiance.domain import Purpose
from qiance.ledger import Ledger
from qiance.privacy import workspace_lock
from qiance.workspace import Workspace


def refresh_features(
    workspace: Workspace,
    ledger: Ledger,
    user_ids: Sequence[str],
    at: datetime,
    unrecorded: frozenset[Purpose] = frozenset(),
    everything: bool = False,
) -> dict[str, int]:
    """Write sessions, contacts and results of campaigns, and bring them online as of `at`.

    user_ids: the shop's users; the ledger holds pseudonyms, which only their ids lead to. everything: bring
    all views online anew, as after the store was lost. Rows per table.
    """
    from training.featurise import materialise
    from training.live_tables import write_live_tables

    agreed = ledger.consents(user_ids, unrecorded)
    learnable = [user for user in user_ids if Purpose.LEARNING in agreed[user]]
    names = {pseudonym: user for user, pseudonym in ledger.resolve(learnable).items()}
    events = _named(ledger.shop_events_table(unrecorded=unrecorded), names)
    decisions = _named(ledger.decision_outcomes(), names)
    strategy_of = {a.action_id: s.strategy_id for s in ledger.strategies() for a in s.actions}
    # An erasure rewrites the same files.
    with workspace_lock(workspace.root):
        rows = write_live_tables(workspace.features, events, decisions, strategy_of)
        materialise(workspace.features, at, None if everything else list(rows))
    return rows


def _named(table: pa.Table, names: dict[str, str]) -> pa.Table:
    """`table` with user_id for pseudonym, without rows of pseudonyms that are not among `names`."""
    users = pa.array([names.get(name) for name in table["pseudonym"].to_pylist()], pa.string())
    return table.append_column("user_id", users).filter(users.is_valid())
