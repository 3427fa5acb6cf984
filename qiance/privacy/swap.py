"""Several files replaced together: all of them or, after a crash and `recover`, still all of them.

New files are written beside the old ones and flushed to disk; then a list of them is; then they are renamed.
Without the list nothing has happened yet; with it, `recover` goes on where the renaming stopped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

SWAP_LIST = ".erasing.json"
_SUFFIX = ".erased"


class Swap:
    """New versions of files below `folder`; nothing is changed before `commit`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, list[str]()

    def stage(self, path: Path) -> Path:
        """Where the new version of `path` is to be written; hidden, so that no reader takes it up."""
        self._names.append(str(path.relative_to(self._folder)))
        return _staged(path)

    def commit(self) -> None:
        """Replace the files; durable when it returns."""
        if not self._names:
            return
        for name in self._names:
            _flush(_staged(self._folder / name))
        part = self._folder / f"{SWAP_LIST}.part"
        part.write_text(json.dumps(self._names), encoding="utf-8")
        _flush(part)
        part.replace(self._folder / SWAP_LIST)
        _flush(self._folder)
        recover(self._folder)


def recover(folder: Path) -> None:
    """Finish what a crash interrupted in `folder`, or remove what was never to be."""
    try:
        names = json.loads((folder / SWAP_LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        for path in folder.rglob(f".*{_SUFFIX}"):
            path.unlink(missing_ok=True)
        return
    for name in names:
        path = folder / name
        if _staged(path).exists():
            _staged(path).replace(path)
            _flush(path.parent)
    (folder / SWAP_LIST).unlink()
    _flush(folder)


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}{_SUFFIX}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
