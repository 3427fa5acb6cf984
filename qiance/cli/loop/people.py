"""Whose data the loop may use: erased users are left out, and nobody is learned from who did not agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qiance.domain import Purpose
from qiance.ledger import Ledger

GIVEN_BY = "terms of the data set"


def record_given_consent(ledger: Ledger, user_ids: Sequence[str]) -> int:
    """Note the consent that a public data set's users gave to its owner, for those who said nothing here.

    How many there were. A choice that is recorded stays, and so does an erasure.
    """
    known = ledger.known(user_ids)
    erased = ledger.erased_before(user_ids)
    new = [user for user in user_ids if user not in known and user not in erased]
    ledger.set_consents(new, dict.fromkeys(Purpose, True), GIVEN_BY)
    return len(new)


def users_for(
    ledger: Ledger, user_ids: Sequence[str], purpose: Purpose, unrecorded: frozenset[Purpose]
) -> list[str]:
    """Those of `user_ids` who agree to `purpose`, in order."""
    agreed = ledger.consents(user_ids, unrecorded)
    return [user for user in user_ids if purpose in agreed[user]]


def drop_erased(ledger: Ledger, table: pa.Table, at: str) -> pa.Table:
    """`table` (user_id, and the time column `at`) without what erased users did before their erasure."""
    names = pc.unique(table["user_id"]).to_pylist()
    erased = ledger.erased_before(names)
    if not erased:
        return table
    row = pc.index_in(table["user_id"], value_set=pa.array(list(erased), pa.string()))
    until = pa.array(list(erased.values()), pa.timestamp("us", "UTC")).take(row.combine_chunks())
    return table.filter(pc.fill_null(pc.greater(table[at], until), True))


def learnable(ledger: Ledger, table: pa.Table, unrecorded: frozenset[Purpose]) -> pa.Table:
    """Training rows (`user_id`, `at` in seconds) of those who agree to learning, later than any erasure."""
    ids = table["user_id"].to_pylist()
    distinct = list(dict.fromkeys(ids))
    agreed = set(users_for(ledger, distinct, Purpose.LEARNING, unrecorded))
    erased = {user: when.timestamp() for user, when in ledger.erased_before(distinct).items()}
    at = table["at"].to_numpy()
    kept = np.array([user in agreed for user in ids], dtype=np.bool_)
    kept &= np.array([seconds > erased.get(user, -np.inf) for user, seconds in zip(ids, at, strict=True)])
    return table if kept.all() else table.filter(pa.array(kept))
