"""Runs the training loop on Ray Train and brings what it ended with back."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from training.effect.loop import train_loop
from training.effect.workers import PROGRESS, State, read_checkpoint
from training.environment import unless_set

Tell = Callable[[float, str], None]
_POLL_SECONDS = 0.5
_RESTARTS = 3  # a fault of our own would come again each time
# Ray Train takes these from the environment only; what the caller has set wins. Its controller collects
# one report per worker at the interval, 2 s by default: ten times as long as an epoch here takes. The
# watcher is one more process to start, for warnings ahead of a node's preemption; a worker that is
# lost is restarted from its checkpoint without it.
_RAY_TRAIN_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def run_ray_train(config: Mapping[str, Any], run: Path, workers: int, tell: Tell) -> State:
    """Train with `workers` Ray Train workers; returns the last state, see `training.effect.loop`.

    run: folder of this run, holding the data; checkpoints go below it, and are gone on from where an earlier
    process left some. Workers that die are restarted from the last checkpoint, up to three times. Raises
    RuntimeError when Ray is not running.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    if not ray.is_initialized():
        # Left to itself Ray would start a cluster that listens on every interface.
        raise RuntimeError("Ray is not running: call ray.init before training")
    from training.effect.rendezvous import torch_config

    trainer = TorchTrainer(
        train_loop,
        train_loop_config=dict(config),
        torch_config=torch_config(),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(run),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=_RESTARTS),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    with _watched(run / PROGRESS, config["epochs"], tell), own_interrupt(), ray_train_defaults():
        result = trainer.fit()
    state = read_checkpoint(result.checkpoint)
    if state is None:
        raise RuntimeError("training ended without a checkpoint")
    return state


@contextmanager
def _watched(path: Path, epochs: int, tell: Tell) -> Iterator[None]:
    """Pass on what the first worker writes; Ray Train's own callbacks run in another process."""
    done = threading.Event()

    def watch() -> None:
        told = -1.0
        while not done.wait(_POLL_SECONDS):
            for row in _epochs(path):
                if row["epoch"] > told:  # after a restart an epoch may come twice
                    tell_epoch(row, epochs, tell)
                    told = row["epoch"]

    before = len({row["epoch"] for row in _epochs(path)})
    tell(0.05, f"going on after {before} epochs" if before else "starting the Ray Train workers")
    watcher = threading.Thread(target=watch, name="training-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _epochs(path: Path) -> list[dict[str, float]]:
    """The lines that were written to the end."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def tell_epoch(row: Mapping[str, float], epochs: int, tell: Tell) -> None:
    """Report one epoch's line of the history as progress."""
    epoch = int(row["epoch"]) + 1
    text = f"epoch {epoch} of at most {epochs}: validation loss {row['valid_loss']:.4f}"
    tell(0.1 + 0.75 * epoch / epochs, text)


@contextmanager
def own_interrupt() -> Iterator[None]:
    """Put the caller's Ctrl-C handler back: `fit` replaces it and leaves it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ray_train_defaults() -> AbstractContextManager[None]:
    """What Ray Train takes from the environment, unless the caller has set it."""
    return unless_set(_RAY_TRAIN_DEFAULTS)
