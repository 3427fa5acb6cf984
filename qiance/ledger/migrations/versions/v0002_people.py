"""Consent, shop events and erasure."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant_id", sa.String(length=64), nullable=False)


def _pseudonym() -> sa.Column[str]:
    return sa.Column("pseudonym", sa.String(length=32), nullable=False)


def _of_known_user(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", "pseudonym"],
        ["pseudonyms.tenant_id", "pseudonyms.pseudonym"],
        name=op.f(f"fk_{table}_pseudonyms"),
    )


def upgrade() -> None:
    _consent()
    _events()
    _erasure()


def _consent() -> None:
    op.create_table(
        "consents",
        _tenant(),
        _pseudonym(),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("granted", sa.Boolean(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        _of_known_user("consents"),
        sa.PrimaryKeyConstraint("tenant_id", "pseudonym", "purpose", name=op.f("pk_consents")),
    )
    op.create_table(
        "consent_changes",
        sa.Column(
            "change",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        _tenant(),
        _pseudonym(),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("granted", sa.Boolean(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        _of_known_user("consent_changes"),
        sa.PrimaryKeyConstraint("change", name=op.f("pk_consent_changes")),
    )
    op.create_index("ix_consent_changes_user", "consent_changes", ["tenant_id", "pseudonym", "change"])


def _events() -> None:
    op.create_table(
        "user_keys",
        _tenant(),
        _pseudonym(),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        _of_known_user("user_keys"),
        sa.PrimaryKeyConstraint("tenant_id", "pseudonym", name=op.f("pk_user_keys")),
    )
    op.create_table(
        "shop_events",
        _tenant(),
        sa.Column("event_key", sa.String(length=64), nullable=False),
        _pseudonym(),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        _of_known_user("shop_events"),
        sa.PrimaryKeyConstraint("tenant_id", "event_key", name=op.f("pk_shop_events")),
    )
    op.create_index("ix_shop_events_user", "shop_events", ["tenant_id", "pseudonym", "occurred_at"])
    op.create_index("ix_shop_events_received", "shop_events", ["tenant_id", "received_at"])


def _erasure() -> None:
    op.create_table(
        "erasures",
        _tenant(),
        sa.Column("erasure_id", sa.String(length=32), nullable=False),
        sa.Column("lookup", sa.String(length=64), nullable=False),
        sa.Column("erased_at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.LargeBinary(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "erasure_id", name=op.f("pk_erasures")),
    )
    op.create_index("ix_erasures_lookup", "erasures", ["tenant_id", "lookup", "erased_at"])
    op.create_table(
        "erased_marks",
        _tenant(),
        sa.Column("mark", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "mark", name=op.f("pk_erased_marks")),
        sqlite_with_rowid=False,
    )
    keys = ("action_id", "surface", "holdout", "model_version", "policy_version")
    op.create_table(
        "erased_totals",
        _tenant(),
        sa.Column("day", sa.BigInteger(), nullable=False),
        *(
            sa.Column(name, sa.Boolean() if name == "holdout" else sa.String(length=200), nullable=False)
            for name in keys
        ),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("decisions", "clicks", "conversions", "sales", "events")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "day", *keys, name=op.f("pk_erased_totals")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for name in (
        "erased_totals",
        "erased_marks",
        "erasures",
        "shop_events",
        "user_keys",
        "consent_changes",
        "consents",
    ):
        op.drop_table(name)
