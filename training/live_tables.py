"""Feature tables of what happens while serving, from the ledger: sessions, contacts, results of campaigns.

A row is stamped with the moment at which a decision could first have seen it. So an event that came late is
in the training row of a later decision and not in that of an earlier one, just as it was online.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qiance.domain import CONTROL
from qiance.features.exposure import MAX_CONTACTS, WINDOW_DAYS
from qiance.features.session import Recent

INSTANT = pa.timestamp("us", "UTC")
_DAY_US = 86_400_000_000
_STAMPS = [("event_timestamp", INSTANT), ("created", INSTANT)]
SESSION_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("event_times", pa.list_(pa.int64())),
        ("event_types", pa.list_(pa.int64())),
        ("event_items", pa.list_(pa.string())),
        *_STAMPS,
    ]
)
EXPOSURE_SCHEMA = pa.schema([("user_id", pa.string()), ("contact_times", pa.list_(pa.int64())), *_STAMPS])
CAMPAIGN_SCHEMA = pa.schema(
    [
        ("campaign_id", pa.string()),
        ("campaign_contacts", pa.float64()),
        ("campaign_click_rate", pa.float64()),
        ("campaign_conversion_rate", pa.float64()),
        ("campaign_sales_rate", pa.float64()),
        *_STAMPS,
    ]
)


def session_table(events: pa.Table) -> pa.Table:
    """One row per user and moment of receipt, with the recent events known then.

    events: user_id, occurred_at, received_at, type, item_id; a repeated event is to be dropped before.
    """
    rows: list[dict[str, Any]] = []
    for user, found in _by_user(events, ("received_at", "occurred_at", "type", "item_id")):
        received = [int(at) for at in found["received_at"]]
        entries = list(zip(map(int, found["occurred_at"]), found["type"], found["item_id"], strict=True))
        for last in range(1, len(entries) + 1):
            if last < len(entries) and received[last] == received[last - 1]:
                continue  # of one batch only the state after it was ever visible
            recent = Recent.of(entries[:last])
            lists = {"event_times": recent.times, "event_types": recent.types, "event_items": recent.items}
            rows.append({"user_id": user, **lists, **_stamps(received[last - 1])})
    return _table(rows, SESSION_SCHEMA)


def exposure_table(decisions: pa.Table) -> pa.Table:
    """One row per user and contact, with the contacts of the last 28 days up to it.

    decisions: user_id, decided_at, action_id.
    """
    contacts = decisions.filter(pc.not_equal(decisions["action_id"], CONTROL))
    rows: list[dict[str, Any]] = []
    for user, found in _by_user(contacts, ("decided_at",)):
        times = [int(at) for at in found["decided_at"]]
        for last, at in enumerate(times, start=1):
            if last < len(times) and times[last] == at:
                continue  # one row for a moment: Feast's file join takes any of several
            recent = [t for t in times[:last] if t >= at - WINDOW_DAYS * _DAY_US][-MAX_CONTACTS:]
            # Known from the next microsecond on: a decision does not count itself.
            rows.append({"user_id": user, "contact_times": recent, **_stamps(at + 1)})
    return _table(rows, EXPOSURE_SCHEMA)


def campaign_table(decisions: pa.Table, strategy_of: Mapping[str, str]) -> pa.Table:
    """One row per strategy and day, at its end: what came of all contacts so far.

    decisions: decided_at, action_id, click, conversion, sales (`LEARNING_SCHEMA`); strategy_of: action id →
    strategy id. Rates are per contact, sales in minor units.
    """
    names = [strategy_of.get(action) for action in decisions["action_id"].to_pylist()]
    day = decisions["decided_at"].cast(pa.int64()).to_numpy() // _DAY_US
    columns = [decisions[name].to_numpy().astype(np.float64) for name in ("click", "conversion", "sales")]
    rows: list[dict[str, Any]] = []
    for strategy in dict.fromkeys(name for name in names if name is not None):
        mine = np.array([name == strategy for name in names])
        for end in np.unique(day[mine]):
            chosen = mine & (day <= end)
            rates = [float(column[chosen].mean()) for column in columns]
            values = dict(zip(CAMPAIGN_SCHEMA.names[1:5], [float(chosen.sum()), *rates], strict=True))
            rows.append({"campaign_id": strategy, **values, **_stamps(int(end + 1) * _DAY_US)})
    return _table(rows, CAMPAIGN_SCHEMA)


def write_live_tables(
    folder: Path, events: pa.Table | None, decisions: pa.Table | None, strategy_of: Mapping[str, str]
) -> dict[str, int]:
    """Write the three tables under `folder`/data, whole or not at all; rows of each.

    events, decisions: as above; None where there are none yet.
    """
    tables = {
        "user_session": SESSION_SCHEMA.empty_table() if events is None else session_table(events),
        "user_exposure": EXPOSURE_SCHEMA.empty_table() if decisions is None else exposure_table(decisions),
        "campaign_history": (
            CAMPAIGN_SCHEMA.empty_table() if decisions is None else campaign_table(decisions, strategy_of)
        ),
    }
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        part = folder / "data" / f".{name}.part"
        pq.write_table(table, part)
        part.replace(folder / "data" / f"{name}.parquet")
    return {name: table.num_rows for name, table in tables.items()}


def _by_user(table: pa.Table, names: Sequence[str]) -> Iterable[tuple[str, dict[str, list[Any]]]]:
    """(user, columns) with rows in the order of `names`; times as integer microseconds."""
    ordered = table.sort_by([("user_id", "ascending"), *((name, "ascending") for name in names)])
    users = ordered["user_id"].to_pylist()
    columns = {name: _plain(ordered[name]) for name in names}
    start = 0
    for place in range(1, len(users) + 1):
        if place == len(users) or users[place] != users[start]:
            yield users[start], {name: values[start:place] for name, values in columns.items()}
            start = place


def _plain(column: pa.ChunkedArray) -> list[Any]:
    return (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()


def _stamps(at_us: int) -> dict[str, int]:
    return {"event_timestamp": at_us, "created": at_us}


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = {field.name: pa.array([row[field.name] for row in rows], field.type) for field in schema}
    return pa.table(columns, schema=schema)
