"""Decisions name their candidate set and keep the user's row; leases of budgets.

Decisions of the earlier form are converted. What they never held stays unknown: the user's row and the item
values are empty, λ is 0, and the channel of an action that no strategy has any more is `unknown`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_PAGE = 500
_CONTROL = "control"
_NEW: tuple[tuple[str, Any, str], ...] = (
    ("candidate_set", sa.String(length=32), "''"),
    ("admissible", sa.LargeBinary(), "''"),
    ("channel", sa.String(length=16), "'none'"),
    ("epsilon", sa.Double(), "0"),
    ("shadow_price", sa.Double(), "0"),
    ("serial", sa.BigInteger(), "0"),
    ("items", sa.String(length=200), "''"),
    ("user_row", sa.LargeBinary(), "''"),
)
_OLD: tuple[tuple[str, Any, str], ...] = (
    ("candidates", sa.Text(), "'[]'"),
    ("costs", sa.LargeBinary(), "''"),
    ("probabilities", sa.LargeBinary(), "''"),
    ("snapshot", sa.String(length=200), "''"),
)


def upgrade() -> None:
    _new_tables()
    _add(_NEW)
    _convert(_Forward(op.get_bind()))
    _index("channel")
    _drop(_OLD)


def downgrade() -> None:
    _add(_OLD)
    _convert(_backward(op.get_bind()))
    _index("action_id")
    _drop(_NEW)
    op.drop_table("leases")
    op.drop_table("candidate_sets")


def _new_tables() -> None:
    op.create_table(
        "candidate_sets",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("set_id", sa.String(length=32), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "set_id", name=op.f("pk_candidate_sets")),
    )
    op.create_table(
        "leases",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("lease_id", sa.String(length=32), nullable=False),
        sa.Column("budget_id", sa.String(length=200), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("used >= 0 AND used <= amount", name=op.f("ck_leases_within_amount")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "budget_id"],
            ["budgets.tenant_id", "budgets.budget_id"],
            name=op.f("fk_leases_budgets"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "lease_id", name=op.f("pk_leases")),
    )


# Column by column: a new table in the place of one that others refer to would break their references.
def _add(columns: tuple[tuple[str, Any, str], ...]) -> None:
    for name, kind, default in columns:
        op.add_column("decisions", sa.Column(name, kind, nullable=False, server_default=sa.text(default)))


def _drop(columns: tuple[tuple[str, Any, str], ...]) -> None:
    for name, _, _ in columns:
        op.execute(sa.text(f"ALTER TABLE decisions DROP COLUMN {name}"))


def _index(last: str) -> None:
    op.drop_index("ix_decisions_contacts", table_name="decisions")
    op.create_index("ix_decisions_contacts", "decisions", ["tenant_id", "pseudonym", "decided_at", last])


def _convert(change: Callable[[Any], dict[str, Any]]) -> None:
    """Every decision, page by page; `change` gives the new values of a row."""
    connection = op.get_bind()
    for rows in _pages(connection):
        changes = [
            change(row) | {"of_tenant": row["tenant_id"], "of_decision": row["decision_id"]} for row in rows
        ]
        names = [name for name in changes[0] if not name.startswith("of_")]
        assigned = ", ".join(f"{name} = :{name}" for name in names)
        where = "tenant_id = :of_tenant AND decision_id = :of_decision"
        connection.execute(sa.text(f"UPDATE decisions SET {assigned} WHERE {where}"), changes)  # noqa: S608


def _pages(connection: sa.Connection) -> Iterator[list[Any]]:
    query = sa.text(
        "SELECT * FROM decisions WHERE (tenant_id, decision_id) > (:tenant, :decision) "  # noqa: S608
        f"ORDER BY tenant_id, decision_id LIMIT {_PAGE}"
    )
    after = {"tenant": "", "decision": ""}
    while rows := list(connection.execute(query, after).mappings()):
        yield rows
        after = {"tenant": rows[-1]["tenant_id"], "decision": rows[-1]["decision_id"]}


class _Forward:
    """From one list of ids, scores and probabilities per decision to shared sets and admissible scores."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._actions: dict[tuple[str, str], Any] = {}
        for tenant, payload in connection.execute(sa.text("SELECT tenant_id, payload FROM strategies")):
            for action in json.loads(payload).get("actions", []):
                self._actions[tenant, action["action_id"]] = action
        self._sets: dict[tuple[str, str], str] = {}

    def __call__(self, row: Any) -> dict[str, Any]:
        ids = json.loads(row["candidates"])
        probabilities = np.frombuffer(row["probabilities"], dtype="<f8")
        mask = probabilities > 0
        mask[0] = True
        chosen = ids[row["chosen"]]
        action = self._actions.get((row["tenant_id"], chosen), {"channel": "unknown"})
        return {
            "candidate_set": self._set(row["tenant_id"], row["candidates"], ids),
            "admissible": np.packbits(mask, bitorder="little").tobytes(),
            "scores": np.frombuffer(row["scores"], dtype="<f4")[mask].tobytes(),
            "channel": "none" if chosen == _CONTROL else action["channel"],
            "epsilon": _epsilon(probabilities[mask]),
            "serial": int(row["snapshot"]) if row["snapshot"].isdecimal() else 0,
            "user_row": b"",  # SQLite's default is a text
        }

    def _set(self, tenant: str, text: str, ids: list[str]) -> str:
        known = self._sets.get((tenant, text))
        if known is None:
            content = [self._actions.get((tenant, name)) or _unknown(name) for name in ids]
            plain = json.dumps(content, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
            known = self._sets[tenant, text] = hashlib.sha256(plain).hexdigest()[:32]
            row = {"tenant": tenant, "id": known, "payload": zlib.compress(plain)}
            self._connection.execute(
                sa.text(
                    "INSERT INTO candidate_sets (tenant_id, set_id, payload, created_at) "
                    "VALUES (:tenant, :id, :payload, 0) ON CONFLICT DO NOTHING"
                ),
                row,
            )
        return known


def _unknown(name: str) -> dict[str, Any]:
    """`control`, or an action that no strategy has any more."""
    return {
        "action_id": name,
        "strategy_id": _CONTROL if name == _CONTROL else "",
        "kind": None,
        "item_id": None,
        "offer": {"kind": "none", "depth": 0.0, "threshold": 0},
        "creative": None,
        "channel": "none",
        "contact_cost": 0,
    }


def _epsilon(probabilities: Any) -> float:
    """ε of ε-greedy probabilities: N times the least; 0 where there is no other choice."""
    count = len(probabilities)
    if count == 1:
        return 0.0
    least = float(probabilities.min())
    plain = min(round(least * count, 12), 1.0)  # as it was configured, if that gives the same share
    return plain if plain / count == least else min(least * count, 1.0)


def _backward(connection: sa.Connection) -> Callable[[Any], dict[str, Any]]:
    query = sa.text("SELECT tenant_id, set_id, payload FROM candidate_sets")
    sets = {
        (tenant, name): [action["action_id"] for action in json.loads(zlib.decompress(payload))]
        for tenant, name, payload in connection.execute(query)
    }

    def change(row: Any) -> dict[str, Any]:
        ids = sets[row["tenant_id"], row["candidate_set"]]
        bits = np.frombuffer(row["admissible"], dtype=np.uint8)
        mask = np.unpackbits(bits, count=len(ids), bitorder="little").astype(bool)
        logged = np.frombuffer(row["scores"], dtype="<f4")
        scores = np.full(len(ids), -np.inf, dtype="<f4")
        scores[mask] = logged
        probabilities = np.where(mask, row["epsilon"] / mask.sum(), 0.0).astype("<f8")
        probabilities[scores.argmax()] += 1.0 - row["epsilon"]
        probabilities[row["chosen"]] = row["propensity"]
        return {
            "candidates": json.dumps(ids, ensure_ascii=False, separators=(",", ":")),
            "scores": scores.tobytes(),
            "costs": np.zeros(len(ids), dtype="<f8").tobytes(),
            "probabilities": probabilities.tobytes(),
            "snapshot": str(row["serial"]),
        }

    return change
