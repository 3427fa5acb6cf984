"""Keep every socket of an embedded cluster on loopback."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

# Ray takes 127.0.0.1 as the node's address where clusters of several machines are off, and then binds
# all of its servers to it. The name of the switch is historical; it works on Linux too.
SINGLE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def prepare(environment: MutableMapping[str, str]) -> None:
    """Set what must stand in the environment before ray is imported."""
    environment[SINGLE_MACHINE] = "0"


def bind_replicas() -> None:
    """Bind the gRPC server of a Serve replica to loopback: Ray 2.60 opens it on all interfaces.

    Runs in every worker process before Serve starts the server (worker_process_setup_hook).
    """
    from ray.serve._private import replica

    original = replica.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> int:
        return int(original(server, address.replace("[::]", "127.0.0.1")))

    replica.add_port_to_grpc_server = on_loopback
