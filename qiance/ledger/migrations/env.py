"""Alembic's entry: runs the revisions on the connection that `qiance.ledger.migrate` holds the lock on."""

from __future__ import annotations

from alembic import context

from qiance.ledger.migrate import VERSION_TABLE
from qiance.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
