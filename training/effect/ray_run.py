"""Runs the training loop on Ray Train and brings the best weights back."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.effect.loop import PROGRESS, STATE, train_loop

Tell = Callable[[float, str], None]
_POLL_SECONDS = 0.5
# Ray Train takes these from the environment only; what the caller has set wins. Its controller collects
# one report per worker at the interval, 2 s by default: ten times as long as an epoch here takes. The
# watcher is one more process to start, for warnings ahead of a node's preemption; a worker that is
# lost is restarted from its checkpoint without it.
_RAY_TRAIN_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def run_ray_train(
    config: Mapping[str, Any], run: Path, workers: int, tell: Tell
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train with `workers` Ray Train workers; returns the best epoch's weights and the history.

    run: folder of this run, holding the data; checkpoints go below it. A worker that dies is
    restarted once from the last checkpoint. Raises RuntimeError when Ray is not running.
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
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="valid_loss", checkpoint_score_order="min"
            ),
            failure_config=ray.train.FailureConfig(max_failures=1),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    with _watched(run / PROGRESS, config["epochs"], tell), _own_interrupt(), _ray_train_defaults():
        result = trainer.fit()
    best = result.get_best_checkpoint("valid_loss", "min")
    if best is None:
        raise RuntimeError("training ended without a checkpoint: no epoch had a finite validation loss")
    with best.as_directory() as folder:
        state = torch.load(Path(folder) / STATE, weights_only=True)
    return state["network"], result.return_value


@contextmanager
def _watched(path: Path, epochs: int, tell: Tell) -> Iterator[None]:
    """Pass on what the first worker writes; Ray Train's own callbacks run in another process."""
    done = threading.Event()

    def watch() -> None:
        told = 0
        while not done.wait(_POLL_SECONDS):
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            for line in lines[told:]:
                tell_epoch(json.loads(line), epochs, tell)
            told = len(lines)

    tell(0.05, "starting the Ray Train workers")
    watcher = threading.Thread(target=watch, name="training-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def tell_epoch(row: Mapping[str, float], epochs: int, tell: Tell) -> None:
    """Report one epoch's line of the history as progress."""
    epoch = int(row["epoch"]) + 1
    text = f"epoch {epoch} of at most {epochs}: validation loss {row['valid_loss']:.4f}"
    tell(0.1 + 0.75 * epoch / epochs, text)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Put the caller's Ctrl-C handler back: `fit` replaces it and leaves it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _ray_train_defaults() -> Iterator[None]:
    added = {name: value for name, value in _RAY_TRAIN_DEFAULTS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
