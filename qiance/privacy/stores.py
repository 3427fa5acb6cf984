"""The files of a workspace that hold users, as stores that can be erased from."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from qiance.data.ingest import MANIFEST, QUARANTINE, fingerprint_all
from qiance.data.store import fingerprint_file, fingerprint_table
from qiance.privacy.parquet import rows_of, users_in, write_without
from qiance.privacy.quarantine import faults_of, write_faults_without
from qiance.privacy.snapshot import SnapshotStore
from qiance.privacy.swap import Swap, recover
from qiance.workspace import Workspace

# Of the preprocessing: all of it is derived, and made again where it is missing. Its run holds the lock.
WORK, WORK_LOCK = ".work", "lock"
_STALE_S = 24 * 3600.0


class Store(Protocol):
    """Files that hold users. All methods are called with the workspace's lock held."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    def users(self) -> set[str]:
        """The ids of all users in it."""
        ...

    def erase(self, user_ids: Collection[str]) -> int:
        """Remove the users; how many rows that were. Repeating it after a failure finishes it."""
        ...


class TablesStore:
    """A folder of Parquet tables with a column `user_id`, their quarantine and their manifest."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder

    def users(self) -> set[str]:
        """See `Store.users`."""
        return set[str]().union(*(users_in(path) for path in self._tables()))

    def erase(self, user_ids: Collection[str]) -> int:
        """See `Store.erase`; hashes, counts and fingerprint of the manifest follow the files."""
        if not self._folder.is_dir():
            return 0
        recover(self._folder)
        self._remove_leftovers()
        removed = 0
        swap, changed = Swap(self._folder), dict[str, Path]()
        tables = [(path, rows_of, write_without) for path in self._tables()]
        faults = [(path, faults_of, write_faults_without) for path in self._faults()]
        for path, find, write in (*tables, *faults):
            gone = find(path, user_ids)
            if gone.any():
                staged = changed[str(path.relative_to(self._folder))] = swap.stage(path)
                write(path, staged, gone)
                removed += int(gone.sum())
        if changed:
            self._vouch(swap, changed)
        swap.commit()
        return removed

    def _tables(self) -> list[Path]:
        found = self._folder.rglob("*.parquet")
        return sorted(path for path in found if not _hidden(path.relative_to(self._folder)))

    def _faults(self) -> list[Path]:
        return sorted((self._folder / QUARANTINE).glob("*.csv"))

    def _remove_leftovers(self) -> None:
        """Removes what crashes and kept working folders left: derived, or half written."""
        work = self._folder / WORK
        if work.is_dir():
            with (work / WORK_LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError while a run is writing there
                shutil.rmtree(work)
        for path in list(self._folder.rglob(".*.part")):
            path.unlink(missing_ok=True)

    def _vouch(self, swap: Swap, changed: dict[str, Path]) -> None:
        """Stages the manifest of the tables as they will be."""
        path = self._folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # none, or one that nobody trusts: the tables are read again from their source
        if not isinstance(manifest.get("files"), dict):
            return
        for name, staged in changed.items():
            if name in manifest["files"]:
                manifest["files"][name] = fingerprint_file(staged)
        self._describe(manifest.get("report", {}), changed)
        text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        swap.stage(path).write_text(text, encoding="utf-8")

    def _describe(self, report: dict[str, Any], changed: dict[str, Path]) -> None:
        """The report's rows, and its fingerprint over the canonical tables if it has one."""
        rows = report.get("rows", {})
        for name, staged in changed.items():
            if Path(name).suffix == ".parquet" and Path(name).stem in rows:
                rows[Path(name).stem] = pq.ParquetFile(staged).metadata.num_rows
        if "fingerprint" in report:
            names = {table: f"{table}.parquet" for table in rows}
            report["fingerprint"] = fingerprint_all(
                {
                    table: fingerprint_table(pq.read_table(changed.get(name, self._folder / name)))
                    for table, name in names.items()
                }
            )


class LeftoverStore:
    """Folders of trainings that ended badly: encoded rows of whoever was in them."""

    name = "training"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def users(self) -> set[str]:
        """See `Store.users`: the rows are encoded, so nobody can be told."""
        return set()

    def erase(self, user_ids: Collection[str]) -> int:
        """Removes folders in which nothing was written for a day, whosever rows they hold."""
        removed = 0
        for path in sorted(self._folder.glob("*")) if self._folder.is_dir() else ():
            newest = max((p.stat().st_mtime for p in (path, *path.rglob("*"))), default=0.0)
            if path.is_dir() and time.time() - newest > _STALE_S:
                shutil.rmtree(path)
                removed += 1
        return removed


def workspace_stores(workspace: Workspace) -> list[Store]:
    """Every store of files in a workspace; append your own to the list."""
    return [
        TablesStore("data", workspace.data),
        TablesStore("features", workspace.features),
        SnapshotStore(workspace.snapshot),
        LeftoverStore(workspace.root / "training"),
        TablesStore("held_out", workspace.held_out),
    ]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
