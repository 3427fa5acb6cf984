"""What must not be lost while the ledger is down: bounded local files, replayed when it is back.

It takes decisions for control, which spend nothing, and outcomes. Every batch is on the disk before it is
answered. A user is named by the ledger's keyed hash of the id, never by the id.

Replicas share the folder, and whoever finds a `*.jsonl` there that nobody has locked replays it and deletes
it. So a file is called that only once its owner has locked it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
Entry = dict[str, Any]
Replay = Callable[[Sequence[Entry]], Sequence[Entry]]
_PER_REPLAY = 1_000  # entries handed to the ledger at once
_READY, _DRAFT = "*.jsonl", "*.new"
_DRAFT_S = 3_600.0  # a draft lives for an instant; one as old as this was left by a process that ended
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})  # file systems that have no fsync of folders


class SpoolFullError(RuntimeError):
    """The spool holds all that it may; nothing can be accepted until the ledger is back."""


class Spool:
    """One replica's file in `folder`, locked while the replica lives; safe to use from several threads.

    max_bytes: size after which nothing more is taken. What the ledger does not take yet is put into
    `folder/waiting`, in files that are no replica's own and do not count.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._waiting = folder / "waiting"
        self._lock = threading.Lock()
        self._own: tuple[Path, FileIO] | None = None

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep `entries`; on the disk when this returns. Raises SpoolFullError, having kept none of them."""
        lines = _lines(entries)
        with self._lock:
            try:
                if self._own is None:
                    self._own = _create(self._folder)
                path, file = self._own
                size = os.fstat(file.fileno()).st_size
                if size + len(lines) > self._max_bytes:
                    raise SpoolFullError(f"spool: {path.name} holds {size} bytes, all it may")
                self._write(file, lines, size)
            except OSError as error:
                raise SpoolFullError(f"spool: {self._folder} cannot be written ({error.strerror})") from error

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there that was not tried yet, of any replica."""
        return not any(self._folder.glob(_READY))

    @property
    def has_waiting(self) -> bool:
        """Whether anything is there that the ledger did not take yet, of any replica."""
        return any(self._waiting.glob(_READY))

    def replay(self, replay: Replay) -> int:
        """Hand everything to `replay`, also what replicas that are gone left; how many entries it took.

        What it gives back waits for `retry`. A file goes when all of it was taken or waits. `replay` must
        take an entry that it has seen before; what it raises ends the replay and keeps the file.
        """
        with self._lock:
            count = self._replay_own(replay)
        count += sum(self._replay_left(path, replay) for path in sorted(self._folder.glob(_READY)))
        self._sweep()
        return count

    def retry(self, replay: Replay) -> int:
        """As `replay`, for what waits."""
        return sum(self._replay_left(path, replay) for path in sorted(self._waiting.glob(_READY)))

    def close(self) -> None:
        """Release the file; what is in it is replayed by whoever comes next."""
        with self._lock:
            self._release()

    def _write(self, file: FileIO, lines: bytes, size: int) -> None:
        try:
            _write_all(file, lines)
        except OSError:
            try:
                file.truncate(size)
            except OSError:
                self._release()  # half a line may be in it, which the next would be added to
            raise

    def _release(self) -> None:
        if self._own is not None:
            self._own[1].close()
            self._own = None

    def _replay_own(self, replay: Replay) -> int:
        if self._own is None:
            return 0
        count = self._hand_over(*self._own, replay)
        self._release()
        return count

    def _replay_left(self, path: Path, replay: Replay) -> int:
        """A file that another replica left, unless it lives and holds its lock."""
        try:
            file = path.open("r+b", buffering=0)  # to write, without which NFS gives no lock
        except FileNotFoundError:
            return 0
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            # Names are never used again: one that is there now is this file, which its owner has let go of.
            return self._hand_over(path, file, replay) if path.exists() else 0

    def _hand_over(self, path: Path, file: FileIO, replay: Replay) -> int:
        """How many entries of the locked file were taken; it is gone after, unless all of it waits on."""
        count, kept = 0, list[Entry]()
        for part in _parts(path.name, file):
            kept += replay(part)
            count += len(part)
        if kept and len(kept) == count and path.parent == self._waiting:
            return 0
        if kept:
            _create(self._waiting, _lines(kept))[1].close()
        path.unlink(missing_ok=True)
        return count - len(kept)

    def _sweep(self) -> None:
        """Old drafts: what one may hold was not answered, or is still in the file that it was to replace."""
        for draft in self._folder.rglob(_DRAFT):
            with suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > _DRAFT_S:
                    draft.unlink()


def _create(folder: Path, lines: bytes = b"") -> tuple[Path, FileIO]:
    """A new file that holds `lines`, locked; on the disk, and only then by a name that others look at."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = folder / f"{secrets.token_hex(8)}.new"
    file = FileIO(draft, "x+", opener=lambda name, flags: os.open(name, flags | os.O_APPEND, 0o600))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_all(file, lines)
        path = draft.rename(draft.with_suffix(".jsonl"))
        _sync(folder)
    except BaseException:
        file.close()
        draft.unlink(missing_ok=True)
        raise
    return path, file


def _write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Put the names in `folder` on the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def _lines(entries: Sequence[Entry]) -> bytes:
    return b"".join(json.dumps(e, ensure_ascii=False).encode() + b"\n" for e in entries)


def _parts(name: str, file: FileIO) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    file.seek(0)
    for line in file.readall().split(b"\n"):
        try:
            entry = json.loads(line) if line else None
        except ValueError:  # the machine stopped in the middle of a line, which was never answered
            logger.warning("spool: a line of %s is cut off and left out", name)
            continue
        if entry is not None:
            part.append(entry)
        if len(part) == _PER_REPLAY:
            yield part
            part = []
    if part:
        yield part
