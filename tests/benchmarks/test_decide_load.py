"""The load generator: what it counts, and that a server cannot hide its pauses from it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.deciding.load import GIVEN_UP, Job, Result, run
from benchmarks.deciding.tally import percentile, tally
from benchmarks.deciding.wire import SERIAL, Request, messages, read_answer

GOOD = json.dumps({"decision_id": "d", "degraded": []}).encode()
BODIES = [json.dumps({"user_id": user, "request_id": SERIAL}) for user in ("a", "b", "c")]
Reply = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


class Server(ThreadingHTTPServer):
    """Answers POST by `reply`, which is given the body."""

    daemon_threads, request_queue_size = True, 256
    reply: Reply


class Handler(BaseHTTPRequestHandler):
    protocol_version, server = "HTTP/1.1", Server

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        status, headers, body = self.server.reply(json.loads(self.rfile.read(size)))
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(reply: Reply) -> Iterator[int]:
    """The port of a server that answers by `reply`."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.reply = reply
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def load(reply: Reply, **job: Any) -> Result:
    given: dict[str, Any] = {"connections": 16, "warm": 4, "timeout_s": 3.0}
    with serving(reply) as port:
        return run(Job("127.0.0.1", port, "/x", BODIES, nonce=7, **{**given, **job}))


def test_every_request_is_sent_and_has_its_own_number() -> None:
    seen: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        seen.append(body)
        return 200, {}, GOOD

    result = load(reply, phases=[(60.0, 0.5), (30.0, 0.5)])
    first, second = result.phases
    assert (first.sent, second.sent) == (30, 15)
    assert (first.accepted, second.accepted) == (30, 15)
    assert len({body["request_id"] for body in seen}) == 45
    assert {body["user_id"] for body in seen} == {"a", "b", "c"}
    assert result.complete
    assert first.errors == {}


def test_a_pause_of_the_server_is_felt_by_all_that_were_due_in_it() -> None:
    lock, count = threading.Lock(), [0]

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        with lock:
            count[0] += 1
            if count[0] == 5:
                time.sleep(0.8)
        return 200, {}, GOOD

    phase = load(reply, phases=[(50.0, 1.0)], timeout_s=30.0).phases[0]
    assert phase.accepted == 50
    # Four in five were due while it paused; a generator that waits for answers would have sent one of them.
    assert phase.p50_ms is not None
    assert phase.p50_ms > 200
    assert phase.max_ms is not None
    assert phase.max_ms > 700


def test_a_server_that_is_too_slow_is_timed_from_when_requests_were_due() -> None:
    lock = threading.Lock()

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        with lock:
            time.sleep(0.02)
        return 200, {}, GOOD

    # 100 a second for half a second, 25 are done: the last waits as long again, on one connection or many.
    for connections in (1, 64):
        phase = load(reply, phases=[(100.0, 0.5)], connections=connections, timeout_s=60.0).phases[0]
        assert phase.accepted == 50
        assert phase.max_ms is not None
        assert phase.max_ms > 400


