"""The erasure of one user from everything: begun in the ledger, finished in stores and files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qiance.ledger import Erasure, ErasureState, Ledger
from qiance.privacy.lock import WorkspaceBusyError, workspace_lock
from qiance.privacy.stores import Store, workspace_stores
from qiance.workspace import Workspace

logger = logging.getLogger(__name__)
# Removes a user from the online store; how many rows it had.
EraseOnline = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What an erasure did. removed: rows by store. problems: what is left, to be tried again by `resume`."""

    erasure_id: str
    erased_at: datetime
    state: ErasureState
    removed: Mapping[str, int]
    problems: tuple[str, ...]

    @classmethod
    def of(cls, erasure: Erasure) -> ErasureReport:
        """The report of what the ledger noted."""
        return cls(
            erasure.erasure_id, erasure.erased_at, erasure.state, dict(erasure.removed), erasure.problems
        )

    @property
    def is_done(self) -> bool:
        """Whether no byte of the user is left."""
        return self.state is ErasureState.DONE


class Eraser:
    """Erases users from the ledger, the online store and the files of a workspace.

    stores: those of files, all of the workspace's unless given. Safe to use from several threads and
    processes: files are rewritten under the workspace's lock.
    """

    def __init__(
        self,
        ledger: Ledger,
        workspace: Workspace,
        erase_online: EraseOnline,
        stores: Sequence[Store] | None = None,
        patience_s: float = 600.0,
    ) -> None:
        self._ledger, self._root, self.erase_online = ledger, workspace.root, erase_online
        self._stores = list(workspace_stores(workspace) if stores is None else stores)
        self._patience_s = patience_s

    def erase(self, user_id: str, by: str, reason: str = "") -> ErasureReport:
        """`begin` and `finish`."""
        return self.finish(self.begin(user_id, by, reason), user_id)

    def begin(self, user_id: str, by: str, reason: str = "") -> Erasure:
        """Erases the user from the ledger: from now on they are a stranger. The rest is `finish`."""
        return self._ledger.begin_erasure(user_id, by, reason)

    def finish(self, erasure: Erasure, user_id: str) -> ErasureReport:
        """Erases the user from online store and files.

        What fails is told in the report and leaves the erasure pending; the rest is done all the same.
        """
        removed, problems = self._clean(user_id)
        self._ledger.finish_erasure(erasure.erasure_id, removed, problems)
        self._ledger.scrub()
        done = self._ledger.erasure(erasure.erasure_id)
        assert done is not None, "an erasure's row is never deleted"
        return ErasureReport.of(done)

    def resume(self) -> list[ErasureReport]:
        """Tries again what earlier erasures left undone, of this process or another."""
        reports = []
        for erasure_id, user_id in self._ledger.pending_erasures():
            erasure = self._ledger.erasure(erasure_id)
            if erasure is not None:
                reports.append(self.finish(erasure, user_id))
        self._ledger.scrub()
        return reports

    def replay(self, exported: Mapping[str, Any], by: str) -> dict[str, int]:
        """Erases again whom restored backups of ledger, online store or files brought back; rows by store.

        exported: what `Ledger.export_erasures` gave. Files know users by id, the list by a keyed hash: every
        id in the files is looked up in it. Users who came back since are taken out of the files too, which
        are built anew from the shop's data.
        """
        removed = Counter({"users": self._ledger.replay_erasures(exported, by)})
        with workspace_lock(self._root, self._patience_s):
            present = sorted(set[str]().union(*(store.users() for store in self._stores)))
            gone = list(self._ledger.erased_before(present))
            for store in self._stores:
                removed[store.name] += store.erase(gone) if gone else 0
            for user_id in gone:
                removed["online"] += self.erase_online(user_id)
        return dict(+removed)

    def _clean(self, user_id: str) -> tuple[dict[str, int], list[str]]:
        removed: Counter[str] = Counter()
        problems: list[str] = []

        def attempt(name: str, work: Callable[[], int]) -> None:
            try:
                removed[name] += work()
            except Exception as error:  # whatever one store's trouble is, the others are still erased from
                told = f"{name}: {_told(error)}"
                logger.error("erasure: not done: %s", told)
                problems.append(told)

        attempt("online", lambda: self.erase_online(user_id))
        attempt("files", lambda: self._clean_files(user_id, attempt))
        # Again: features that were on their way to the store at the first time have arrived.
        attempt("online", lambda: self.erase_online(user_id))
        return dict(+removed), list(dict.fromkeys(problems))

    def _clean_files(self, user_id: str, attempt: Callable[[str, Callable[[], int]], None]) -> int:
        with workspace_lock(self._root, self._patience_s):
            for store in self._stores:
                attempt(store.name, lambda store=store: store.erase([user_id]))  # type: ignore[misc]
        return 0


def _told(error: Exception) -> str:
    """What went wrong, in words that cannot name the user."""
    reason = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, WorkspaceBusyError):
        reason = str(error)
    return reason or type(error).__name__
