"""Run a list of independent pieces on Ray Data with bounded concurrency, or in this process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qiance.data.errors import DataError

Stream = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Called with a function and pieces; yields what the function made of each, in the order they finish.

Pieces and results are values of JSON.
"""

OBJECT_STORE = 128 << 20  # pieces and results are descriptions; the data goes through files


@contextmanager
def streaming(workers: int | None = None, address: str | None = None) -> Iterator[Stream]:
    """How pieces are run.

    workers: pieces at a time, by default one per CPU of the cluster; 0 runs them in this process, without
    Ray. address: of a running cluster. A Ray that this process has started already is used as it is, else
    one is started for the time.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers: {workers} is below 0; give the pieces at a time, or 0 for no Ray")
    if workers == 0:
        yield map
        return
    with ray_for(workers, address, "or run without Ray (workers: 0)"):
        import ray

        size = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        yield lambda work, pieces: _stream(work, pieces, size)


@contextmanager
def ray_for(
    workers: int | None, address: str | None, remedy: str = "or give it fewer workers"
) -> Iterator[None]:
    """Ray as it is, or for the time: at `address`, or on loopback with `workers` CPUs (default: all)."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Short: Ray puts Unix sockets below it, and their paths may have 107 bytes.
    folder = tempfile.mkdtemp(prefix="qiance-")
    local = {
        "num_cpus": workers or os.cpu_count(),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
        "_temp_dir": folder,
    }
    try:
        start_ray(quiet | ({"address": address} if address else local), remedy)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def start_ray(options: dict[str, Any], remedy: str) -> None:
    """Start or join Ray; on a machine that is busy its parts may miss each other's deadline once."""
    import ray

    for attempt in (1, 2):
        try:
            ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == 2:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                said = f"try again when the machine is less busy, {remedy}"
                raise RuntimeError(f"Ray did not start: {first[:200]}; {said}") from error


def _stream(work: Callable[[Any], Any], pieces: Sequence[Any], size: int) -> Iterator[Any]:
    """One Ray Data task per piece, `size` at a time; a task whose process dies is run again by Ray."""
    if not pieces:
        return
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False

    def task(row: dict[str, str]) -> dict[str, str]:
        return {"result": json.dumps(_outcome(work, json.loads(row["piece"])))}

    rows = [{"piece": json.dumps(piece)} for piece in pieces]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map(task, compute=TaskPoolStrategy(size=min(size, len(rows))), num_cpus=1).iter_rows():
        outcome = json.loads(row["result"])
        if "refused" in outcome:
            raise DataError(*outcome["refused"])
        yield outcome["made"]


def _outcome(work: Callable[[Any], Any], piece: Any) -> dict[str, Any]:
    """A refused file is the user's mistake: it comes back as an outcome, for Ray would wrap the error."""
    try:
        return {"made": work(piece)}
    except DataError as error:
        return {"refused": [error.source, error.problem, error.remedy]}
