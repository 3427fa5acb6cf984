"""Who works on a brief, until when, and how often somebody began.

What is running when this is applied has no holder: it is taken up anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("briefs", sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column(
        "briefs", sa.Column("holder", sa.String(length=200), nullable=False, server_default=sa.text("''"))
    )
    op.add_column("briefs", sa.Column("held_until", sa.BigInteger(), nullable=True))
    op.execute("UPDATE briefs SET state = 'queued' WHERE state = 'running'")


def downgrade() -> None:
    op.execute("UPDATE briefs SET state = 'failed' WHERE state = 'cancelled'")
    for name in ("held_until", "holder", "attempts"):
        op.execute(sa.text(f"ALTER TABLE briefs DROP COLUMN {name}"))
