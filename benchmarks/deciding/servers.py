"""Servers in processes of their own: started, waited for, and ended by their process ids."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import ROOT

START_S = 180.0
STOP_S = 60.0


class ServerError(RuntimeError):
    """A server did not come up; the message has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that answers on 127.0.0.1."""

    process: psutil.Process
    port: int
    log: Path

    def cpu_s(self) -> float:
        """CPU seconds of the process and its descendants that are alive."""
        total = 0.0
        for process in _tree(self.process):
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], port: int, ready: str, log: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Run `command` until the block ends; enters it once `ready` (a path) answers 200 on `port`.

    environment is added to ours. Raises ServerError when it ends first or takes longer than `START_S`.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(psutil.Process(process.pid), port, log)
    try:
        _wait(process, server, ready)
        yield server
    finally:
        _stop(process, server)


def _wait(process: subprocess.Popen[bytes], server: Server, ready: str) -> None:
    deadline, status = time.monotonic() + START_S, 0
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"ended with {process.returncode}: {_end_of(server.log)}")
        status = _status(f"http://127.0.0.1:{server.port}{ready}")
        if status == 200:
            return
        time.sleep(0.1)
    told = f"gave {status} for {ready}" if status else f"did not answer on {ready}"
    raise ServerError(f"{told} for {START_S:.0f} s: {_end_of(server.log)}")


def _status(url: str) -> int:
    """The status of a GET, 0 where there is no answer."""
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2_000:].strip() or "it printed nothing"


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _stop(process: subprocess.Popen[bytes], server: Server) -> None:
    """Ask it to end, then end what is left of it; only processes that it started are touched."""
    family = _tree(server.process)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_S)
    for one in {*family, *_tree(server.process)}:
        with suppress(psutil.Error):
            one.kill()  # psutil compares start times: a process id that was given anew is left alone
    process.wait(timeout=STOP_S)
