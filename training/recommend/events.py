"""Purchase sequences from a table of events, such as data/events.parquet of a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from qiance.artifacts.manifest import file_hash
from qiance.data.errors import DataError
from qiance.data.tabular import column_names, read_raw, require_columns
from training.recommend.sequences import MIN_PURCHASES, Purchases, purchases_of

COLUMNS = ("user_id", "item_id", "occurred_at")
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def is_events(path: Path) -> bool:
    """Whether the file's name is that of a table."""
    return path.name.endswith(SUFFIXES)


def read_events(path: Path) -> tuple[Purchases, int]:
    """Each user's items in the order in which they were first bought, and how many users were left out.

    Rows with another `type` than `purchase` are passed over where there is such a column. Users with fewer
    than `MIN_PURCHASES` different items are left out. DataError where columns are missing or nobody is left.
    """
    if not path.is_file():
        raise DataError(path, "does not exist", "pass a table of events, or a file of sequences")
    present = column_names(path)
    require_columns(path, present, COLUMNS)
    raw = read_raw(path, [*COLUMNS, *(["type"] if "type" in present else [])])
    frame = first_purchases(raw.table.to_pandas(), path)
    lines = [(str(user), [str(item) for item in rows]) for user, rows in frame.groupby("user_id")["item_id"]]
    kept = [(user, items) for user, items in lines if len(items) >= MIN_PURCHASES]
    if not kept:
        raise DataError(
            path,
            f"has no user with {MIN_PURCHASES} different items",
            "pass a longer log of purchases",
        )
    return purchases_of(kept, file_hash(path)), len(lines) - len(kept)


def first_purchases(events: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Rows of `events`, oldest first, in which a user buys an item for the first time."""
    if "type" in events:
        events = events[events["type"] == "purchase"]
    at = pd.to_datetime(events["occurred_at"], utc=True, errors="coerce", format="ISO8601")
    if at.isna().any():
        row = int(at.isna().to_numpy().argmax())
        value = events["occurred_at"].iloc[row]
        raise DataError(source, f"occurred_at: {value!r} is no time", "write times as ISO 8601")
    ordered = events.assign(at=at).sort_values("at", kind="stable")
    return ordered.drop_duplicates(["user_id", "item_id"])
