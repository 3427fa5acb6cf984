"""Gradient steps over tensors that each worker slices itself, from checkpoint to checkpoint.

The encoded rows come as one `.npz` file in the run's storage (a folder that every node sees, as Ray
Train's checkpoints need anyway), not as a stream of Ray Data, which makes the tables they are encoded from.
A step must find its rows again after a restart: rows by the index of a seeded permutation are the same on
every attempt, while a stream has to be read again from its start and its order depends on who was faster.
The whole set fits in memory, and slicing tensors costs microseconds a batch.

What happens between two checkpoints is a function of the first one: random numbers are drawn from a seed of
epoch, step and worker, so none of their state has to be kept. A worker that is killed at any step goes on
from the last checkpoint to the same weights, bit for bit, that it would have reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.effect.network import EffectNetwork, NetworkConfig, losses, total_loss
from training.effect.workers import Alone, OnRay, State, Workers, read_checkpoint

# Share of categorical values shown as unknown while training, so that code 0 has a meaning.
_UNKNOWN_SHARE = 0.02
_VALID_CHUNK = 8_192

Weights = dict[str, Tensor]


@dataclass
class Rows:
    """Encoded rows: num `[n, Dn]`, cat `[n, Dc]`, weights `[n, H]`, labels by task `[n]`."""

    num: Tensor
    cat: Tensor
    weights: Tensor
    labels: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path, part: str, tasks: tuple[str, ...]) -> Rows:
        with np.load(path, allow_pickle=False) as data:
            labels = {task: torch.from_numpy(data[f"{part}_{task}"]) for task in tasks}
            num, cat, weights = (
                torch.from_numpy(data[f"{part}_{name}"]) for name in ("num", "cat", "weights")
            )
        return cls(num, cat, weights, labels)

    def __len__(self) -> int:
        return len(self.num)

    def take(self, index: Tensor | slice) -> Rows:
        labels = {task: values[index] for task, values in self.labels.items()}
        return Rows(self.num[index], self.cat[index], self.weights[index], labels)


@dataclass
class Progress:
    """Where training stands, as a checkpoint keeps it.

    epoch, step: of the next gradient step. loss: sum over the rows of this epoch so far, of all workers.
    best, stale: lowest validation loss and epochs since. history: one entry per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    best: float = float("inf")
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def finish_epoch(self, rows: int, valid_loss: float) -> bool:
        """Close the epoch over `rows` rows; whether it is the best so far."""
        self.history.append({"epoch": self.epoch, "train_loss": self.loss / rows, "valid_loss": valid_loss})
        improved = valid_loss < self.best
        self.best = valid_loss if improved else self.best
        self.stale = 0 if improved else self.stale + 1
        self.epoch, self.step, self.loss = self.epoch + 1, 0, 0.0
        return improved

    def is_over(self, config: Mapping[str, Any]) -> bool:
        return self.epoch >= config["epochs"] or self.stale >= config["patience"]


def train_loop(config: dict[str, Any]) -> None:
    """What a Ray Train worker runs, from the last checkpoint on; the result is in the one it leaves."""
    import ray.train

    workers = OnRay(Path(config["data"]).parent)
    fit_network(config, workers, read_checkpoint(ray.train.get_checkpoint()))


def train_here(
    config: dict[str, Any], tell: Callable[[dict[str, float]], None], folder: Path | None = None
) -> tuple[Weights, list[dict[str, float]]]:
    """The same in the calling process, without Ray; returns the best epoch's weights and the history.

    folder: where a checkpoint is kept, which the next call with this folder goes on from.
    """
    workers = Alone(tell, folder)
    with torch_left_alone():
        return best_of(fit_network(config, workers, workers.last()))