def test_what_became_of_a_request_is_told_apart() -> None:
    refusal = {"Retry-After": "1"}
    replies = {
        "a": [(200, {}, GOOD), (503, refusal, b"{}"), (429, refusal, b"{}"), (503, {}, b"{}")],
        "b": [(200, {}, b'{"degraded":["predictor"]}'), (500, {}, b"{}"), (0, {}, b""), (200, {}, GOOD)],
        "c": [(200, {}, GOOD)] * 4,
    }
    counts = dict.fromkeys(replies, -1)

    def reply(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        counts[body["user_id"]] += 1
        return replies[body["user_id"]][counts[body["user_id"]]]

    phase = load(reply, phases=[(24.0, 0.5)], connections=1, warm=1).phases[0]
    assert (phase.sent, phase.accepted, phase.refused) == (12, 6, 2)
    assert phase.errors == {
        "status 503 without Retry-After": 1,
        "degraded: predictor": 1,
        "status 500": 1,
        "closed before the answer": 1,
    }
    assert not phase.clean(1e9)
    assert phase.refusal_p99_ms is not None
    assert 0.0 < phase.refusal_p99_ms < 1_000.0


def test_a_request_without_an_answer_is_an_error_after_the_timeout() -> None:
    gate = threading.Event()

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        gate.wait(5.0)
        return 200, {}, GOOD

    phase = load(reply, phases=[(10.0, 0.3)], timeout_s=0.4).phases[0]
    gate.set()
    assert phase.errors == {"timeout": 3}


def test_it_gives_up_on_a_server_that_falls_behind() -> None:
    gate = threading.Event()

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        gate.wait(5.0)
        return 200, {}, GOOD

    result = load(reply, phases=[(400.0, 10.0)], give_up_s=0.25)
    gate.set()
    assert not result.complete
    assert result.seconds < 8
    assert set(result.phases[0].errors) == {GIVEN_UP}


def test_a_server_that_is_not_there_is_an_error_of_each_request() -> None:
    with serving(lambda _: (200, {}, GOOD)) as port:
        pass
    phase = run(Job("127.0.0.1", port, "/", BODIES, nonce=0, phases=[(20.0, 0.2)], warm=0)).phases[0]
    assert phase.failed == 4
    assert phase.accepted == 0


def test_the_closed_loop_keeps_as_many_under_way_as_asked() -> None:
    now, most, lock = [0], [0], threading.Lock()

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return 200, {}, GOOD

    phase = load(reply, closed_s=1.0, connections=5, warm=5).phases[0]
    assert most[0] == 5
    assert 40 < phase.answered_per_s < 101


def test_the_closed_loop_does_not_hammer_a_server_that_refuses_and_waits_for_its_first_decisions() -> None:
    begun: list[float] = []  # by the first request: the generator's own start does not count

    def reply(_: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        begun.append(time.perf_counter())
        if begun[-1] - begun[0] < 1.0:
            return 503, {"Retry-After": "1"}, b"{}"
        return 200, {}, GOOD

    phase = load(reply, closed_s=0.2, connections=4, timeout_s=10.0).phases[0]
    assert phase.accepted >= 8
    assert 8 <= phase.refused <= 60
    assert phase.seconds > 0.9


def test_a_connection_that_the_server_closes_is_opened_anew() -> None:
    phase = load(lambda _: (200, {"Connection": "close"}, GOOD), phases=[(40.0, 0.5)]).phases[0]
    assert phase.accepted == 20


def test_a_server_may_hang_up_on_idle_connections_with_or_without_a_word() -> None:
    """HAProxy answers 408 on a connection that nothing was asked on, others close it in silence."""
    for word in (b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b""):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=_hang_up_on_all_but_one, args=(listener, word))
            thread.start()
            port = listener.getsockname()[1]
            job = Job("127.0.0.1", port, "/", BODIES, 0, [(10.0, 1.0)], connections=4, warm=4)
            result = run(job)
            thread.join()
        assert result.phases[0].accepted == 10
        assert result.complete


def _hang_up_on_all_but_one(listener: socket.socket, word: bytes) -> None:
    """The last of four connections is served, as the generator uses it first."""
    opened = [listener.accept()[0] for _ in range(4)]
    for one in opened[:3]:
        one.sendall(word)
        one.close()
    with opened[3] as served:
        while served.recv(65_536):
            served.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD))


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", b"abcd"),
        (b"HTTP/1.1 204 No\r\nX-Content-Length: 9\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", None),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
            b"2\r\nab\r\n0\r\n\r\n",
        ),
    ],
)
def test_an_answer_is_read_when_it_is_whole(data: bytes, body: bytes | None) -> None:
    answer = read_answer(data)
    assert (None if answer is None else answer.body) == body


def test_an_answer_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a length nor chunks"):
        read_answer(b"HTTP/1.1 200 OK\r\n\r\nab")


def test_a_body_needs_a_place_for_the_number() -> None:
    with pytest.raises(ValueError, match="no place for a serial number"):
        messages("h", "/", ['{"user_id": "a"}'])


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values)


def test_recovery_is_the_time_from_which_on_a_phase_would_count_as_clean() -> None:
    def request(due: float, ms: float, status: int = 200) -> Request:
        return Request(0, due, due, due + ms / 1e3, status, "")

    calm = [request(n / 100, 5.0) for n in range(400)]
    assert tally(calm, [(100.0, 4.0)], 0.0)[0].settled_after(50.0) == 0.0
    bumpy = [*calm, *(request(0.2, 80.0) for _ in range(9)), request(3.9, 80.0)]
    assert tally(bumpy, [(100.0, 4.0)], 0.0)[0].settled_after(50.0) == 0.5, "one in a hundred may be late"
    refused = [*calm, request(1.3, 1.0, status=503)]
    assert tally(refused, [(100.0, 4.0)], 0.0)[0].settled_after(50.0) == 1.5, "none may be refused"
    never = [*calm, request(3.2, 1.0, status=503)]
    assert tally(never, [(100.0, 4.0)], 0.0)[0].settled_after(50.0) is None, "too little is left to say so"
