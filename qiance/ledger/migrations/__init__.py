"""Alembic migrations of the ledger; `qiance.ledger.migrate` runs them when a ledger is opened."""
