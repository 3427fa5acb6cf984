"""The training loop: epochs over tensors that each worker slices itself.

The encoded rows come as one `.npz` file in the run's storage (a folder that every node sees, as Ray
Train's checkpoints need anyway). The whole set fits in memory, and slicing tensors costs microseconds
a batch where a data loader's per-row work would dominate a network this small.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.effect.network import EffectNetwork, NetworkConfig, losses, total_loss

STATE = "state.pt"
PROGRESS = "progress.jsonl"
# Share of categorical values shown as unknown while training, so that code 0 has a meaning.
_UNKNOWN_SHARE = 0.02
_VALID_CHUNK = 8_192


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
    """Where training stands; survives a restart of the worker."""

    epoch: int = 0
    best: float = float("inf")
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, train_loss: float, valid_loss: float) -> None:
        self.history.append({"epoch": self.epoch, "train_loss": train_loss, "valid_loss": valid_loss})
        improved = valid_loss < self.best
        self.best = valid_loss if improved else self.best
        self.stale = 0 if improved else self.stale + 1
        self.epoch += 1


def train_loop(config: dict[str, Any]) -> list[dict[str, float]]:
    """What a Ray Train worker runs: `fit_network` on its share; returns the history.

    A restarted worker goes on from the last checkpoint; the first worker writes them.
    """
    import ray.train
    import ray.train.torch

    from training.effect.rendezvous import join_group

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    join_group(Path(config["data"]).parent, rank, world)

    def report(metrics: dict[str, float], state: dict[str, Any]) -> None:
        if rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / STATE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        with (Path(config["data"]).parent / PROGRESS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(metrics) + "\n")

    return fit_network(
        config,
        report,
        start=_read_state(ray.train.get_checkpoint()),
        rank=rank,
        world=world,
        wrap=ray.train.torch.prepare_model,
    )


def train_here(
    config: dict[str, Any], tell: Callable[[dict[str, float]], None]
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The same in the calling process, without Ray; returns the best epoch's weights and the history."""
    best: dict[str, Tensor] = {}
    lowest = float("inf")

    def report(metrics: dict[str, float], state: dict[str, Any]) -> None:
        nonlocal best, lowest
        if metrics["valid_loss"] < lowest:
            lowest = metrics["valid_loss"]
            best = {name: values.clone() for name, values in state["network"].items()}
        tell(metrics)

    with torch_left_alone():
        history = fit_network(config, report)
    return best, history


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


def fit_network(
    config: Mapping[str, Any],
    report: Callable[[dict[str, float], dict[str, Any]], None],
    *,
    start: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> list[dict[str, float]]:
    """Train on every `world`-th batch row from `rank` on, until the patience or the epochs are used up.

    report: called after each epoch with its metrics and the whole state. start: a state to go on from.
    wrap: makes the network distributed. Every worker computes the validation loss over all validation
    rows: the copies of the network are equal, so all stop at the same epoch without talking.
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
    progress = Progress()
    if start is not None:
        network.load_state_dict(start["network"])
        optimiser.load_state_dict(start["optimiser"])
        progress = Progress(**start["progress"])
    model = wrap(network)
    while progress.epoch < config["epochs"] and progress.stale < config["patience"]:
        # One seed per epoch and worker: a run that goes on from a checkpoint repeats what it lost.
        torch.manual_seed((config["seed"] * 1_000_003 + progress.epoch) * 1_009 + rank)
        shuffle = torch.Generator().manual_seed(config["seed"] * 1_000_003 + progress.epoch)
        share = torch.randperm(len(train), generator=shuffle)[rank::world][: len(train) // world]
        batches = share.split(max(1, config["batch_size"] // world))
        train_loss = _epoch(model, network.config, optimiser, train, batches)
        progress.add(train_loss, _valid_loss(network, valid))
        report(
            progress.history[-1],
            {
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "progress": vars(progress),
            },
        )
    return progress.history


def _epoch(
    model: nn.Module,
    config: NetworkConfig,
    optimiser: torch.optim.Optimizer,
    rows: Rows,
    batches: tuple[Tensor, ...],
) -> float:
    """One pass over the batches; returns the mean loss of a row."""
    model.train()
    total = 0.0
    for index in batches:
        batch = rows.take(index)
        unknown = torch.rand(batch.cat.shape) < _UNKNOWN_SHARE
        raw = model(batch.num, batch.cat.masked_fill(unknown, 0))
        loss = total_loss(losses(config, raw, batch.labels), batch.weights.float())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        total += float(loss.detach()) * len(index)
    return total / sum(len(index) for index in batches)


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


def _read_state(checkpoint: Any) -> Any:
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE, weights_only=True)
