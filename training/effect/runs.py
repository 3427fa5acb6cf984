"""The folder of a training run, found again by whoever starts the same training after a crash."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

ROWS, LOCK = "rows.npz", "lock"
_PREFIX = "effect-"
_FORMAT = 1  # of the checkpoints; one of another format is not gone on from
# Encoded rows of whoever was in them: a run that nobody went on with is removed by the next.
_KEPT_S = 7 * 24 * 3600.0

Arrays = Mapping[str, NDArray[Any]]


class TrainingBusyError(RuntimeError):
    """The same training runs in another process."""


@contextmanager
def open_run(storage: Path, config: Mapping[str, Any], arrays: Arrays) -> Iterator[Path]:
    """The folder of the run that trains by `config` on `arrays`, with the rows in it.

    A run that was killed left its checkpoints there; one that ends well leaves nothing. Equal settings and
    equal rows are the same run, on the same version of torch. Raises TrainingBusyError while another process
    is at it.
    """
    storage.mkdir(parents=True, exist_ok=True)
    run = storage.resolve() / f"{_PREFIX}{_key(config, arrays)}"
    _remove_old(storage, run)
    run.mkdir(exist_ok=True)
    with (run / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingBusyError(
                f"{run}: the same training is running in another process; wait for it, or change a setting"
            ) from None
        _write_rows(run / ROWS, arrays)
        yield run
        shutil.rmtree(run, ignore_errors=True)


def _key(config: Mapping[str, Any], arrays: Arrays) -> str:
    about = {"config": config, "format": _FORMAT, "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]


def _write_rows(path: Path, arrays: Arrays) -> None:
    if path.exists():
        return
    staging = path.with_name(f".{path.name}")
    with staging.open("wb") as stream:
        np.savez(stream, **arrays)
    os.replace(staging, path)


def _remove_old(storage: Path, run: Path) -> None:
    for path in storage.resolve().glob(f"{_PREFIX}*"):
        newest = max((p.stat().st_mtime for p in (path, *path.glob("**/*")) if p.exists()), default=0.0)
        if path != run and time.time() - newest > _KEPT_S:
            shutil.rmtree(path, ignore_errors=True)
