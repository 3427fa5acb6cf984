"""Who trains together: the workers of a Ray Train run, or one process alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

STATE = "state.pt"
PROGRESS = "progress.jsonl"

State = dict[str, Any]


class Workers(Protocol):
    """Whoever trains together: `rank` of `world`."""

    rank: int
    world: int

    def average_gradients(self, network: nn.Module) -> None:
        """Put the mean over the workers in place of each one's own."""
        ...

    def sum(self, value: float) -> float:
        """Over the workers."""
        ...

    def save(self, state: State, epoch: dict[str, float] | None) -> None:
        """Keep a checkpoint. epoch: the entry of the history, where it ends an epoch."""
        ...


class OnRay:
    """The workers of a Ray Train run; the first one writes the checkpoints."""

    def __init__(self, run: Path) -> None:
        import ray.train

        from training.effect.rendezvous import join_group

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self._run = run
        join_group(run, self.rank, self.world)

    def average_gradients(self, network: nn.Module) -> None:
        """See `Workers`.

        One message in which every weight has its place, so that the order of a sum never changes;
        DistributedDataParallel orders its messages anew after its first step, and so after each restart.
        """
        if self.world == 1:
            return
        own = [weight.grad for weight in network.parameters()]
        together = torch.cat([gradient.flatten() for gradient in own])
        torch.distributed.all_reduce(together)
        together /= self.world
        for gradient, mean in zip(own, together.split([g.numel() for g in own]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def sum(self, value: float) -> float:
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return float(total)

    def save(self, state: State, epoch: dict[str, float] | None) -> None:
        import ray.train

        metrics = epoch or {}
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / STATE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if epoch is not None:
            with (self._run / PROGRESS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(epoch) + "\n")


class Alone:
    """This process. folder: where its checkpoint is kept; None keeps it in memory, as long as it runs."""

    rank, world = 0, 1

    def __init__(self, tell: Callable[[dict[str, float]], None], folder: Path | None = None) -> None:
        self._tell, self._file = tell, None if folder is None else folder / STATE

    def average_gradients(self, network: nn.Module) -> None:
        """Its gradients are the mean."""

    def sum(self, value: float) -> float:
        return value

    def save(self, state: State, epoch: dict[str, float] | None) -> None:
        if self._file is not None:
            staging = self._file.with_suffix(".tmp")
            torch.save(state, staging)
            os.replace(staging, self._file)
        if epoch is not None:
            self._tell(epoch)

    def last(self) -> State | None:
        """The checkpoint that an earlier process left."""
        if self._file is None or not self._file.exists():
            return None
        return torch.load(self._file, weights_only=True)


def read_checkpoint(checkpoint: Any) -> State | None:
    """The state in a checkpoint of Ray Train."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE, weights_only=True)
