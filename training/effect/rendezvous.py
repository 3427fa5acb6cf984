"""How the workers of one run find each other without listening to the network.

torch's own rendezvous, which Ray Train's `TorchConfig` starts even for a single worker, is a TCP store
that listens on every interface. On a machine by itself the workers meet in a file instead, and
gloo's connections are kept on the loopback interface. A cluster of several machines keeps torch's own.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
import ray.train.collective
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig


@dataclass
class LoopbackTorchConfig(TorchConfig):
    """Ray Train starts no process group; `join_group` does."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend


def torch_config() -> TorchConfig:
    """For a cluster bound to loopback the quiet rendezvous, else Ray Train's own."""
    return LoopbackTorchConfig() if _is_loopback() else TorchConfig()


def join_group(folder: Path, rank: int, world: int) -> None:
    """Join the run's process group where Ray Train has not; a single worker needs none.

    folder: of the run, seen by all workers. The first worker names the file, new on each start: what a
    lost worker left in an old one would confuse its successor.
    """
    if world == 1 or dist.is_initialized():
        return
    os.environ["GLOO_SOCKET_IFNAME"] = _loopback_interface()
    name = ray.train.collective.broadcast_from_rank_zero(f"rendezvous-{uuid.uuid4().hex}")
    dist.init_process_group("gloo", init_method=f"file://{folder / name}", rank=rank, world_size=world)


def _is_loopback() -> bool:
    return all(str(node["NodeManagerAddress"]).startswith("127.") for node in ray.nodes() if node["Alive"])


def _loopback_interface() -> str:
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.startswith("127.") for address in addresses):
            return name
    raise RuntimeError("this machine has no loopback interface: the workers cannot meet")