@contextmanager
def torch_left_alone() -> Iterator[None]:
    """Gives threads, determinism and random state back as they were: `fit_network` sets them."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def best_of(state: State) -> tuple[Weights, list[dict[str, float]]]:
    """The weights of the best epoch and the history; RuntimeError where no epoch was any good."""
    if not state["best"]:
        raise RuntimeError("training ended without a model: no epoch had a finite validation loss")
    return state["best"], state["progress"]["history"]


def fit_network(config: Mapping[str, Any], workers: Workers, start: State | None = None) -> State:
    """Train on every `world`-th row from `rank` on, until the patience or the epochs are used up.

    start: a checkpoint to go on from. Returns the last state: network, optimiser, progress, and `best`, the
    weights of the best epoch. Every worker computes the validation loss over all validation rows: the copies
    of the network are equal, so all stop at the same epoch without talking.
    """
    torch.set_num_threads(config["threads"])
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(config["seed"])
    network = EffectNetwork(NetworkConfig.from_dict(config["network"]))
    data, tasks = Path(config["data"]), network.config.tasks
    train, valid = Rows.read(data, "train", tasks), Rows.read(data, "valid", tasks)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"]
    )
    progress, best = Progress(), Weights()
    if start is not None:
        network.load_state_dict(start["network"])
        optimiser.load_state_dict(start["optimiser"])
        progress, best = Progress(**start["progress"]), start["best"]
    while not progress.is_over(config):
        batches, count = _batches(config, progress, len(train), workers)
        _seed_steps(config, progress, workers)
        progress.loss += workers.sum(
            _steps(network, optimiser, train, batches[progress.step :], config, workers)
        )
        progress.step += config["checkpoint_steps"]
        done = progress.step >= len(batches)
        if done and progress.finish_epoch(count, _valid_loss(network, valid)):
            best = {name: values.clone() for name, values in network.state_dict().items()}
        workers.save(_state(network, optimiser, progress, best), progress.history[-1] if done else None)
    return _state(network, optimiser, progress, best)


def _state(network: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, best: Weights) -> State:
    return {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "progress": vars(progress),
        "best": best,
    }


def _batches(
    config: Mapping[str, Any], progress: Progress, rows: int, workers: Workers
) -> tuple[Sequence[Tensor], int]:
    """This worker's batches of the epoch, and how many rows all workers' batches have."""
    shuffle = torch.Generator().manual_seed(config["seed"] * 1_000_003 + progress.epoch)
    own = rows // workers.world
    share = torch.randperm(rows, generator=shuffle)[workers.rank :: workers.world][:own]
    return share.split(max(1, config["batch_size"] // workers.world)), own * workers.world


def _seed_steps(config: Mapping[str, Any], progress: Progress, workers: Workers) -> None:
    """One seed per checkpoint and worker: a run that goes on from a checkpoint repeats what it lost."""
    epoch = (config["seed"] * 1_000_003 + progress.epoch) * 1_009 + workers.rank
    torch.manual_seed((epoch + progress.step * 0x9E3779B97F4A7C15) % 2**63)


def _steps(
    network: EffectNetwork,
    optimiser: torch.optim.Optimizer,
    rows: Rows,
    batches: Sequence[Tensor],
    config: Mapping[str, Any],
    workers: Workers,
) -> float:
    """Gradient steps up to the next checkpoint; returns the sum of the losses of this worker's rows."""
    network.train()
    total = 0.0
    for index in batches[: config["checkpoint_steps"]]:
        batch = rows.take(index)
        unknown = torch.rand(batch.cat.shape) < _UNKNOWN_SHARE
        raw = network(batch.num, batch.cat.masked_fill(unknown, 0))
        loss = total_loss(losses(network.config, raw, batch.labels), batch.weights.float())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        workers.average_gradients(network)
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        total += float(loss.detach()) * len(index)
    return total


@torch.no_grad()
def _valid_loss(network: EffectNetwork, rows: Rows) -> float:
    """Mean loss of a row, every head counted alike."""
    network.eval()
    total = 0.0
    for start in range(0, len(rows), _VALID_CHUNK):
        batch = rows.take(slice(start, start + _VALID_CHUNK))
        raw = network(batch.num, batch.cat)
        loss = total_loss(losses(network.config, raw, batch.labels), torch.ones(()))
        total += float(loss) * len(batch)
    return total / len(rows)
