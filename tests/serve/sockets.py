"""Which processes belong to a cluster, and where they listen."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Bound:
    """A TCP socket that listens, or a UDP socket that is bound."""

    address: str
    port: int
    process: str

    @property
    def is_loopback(self) -> bool:
        """Also for an IPv4 address in IPv6's notation, which Python 3.11 does not look into."""
        found = ipaddress.ip_address(self.address)
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return (mapped or found).is_loopback


def processes_of(folder: str, root: psutil.Process | None = None) -> list[psutil.Process]:
    """Everything below `root` (this process), and everything that names the cluster's folder."""
    found = {p.pid: p for p in (root or psutil.Process()).children(recursive=True)}
    for process in psutil.process_iter():
        try:
            if any(folder in word for word in process.cmdline()):
                found[process.pid] = process
        except psutil.Error:
            continue
    return list(found.values())


def named(processes: Iterable[psutil.Process], word: str) -> list[psutil.Process]:
    """Those with the word in their name or command line, as far as they still run."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if word in f"{process.name()} {' '.join(process.cmdline())}":
                found.append(process)
    return found


def bound_by(processes: Iterable[psutil.Process]) -> list[Bound]:
    """Every internet socket that others could reach."""
    found = []
    for process in processes:
        try:
            for connection in process.net_connections("inet"):
                bound = connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
                if bound and connection.laddr:
                    found.append(Bound(connection.laddr.ip, connection.laddr.port, process.name()))
        except psutil.NoSuchProcess:
            continue
    return found
