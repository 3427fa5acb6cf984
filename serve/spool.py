"""What must not be lost while the ledger is down: a bounded local file, replayed when it is back.

It takes decisions for control, which spend nothing, and outcomes. Every batch is on the disk before it is
answered. A user is named by the ledger's keyed hash of the id, never by the id.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)
Entry = dict[str, Any]
Replay = Callable[[Sequence[Entry]], None]
_PER_REPLAY = 1_000  # entries handed to the ledger at once


class SpoolFullError(RuntimeError):
    """The spool holds all that it may; nothing can be accepted until the ledger is back."""


class Spool:
    """One replica's file in `folder`, locked while the replica lives; safe to use from several threads.

    max_bytes: size after which nothing more is taken.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._path = folder / f"{secrets.token_hex(8)}.jsonl"
        self._file: BinaryIO | None = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep `entries`; on the disk when this returns. Raises SpoolFullError, having kept none of them."""
        lines = b"".join(json.dumps(e, ensure_ascii=False).encode() + b"\n" for e in entries)
        with self._lock:
            try:
                file = self._open()
                if file.tell() + len(lines) > self._max_bytes:
                    raise SpoolFullError(f"spool: {self._path.name} holds {file.tell()} bytes, all it may")
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise SpoolFullError(
                    f"spool: {self._path.name} cannot be written ({error.strerror})"
                ) from error

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits in any file of the folder."""
        return not any(self._folder.glob("*.jsonl"))

    def replay(self, replay: Replay) -> int:
        """Hand everything to `replay`, also what replicas that are gone left; how many entries.

        A file goes when all of it was taken. `replay` must take an entry that it has seen before; what it
        raises ends the replay and keeps the file.
        """
        if not self._folder.is_dir():
            return 0
        with self._lock:
            count = self._replay_own(replay)
        return count + sum(self._replay_left(path, replay) for path in sorted(self._folder.glob("*.jsonl")))

    def close(self) -> None:
        """Release the file; what is in it is replayed by whoever comes next."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self) -> BinaryIO:
        """The file, which is locked before anybody sees it, under a name that no file had before.

        Or whoever replays what others left would take it for such a file, and remove it.
        """
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path = self._folder / f"{secrets.token_hex(8)}.jsonl"
            draft = self._path.with_suffix(".new")
            file = draft.open("ab")
            draft.chmod(0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(self._path)
            self._file = file
        return self._file

    def _replay_own(self, replay: Replay) -> int:
        if self._file is None:
            return 0
        count = _hand_over(self._path, replay)
        self._path.unlink()
        self._file.close()
        self._file = None
        return count

    def _replay_left(self, path: Path, replay: Replay) -> int:
        """A file that another replica left, unless it lives and holds its lock."""
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                count = _hand_over(path, replay)
                path.unlink()
                return count
        except (BlockingIOError, FileNotFoundError):
            return 0


def _hand_over(path: Path, replay: Replay) -> int:
    count = 0
    for part in _parts(path):
        replay(part)
        count += len(part)
    return count


def _parts(path: Path) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line) if line else None
        except ValueError:  # the machine stopped in the middle of a line, which was never answered
            logger.warning("spool: a line of %s is cut off and left out", path.name)
            continue
        if entry is not None:
            part.append(entry)
        if len(part) == _PER_REPLAY:
            yield part
            part = []
    if part:
        yield part
