"""A workspace with users in every kind of file, and a search through every byte of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.data.faults import Reason, fault_rows
from qiance.data.ingest import Ingested, save
from qiance.data.schema import Checked
from qiance.domain import Catalogue, Item, UserTable
from qiance.features.packed import RowLayout
from qiance.features.rows import Row, SqliteRows, field_of, partition_of
from qiance.features.transforms import USER_CATEGORY_FEATURES, USER_FEATURES
from qiance.workspace import Snapshot, Workspace

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEY = b"a key that only tests use, 32 b."
USERS = tuple(f"user-{number:03d}-x" for number in range(40))
CATEGORIES = ("coffee", "soup", "tea")
PROJECT = "shop"
SETTINGS = {"reader": "test"}


def payload(user: str) -> str:
    """Words that only this user's rows have."""
    return f"planted words of {user[::-1]}"


def write_data(folder: Path) -> None:
    """Canonical tables with quarantine and manifest, as an ingestion leaves them."""
    lines = [user for user in USERS for _ in range(50)]
    events = pa.table(
        {
            "user_id": lines,
            "basket_id": [f"{user}/{number}" for number, user in enumerate(lines)],
            "words": [payload(user) for user in lines],
            "value": pa.array(range(len(lines)), pa.int64()),
        }
    )
    users = pa.table({"user_id": list(USERS)})
    items = pa.table({"item_id": ["i0", "i1"]})
    bad = np.array([3, 7, 7, 9])
    values = [USERS[1], "-1", f"{USERS[1]};broken", USERS[2]]
    faults = fault_rows(bad, "household", values, Reason.NOT_AN_INTEGER, "a bad value")
    checked = {"events": Checked(events, np.arange(len(lines)) + 10, faults, len(lines) + 3)}
    tables = {"events": events, "users": users, "items": items}
    save(Ingested("test", tables, {}), checked, folder, Path("source"), SETTINGS)


def write_features(folder: Path) -> None:
    """Feature tables as Feast reads them: one with a dictionary, one without rows of users."""
    (folder / "data").mkdir(parents=True)
    stamps = pa.array([NOW] * len(USERS) * 2, pa.timestamp("us", "UTC"))
    ids = pa.array([user for user in USERS for _ in range(2)])
    segments = pa.array([payload(user) for user in USERS for _ in range(2)])
    table = pa.table(
        {
            "user_id": ids.dictionary_encode(),
            "segment": segments.dictionary_encode(),
            "event_timestamp": stamps,
        }
    )
    pq.write_table(table, folder / "data" / "user_profile.parquet", row_group_size=30, compression="none")
    pq.write_table(pa.table({"item_id": ["i0"]}), folder / "data" / "item_state.parquet")
    work = folder / ".work" / "checked-1"
    work.mkdir(parents=True)
    (work / "part.arrow").write_bytes(payload(USERS[1]).encode())
    (folder / "data" / ".user_profile.part").write_bytes(USERS[1].encode())


def snapshot() -> Snapshot:
    """Row u of every table is user u's: its values are u."""
    size = len(USERS)
    each = np.arange(size, dtype=np.float64)
    # Features of items are not asked for: the snapshot is written here without them.
    return Snapshot(
        catalogue=Catalogue((Item("i0", "Coffee", "coffee", "grocery", "National", 400, 200),)),
        categories=CATEGORIES,
        users=UserTable(USERS, dict.fromkeys(USER_FEATURES, each)),
        item=_item_columns(),
        user_category={n: np.repeat(each[:, None], 3, axis=1) for n in USER_CATEGORY_FEATURES},
        as_of=NOW,
    )


def _item_columns() -> dict[str, Any]:
    import qiance.workspace as workspace

    names = getattr(workspace, "_OF_ITEMS", None) or workspace.ITEM_FEATURES
    return {name: np.zeros(1) for name in names}


LAYOUT = RowLayout.of("user_profile", [("spend", "Float64"), ("words", "Array(String)")])


def online(file: Path, users: Sequence[str] = USERS) -> SqliteRows:
    """An online store with three rows per user."""
    rows = SqliteRows(file, PROJECT)
    rows.create()
    for view in ("user_profile", "user_session", "user_category"):
        rows.put(
            [
                Row(
                    partition_of("user_id", user),
                    field_of(view),
                    LAYOUT.pack(micros(), micros(), {"spend": 1.0, "words": [payload(user)] * 20}),
                )
                for user in users
            ]
        )
    return rows


def micros() -> int:
    return int(NOW.timestamp() * 1e6)


def build(root: Path) -> Workspace:
    """A workspace with everything but a ledger."""
    workspace = Workspace(root)
    write_data(workspace.data)
    write_features(workspace.features)
    snapshot().save(workspace.snapshot)
    online(workspace.features / "online.db").close()
    return workspace


def words_in(root: Path, words: Iterable[str]) -> set[tuple[str, str]]:
    """(file, word) wherever a file below `root` holds a word: in its bytes, or in a column of Parquet."""
    found = set()
    wanted = list(words)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            columns = pq.read_table(path).to_pydict()
            content += "\n".join(str(value) for values in columns.values() for value in values).encode()
        found |= {(str(path.relative_to(root)), word) for word in wanted if word.encode() in content}
    return found


def age(path: Path, by: timedelta) -> None:
    """Make a file or folder look older."""
    import os

    then = path.stat().st_mtime - by.total_seconds()
    os.utime(path, (then, then))
