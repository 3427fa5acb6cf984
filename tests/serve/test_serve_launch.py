"""A service counts as up once a replica answers through the proxy, whatever it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serve.launch import LaunchError, _reachable, _wait_for_answer, free_port


@contextmanager
def answering(*statuses: int) -> Iterator[tuple[str, list[int]]]:
    """A server that gives each status once, and the last one from then on; and what it has given."""
    given: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(statuses[min(len(given), len(statuses) - 1)])
            self.send_response(given[-1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", given
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("status", [200, 401, 404, 429])
def test_what_a_proxy_says_by_itself_is_no_answer(status: int) -> None:
    with answering(503, 502, status) as (url, given):
        _wait_for_answer(url, time.monotonic() + 10)
        assert given == [503, 502, status]


def test_without_an_answer_the_last_reason_is_told() -> None:
    with (
        answering(503) as (url, _),
        pytest.raises(LaunchError, match=r"the application runs, but http://\S+ did not answer .*status 503"),
    ):
        _wait_for_answer(url, time.monotonic() + 0.3)
    with pytest.raises(LaunchError, match="refused"):
        _wait_for_answer(f"http://127.0.0.1:{free_port()}/", time.monotonic() + 0.3)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1"), ("::", "::1"),
        ("10.0.0.7", "10.0.0.7"), ("shop.internal", "shop.internal"), ("::1", "::1"),
    ],
)  # fmt: skip
def test_every_address_is_reached_at_loopback(host: str, reached: str) -> None:
    assert _reachable(host) == reached
