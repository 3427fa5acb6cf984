"""The working folder: finished pieces by name, each vouched for by a small JSON marker that is renamed in.

Everything in it is derived from the input, so it can be deleted at any time at the price of doing it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiance.data.store import write_json

CODE = 1  # raise it when the pieces change their meaning


@dataclass(frozen=True)
class Work:
    """Folders of one job under `root`; on a cluster it is on storage that every machine sees."""

    root: Path

    @property
    def plans(self) -> Path:
        return self.root / "plans"

    @property
    def unpacked(self) -> Path:
        return self.root / "unpacked"

    def checked(self, key: str) -> Path:
        """Fragments checked under the settings that `key` stands for."""
        return self.root / f"checked-{key}"

    def parts(self, key: str) -> Path:
        """Feature tables of buckets under the settings that `key` stands for."""
        return self.root / f"parts-{key}"

    def keep_only(self, *folders: Path) -> None:
        """Remove what other settings left behind."""
        kept = {folder.name for folder in folders} | {self.plans.name, self.unpacked.name, LOCK}
        for path in self.root.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; the lock goes with the process, however it ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                remedy = "wait for it, or choose another folder"
                raise ValueError(f"out: another run is writing to {self.root.parent}; {remedy}") from None
            yield


LOCK = "lock"


def digest(*parts: object) -> str:
    """A short name for a combination of settings and content."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def read_marker(path: Path) -> dict[str, Any] | None:
    """What a finished piece left, None if it is not finished."""
    try:
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def write_marker(path: Path, marker: dict[str, Any]) -> dict[str, Any]:
    """Publish a piece; after this it is never made again."""
    write_json(marker, path)
    return marker
