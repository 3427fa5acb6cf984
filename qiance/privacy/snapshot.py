"""The snapshot that rooms hand to each other: tables of users whose rows are in step."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from qiance.privacy.parquet import rows_of, users_in, write_without
from qiance.privacy.swap import Swap, recover

USERS = "users.parquet"
_PER_USER = "user_*.parquet"  # k rows for each row of USERS, in its order


class SnapshotStore:
    """`users.parquet`, and files of so many rows for each of its users; changed together or not at all."""

    name = "snapshot"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def users(self) -> set[str]:
        """See `Store.users`."""
        path = self._folder / USERS
        return users_in(path) if path.is_file() else set()

    def erase(self, user_ids: Collection[str]) -> int:
        """See `Store.erase`."""
        path = self._folder / USERS
        if not path.is_file():
            return 0
        recover(self._folder)
        gone = rows_of(path, user_ids)
        if not gone.any():
            return 0
        swap, removed = Swap(self._folder), int(gone.sum())
        write_without(path, swap.stage(path), gone)
        for other in sorted(self._folder.glob(_PER_USER)):
            block = np.repeat(gone, self._rows_per_user(other, len(gone)))
            write_without(other, swap.stage(other), block)
            removed += int(block.sum())
        swap.commit()
        return removed

    def _rows_per_user(self, path: Path, users: int) -> int:
        rows = pq.ParquetFile(path).metadata.num_rows
        if rows % users:
            raise ValueError(
                f"snapshot: {path.name} has {rows} rows for {users} users; write the snapshot again"
            )
        return int(rows // users)
