"""HTTP/1.1 by hand for the load generator: as few instructions per request as Python allows."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

SERIAL = "#" * 16  # replaced by a number of its own in every request
READ_BYTES = 65_536


@dataclass(slots=True)
class Request:
    """One request and what became of it; times are of `time.perf_counter`.

    due: when it had to be sent; sent: when it was; status: 0 without an answer; problem: why it counts as an
    error, empty where it does not.
    """

    phase: int
    due: float
    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `head` is in lower case, `stays` tells whether the connection does."""

    status: int
    head: bytes
    body: bytes
    stays: bool


class Connection:
    """One keep-alive connection with at most one request under way; it never blocks."""

    __slots__ = ("_buffer", "_unsent", "idle_since", "request", "sock")

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = self._unsent = b""
        self.request: Request | None = None
        self.idle_since = 0.0
        code = self.sock.connect_ex((host, port))
        if code not in (0, errno.EINPROGRESS):
            self.sock.close()
            raise OSError(code, errno.errorcode.get(code, str(code)))

    @property
    def stuck(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._unsent)

    def send(self, data: bytes) -> None:
        """Give `data` to the socket, or keep what it does not take yet; OSError when it is broken."""
        self._unsent = data
        self.flush()

    def flush(self) -> None:
        """Give the socket what waits; OSError when it is broken."""
        try:
            self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            # Not connected yet: the handshake is still under way.
            if error.errno != errno.ENOTCONN:
                raise

    def receive(self) -> Answer | None:
        """The answer, None while bytes are missing; OSError or ValueError when the connection is useless."""
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise ValueError("closed before the answer")
        self._buffer = self._buffer + data if self._buffer else data
        answer = read_answer(self._buffer)
        if answer is not None:
            self._buffer = b""
        return answer


def messages(host: str, path: str, bodies: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """Per body the bytes of its request before and after the serial number."""
    found = []
    for body in bodies:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body.encode())}\r\n\r\n"
        )
        before, mark, after = (head + body).partition(SERIAL)
        if not mark:
            raise ValueError(f"bodies: {body[:80]!r} has no place for a serial number ({SERIAL!r})")
        found.append((before.encode(), after.encode()))
    return found


def read_answer(data: bytes) -> Answer | None:
    """The answer that `data` is; None while bytes are missing. ValueError if its end cannot be told."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, body = data[:end].lower(), data[end + 4 :]
    stays = b"connection: close" not in head
    place = head.find(b"\r\ncontent-length:")
    if place >= 0:
        length = int(head[place + 17 :].split(b"\r\n", 1)[0])
        return Answer(int(head[9:12]), head, body, stays) if len(body) >= length else None
    if b"transfer-encoding: chunked" not in head:
        raise ValueError("the answer has neither a length nor chunks")
    return Answer(int(head[9:12]), head, body, stays) if body.endswith(b"0\r\n\r\n") else None
