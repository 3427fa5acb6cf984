"""The first ledger: every table that the loop writes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "key_hash", name=op.f("pk_api_keys")),
    )
    op.create_index(
        "ux_api_keys_active_name",
        "api_keys",
        ["tenant_id", "name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "audit_lines",
        sa.Column(
            "line", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.String(length=200), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("line", name=op.f("pk_audit_lines")),
    )
    op.create_index("ix_audit_lines_tenant", "audit_lines", ["tenant_id", "line"], unique=False)
    op.create_table(
        "briefs",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("brief_id", sa.String(length=200), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "brief_id", name=op.f("pk_briefs")),
    )
    op.create_index("ix_briefs_state", "briefs", ["tenant_id", "state", "created_at"], unique=False)
    op.create_table(
        "budgets",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("budget_id", sa.String(length=200), nullable=False),
        sa.Column("cap", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("spent + reserved <= cap", name=op.f("ck_budgets_within_cap")),
        sa.CheckConstraint("spent >= 0 AND reserved >= 0", name=op.f("ck_budgets_not_negative")),
        sa.PrimaryKeyConstraint("tenant_id", "budget_id", name=op.f("pk_budgets")),
    )
    op.create_table(
        "clocks",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("now", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_clocks")),
    )
    op.create_table(
        "decisions",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("decision_id", sa.String(length=200), nullable=False),
        sa.Column("request_id", sa.String(length=200), nullable=True),
        sa.Column("pseudonym", sa.String(length=200), nullable=False),
        sa.Column("surface", sa.String(length=200), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=False),
        sa.Column("candidates", sa.Text(), nullable=False),
        sa.Column("scores", sa.LargeBinary(), nullable=False),
        sa.Column("costs", sa.LargeBinary(), nullable=False),
        sa.Column("probabilities", sa.LargeBinary(), nullable=False),
        sa.Column("chosen", sa.Integer(), nullable=False),
        sa.Column("action_id", sa.String(length=200), nullable=False),
        sa.Column("propensity", sa.Double(), nullable=False),
        sa.Column("holdout", sa.Boolean(), nullable=False),
        sa.Column("model_version", sa.String(length=200), nullable=False),
        sa.Column("policy_version", sa.String(length=200), nullable=False),
        sa.Column("degraded", sa.Text(), nullable=False),
        sa.Column("snapshot", sa.String(length=200), nullable=False),
        sa.Column("uniform", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "decision_id", name=op.f("pk_decisions")),
    )
    op.create_index(
        "ix_decisions_contacts",
        "decisions",
        ["tenant_id", "pseudonym", "decided_at", "action_id"],
        unique=False,
    )
    op.create_index("ix_decisions_decided_at", "decisions", ["tenant_id", "decided_at"], unique=False)
    op.create_index("ux_decisions_request", "decisions", ["tenant_id", "request_id"], unique=True)
    op.create_table(
        "key_checks",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_key_checks")),
    )
    op.create_table(
        "pseudonyms",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("lookup", sa.String(length=64), nullable=False),
        sa.Column("pseudonym", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "lookup", name=op.f("pk_pseudonyms")),
    )
    op.create_index("ux_pseudonyms_pseudonym", "pseudonyms", ["tenant_id", "pseudonym"], unique=True)
    op.create_table(
        "strategies",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("strategy_id", sa.String(length=200), nullable=False),
        sa.Column("brief_id", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "strategy_id", name=op.f("pk_strategies")),
    )
    op.create_index("ix_strategies_brief", "strategies", ["tenant_id", "brief_id"], unique=False)
    op.create_index("ix_strategies_state", "strategies", ["tenant_id", "state"], unique=False)
    op.create_table(
        "versions",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("serial", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("policy", sa.String(length=200), nullable=False),
        sa.Column("shadow_price", sa.Double(), nullable=False),
        sa.Column("strategies_serial", sa.BigInteger(), nullable=False),
        sa.Column("killed", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("pk_versions")),
    )
    op.create_table(
        "outcomes",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("event_id", sa.String(length=200), nullable=False),
        sa.Column("decision_id", sa.String(length=200), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "decision_id"],
            ["decisions.tenant_id", "decisions.decision_id"],
            name=op.f("fk_outcomes_decisions"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "event_id", name=op.f("pk_outcomes")),
    )
    op.create_index("ix_outcomes_decision", "outcomes", ["tenant_id", "decision_id"], unique=False)
    op.create_table(
        "reservations",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("decision_id", sa.String(length=200), nullable=False),
        sa.Column("budget_id", sa.String(length=200), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("certain", sa.BigInteger(), nullable=False),
        sa.Column("settled", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "budget_id"],
            ["budgets.tenant_id", "budgets.budget_id"],
            name=op.f("fk_reservations_budgets"),
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "decision_id"],
            ["decisions.tenant_id", "decisions.decision_id"],
            name=op.f("fk_reservations_decisions"),
        ),
        sa.PrimaryKeyConstraint("tenant_id", "decision_id", name=op.f("pk_reservations")),
    )
    op.create_index("ix_reservations_due", "reservations", ["tenant_id", "state", "expires_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_reservations_due", table_name="reservations")
    op.drop_table("reservations")
    op.drop_index("ix_outcomes_decision", table_name="outcomes")
    op.drop_table("outcomes")
    op.drop_table("versions")
    op.drop_index("ix_strategies_state", table_name="strategies")
    op.drop_index("ix_strategies_brief", table_name="strategies")
    op.drop_table("strategies")
    op.drop_index("ux_pseudonyms_pseudonym", table_name="pseudonyms")
    op.drop_table("pseudonyms")
    op.drop_table("key_checks")
    op.drop_index("ux_decisions_request", table_name="decisions")
    op.drop_index("ix_decisions_decided_at", table_name="decisions")
    op.drop_index("ix_decisions_contacts", table_name="decisions")
    op.drop_table("decisions")
    op.drop_table("clocks")
    op.drop_table("budgets")
    op.drop_index("ix_briefs_state", table_name="briefs")
    op.drop_table("briefs")
    op.drop_index("ix_audit_lines_tenant", table_name="audit_lines")
    op.drop_table("audit_lines")
    op.drop_index(
        "ux_api_keys_active_name",
        table_name="api_keys",
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.drop_table("api_keys")
