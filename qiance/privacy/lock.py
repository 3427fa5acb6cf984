"""One lock per workspace, for whoever rewrites its files: erasures, and the steps that build them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qiance.privacy.swap import SWAP_LIST, recover

LOCK_FILE = ".rewriting.lock"
_POLL_S = 0.1


class WorkspaceBusyError(RuntimeError):
    """Somebody else rewrites the files of the workspace."""


@contextmanager
def workspace_lock(root: Path, patience_s: float = 600.0) -> Iterator[None]:
    """Hold the workspace `root`, waiting up to `patience_s`; the lock goes with the process, however it ends.

    A rewriting that a crash interrupted is finished first.

    Raises WorkspaceBusyError when it is not free in time. Not reentrant.
    """
    root.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with (root / LOCK_FILE).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise WorkspaceBusyError(
                        f"workspace: {root.name} is being rewritten by another process; try again"
                    ) from None
                time.sleep(_POLL_S)
        for interrupted in root.glob(f"*/{SWAP_LIST}"):
            recover(interrupted.parent)
        yield
