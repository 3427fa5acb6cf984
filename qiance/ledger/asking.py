"""SQL of the decision path: one statement for all users of a batch, whatever their number.

The batch travels as one JSON parameter, so the text never changes and both databases keep it prepared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any

from qiance.domain import Cap, Channel, Purpose
from qiance.ledger.database import native

_MICROSECOND = timedelta(microseconds=1)
_CALLS = {
    "sqlite": ("json_each(:rows) AS r", "json_extract(r.value, '$[{}]')"),
    "postgresql": ("json_array_elements(CAST(:rows AS json)) AS r(value)", "(r.value ->> {})"),
}
_CONSENT = (
    "(SELECT c.granted FROM consents AS c WHERE c.tenant_id = :tenant AND c.pseudonym = p.pseudonym "
    "AND c.purpose = '{}')"
)
_REQUEST = (
    "(SELECT d.decision_id FROM decisions AS d WHERE d.tenant_id = :tenant AND d.request_id = a.request)"
)


def packed(rows: Sequence[Sequence[Any]]) -> str:
    """The parameter `rows` of the statements below."""
    return json.dumps(rows, separators=(",", ":"))


@lru_cache(maxsize=256)
def identifying(dialect: str, windows: tuple[Cap, ...]) -> str:
    """Rows (place, pseudonym, consent per purpose, decision id of the request, contacts per window).

    rows: [place, lookup, request id, microseconds]; a window ends there, both ends included.
    """
    columns = [
        "a.place",
        "p.pseudonym",
        *(_CONSENT.format(purpose.value) for purpose in Purpose),
        _REQUEST,
        *(_contacts(window, "p.pseudonym", "a.at") for window in windows),
    ]
    asked = _rows(dialect, place="bigint", lookup="text", request="text", at="bigint")
    on = "p.tenant_id = :tenant AND p.lookup = a.lookup"
    return native(dialect, f"SELECT {', '.join(columns)} FROM {asked} AS a LEFT JOIN pseudonyms AS p ON {on}")  # noqa: S608


@lru_cache(maxsize=256)
def counting(dialect: str, caps: tuple[Cap, ...]) -> str:
    """Rows (place, contacts per cap in its `days` before and after).

    rows: [place, pseudonym, microseconds].
    """
    columns = ["a.place", *(_contacts(cap, "a.name", f"a.at + {_micros(cap)}") for cap in caps)]
    asked = _rows(dialect, place="bigint", name="text", at="bigint")
    # The name of the tenant is in every column; without caps nobody asks.
    return native(dialect, f"SELECT {', '.join(columns)} FROM {asked} AS a")  # noqa: S608


@lru_cache(maxsize=4)
def locking(dialect: str) -> str:
    """The pseudonyms that are there, locked until the transaction ends: nobody else decides for these users.

    rows: [pseudonym]. SQLite's transaction holds the lock of the whole file.
    """
    lock = " FOR NO KEY UPDATE" if dialect == "postgresql" else ""
    return native(
        dialect,
        "SELECT p.pseudonym FROM pseudonyms AS p WHERE p.tenant_id = :tenant "  # noqa: S608
        f"AND p.pseudonym IN (SELECT a.name FROM {_rows(dialect, name='text')} AS a) "
        f"ORDER BY p.pseudonym{lock}",
    )


def _rows(dialect: str, **columns: str) -> str:
    """The JSON parameter as a table."""
    source, value = _CALLS[dialect]
    casts = (
        f"CAST({value.format(place)} AS {kind}) AS {name}"
        for place, (name, kind) in enumerate(columns.items())
    )
    return f"(SELECT {', '.join(casts)} FROM {source})"  # noqa: S608


def _contacts(window: Cap, name: str, until: str) -> str:
    """How many contacts a user had in [at − days, until]."""
    channel = "<> 'none'" if window.channel is None else f"= '{Channel(window.channel).value}'"
    return (
        "(SELECT count(*) FROM decisions AS d WHERE d.tenant_id = :tenant "  # noqa: S608
        f"AND d.pseudonym = {name} AND d.decided_at >= a.at - {_micros(window)} AND d.decided_at <= {until} "
        f"AND d.channel {channel})"
    )


def _micros(window: Cap) -> int:
    return timedelta(days=window.days) // _MICROSECOND
