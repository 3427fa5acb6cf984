"""The bank of linted and approved words.

It starts empty: what was live before has no approved words here, so it is left out of decisions until its
strategy is approved again or `qiance creatives lint` and `approve` put its words here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "creatives",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("creative_id", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("segment", sa.String(length=200), nullable=False),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("language", sa.String(length=16), nullable=False),
        sa.Column("item_id", sa.String(length=200), nullable=True),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.Column("rules", sa.String(length=16), nullable=False),
        sa.Column("checked", sa.String(length=16), nullable=False),
        sa.Column("by", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "creative_id", name=op.f("pk_creatives")),
    )
    op.create_index("ix_creatives_state", "creatives", ["tenant_id", "state"])
    op.create_index("ix_creatives_place", "creatives", ["tenant_id", "segment", "channel", "language"])


def downgrade() -> None:
    op.drop_table("creatives")
