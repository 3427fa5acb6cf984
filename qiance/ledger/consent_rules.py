"""Consent as a condition of a query."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table, func, literal, select

from qiance.domain import Purpose
from qiance.ledger.schema import consents


def granted(of: Table, purpose: Purpose, unrecorded: frozenset[Purpose]) -> ColumnElement[bool]:
    """Whether the user of a row of `of` (tenant_id, pseudonym) agrees to `purpose`.

    unrecorded: the purposes that a user who was never asked counts as having agreed to.
    """
    recorded = (
        select(consents.c.granted)
        .where(
            consents.c.tenant_id == of.c.tenant_id,
            consents.c.pseudonym == of.c.pseudonym,
            consents.c.purpose == purpose.value,
        )
        .scalar_subquery()
    )
    return func.coalesce(recorded, literal(purpose in unrecorded))
