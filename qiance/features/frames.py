"""Item values that decisions were scored with, kept by their content, so that decisions can be replayed."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_KEY = re.compile(r"[0-9a-f]{64}")


class FrameStore:
    """A folder of frames: named float64 arrays under the SHA-256 of names, shapes and bytes.

    A frame is written once, to a name of its own, and renamed: a reader never sees a part. Safe for many
    threads and processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def put(self, values: Mapping[str, Floats]) -> str:
        """Keep `values`; their content hash. Putting them again marks them as used now."""
        arrays = {name: np.ascontiguousarray(values[name], dtype="<f8") for name in sorted(values)}
        key = content_hash(arrays)
        path = self._path(key)
        try:
            os.utime(path)
        except FileNotFoundError:
            self._write(path, arrays)
        return key

    def get(self, key: str) -> dict[str, Floats]:
        """The values under `key`.

        Raises KeyError for a frame that was never put or has been pruned, ValueError for a damaged one.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"items: {key!r} is no content hash; give 64 hexadecimal digits")
        try:
            with np.load(self._path(key), allow_pickle=False) as stored:
                found = {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            raise KeyError(key) from None
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"items: frame {key} cannot be read: {error}; restore it from a backup"
            ) from None
        if content_hash(found) != key:
            raise ValueError(f"items: frame {key} was changed; restore it from a backup")
        return found

    def prune(self, before: datetime) -> int:
        """Remove frames that were last put before `before` (with an offset); how many."""
        if before.tzinfo is None:
            raise ValueError(f"before: {before.isoformat()} has no offset; give it in UTC")
        removed = 0
        for path in self._folder.glob("*.npz"):
            try:
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue  # another process pruned it
        return removed

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"

    def _write(self, path: Path, arrays: Mapping[str, Floats]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A name of its own per writer; one that was left behind is pruned like a frame.
        draft = path.with_name(f"{uuid4().hex}.npz")
        try:
            with draft.open("xb") as file:
                np.savez(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def content_hash(values: Mapping[str, Floats]) -> str:
    """SHA-256 (hex) over names, shapes and float64 bytes; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name in sorted(values):
        array = np.ascontiguousarray(values[name], dtype="<f8")
        digest.update(f"{len(name)}:{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
