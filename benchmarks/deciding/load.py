"""The load generator, in a process of its own: one thread, one epoll, keep-alive connections, no framework.

    python -m benchmarks.deciding.load < job.json > result.json

Open loop: request k of a phase is due at its start + k / rate, whatever became of those before, and its
latency counts from then. What waits for a free connection, or for this process, waits on the clock. Closed
loop: as many requests as there are connections are under way at any time, refusals aside.
"""

from __future__ import annotations

import gc
import json
import re
import resource
import select
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.deciding.tally import Tally, tally
from benchmarks.deciding.wire import Answer, Connection, Request, messages

GIVEN_UP = "given up"
SWEEP_S = 0.1
IDLE_S = 3.0  # servers close idle connections, uvicorn after five seconds; a request must not meet that
SAMPLES = 4
LEAST_DECISIONS = 8  # of a closed loop
REFUSED_S = 0.1


@dataclass(frozen=True)
class Job:
    """What to send, and how.

    bodies: JSON texts sent in turn, each with a place for a serial number (`wire.SERIAL`).
    phases: (rate per second, seconds) one after another; empty for a closed loop of `closed_s` seconds.
    connections: most that are open at once; warm: opened before the clock starts.
    timeout_s: a request without an answer for so long is an error. give_up_s: stop when more work than so
    many seconds of the rate is under way; None never does. nonce: makes the serial numbers of this job.
    """

    host: str
    port: int
    path: str
    bodies: Sequence[str]
    nonce: int
    phases: Sequence[tuple[float, float]] = ()
    closed_s: float = 0.0
    connections: int = 1_024
    warm: int = 64
    timeout_s: float = 5.0
    give_up_s: float | None = None


@dataclass(frozen=True)
class Result:
    """What was seen: a tally per phase, the generator's own share of one core, some answers as they came."""

    phases: Sequence[Tally]
    complete: bool
    seconds: float
    cpu_share: float
    most_in_flight: int
    samples: Sequence[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        return cls(**{**data, "phases": [Tally(**phase) for phase in data["phases"]]})


class Generator:
    """Sends requests and notes what became of each."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._messages = messages(job.host, job.path, job.bodies)
        self._poll = select.epoll()
        self._all: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._waiting: deque[Request] = deque()
        self._sent, self._next_sweep = 0, 0.0
        self.done: list[Request] = []
        self.samples: list[str] = []
        self.most_in_flight = self.accepted = 0

    @property
    def in_flight(self) -> int:
        """Requests without an answer, those that wait for a connection included."""
        return len(self._all) - len(self._idle) + len(self._waiting)

    def warm(self) -> None:
        """Open connections before the clock starts."""
        for _ in range(min(self._job.warm, self._job.connections)):
            self._rest(self._open())

    def open_loop(self, start: float) -> bool:
        """All phases, from `start`; False if it gave up."""
        for number, (rate, seconds) in enumerate(self._job.phases):
            if not self._phase(number, rate, round(rate * seconds), start):
                return False
            start += seconds
        while self.in_flight:
            self._wait(SWEEP_S)
        return True

    def _phase(self, number: int, rate: float, total: int, start: float) -> bool:
        patience, sent = self._job.give_up_s, 0
        bound = float("inf") if patience is None else max(64.0, rate * patience)
        while sent < total:
            now = time.perf_counter()
            while sent < total and start + sent / rate <= now:
                self._offer(Request(number, start + sent / rate))
                sent += 1
            if self.in_flight > bound:
                return False
            if sent < total:
                self._wait(start + sent / rate - time.perf_counter())
        return True

    def closed_loop(self, start: float) -> None:
        """Keep every connection busy for the job's time, and on until a slow server has decided a few times.

        Who is refused asks again after a pause: a client that does not would only keep the server from work.
        """
        resting: deque[float] = deque()
        seen, end, latest = 0, start + self._job.closed_s, start + self._job.closed_s + self._job.timeout_s
        while (now := time.perf_counter()) < end or (self.accepted < LEAST_DECISIONS and now < latest):
            for request in self.done[seen:]:
                if request.status != 200:
                    resting.append(now + REFUSED_S)
            seen = len(self.done)
            while resting and resting[0] <= now:
                resting.popleft()
            for _ in range(self._job.connections - self.in_flight - len(resting)):
                self._offer(Request(0, now))
            self._wait(0.01)

    def abandon(self) -> None:
        """Close everything; what was under way counts as given up."""
        for connection in list(self._all.values()):
            self._lose(connection, GIVEN_UP)
        while self._waiting:
            self._finish(self._waiting.popleft(), GIVEN_UP)

    def _wait(self, seconds: float) -> None:
        """Handle what comes in the next `seconds`, at least once."""
        # epoll rounds up to milliseconds; select on the epoll's own descriptor does not.
        if select.select([self._poll], [], [], max(0.0, seconds))[0]:
            for fd, _ in self._poll.poll(0):
                self._handle(self._all[fd])
            self._pump()
        now = time.perf_counter()
        if now >= self._next_sweep:
            self._sweep(now)
            self._next_sweep = now + SWEEP_S

    def _offer(self, request: Request) -> None:
        self._waiting.append(request)
        self._pump()
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def _pump(self) -> None:
        """Send what waits while a connection is free or may be opened."""
        while self._waiting and (self._idle or len(self._all) < self._job.connections):
            request = self._waiting.popleft()
            try:
                connection = self._idle.pop() if self._idle else self._open()
            except OSError as error:
                self._finish(request, f"connect: {error.strerror}")
            else:
                self._send(connection, request)

    def _open(self) -> Connection:
        connection = Connection(self._job.host, self._job.port)
        self._all[connection.sock.fileno()] = connection
        self._poll.register(connection.sock, select.EPOLLIN)
        return connection

    def _send(self, connection: Connection, request: Request) -> None:
        before, after = self._messages[self._sent % len(self._messages)]
        serial = b"%08x%08x" % (self._job.nonce, self._sent)
        self._sent += 1
        connection.request, request.sent = request, time.perf_counter()
        try:
            connection.send(before + serial + after)
        except OSError as error:
            self._lose(connection, f"send: {error.strerror}")
            return
        if connection.stuck:
            self._poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)

    def _handle(self, connection: Connection) -> None:
        try:
            if connection.stuck:
                connection.flush()
                if not connection.stuck:
                    self._poll.modify(connection.sock, select.EPOLLIN)
            answer = connection.receive()
        except OSError as error:
            self._lose(connection, f"read: {error.strerror}")
        except ValueError as error:
            self._lose(connection, str(error))
        else:
            if answer is not None:
                self._answered(connection, answer)

    def _answered(self, connection: Connection, answer: Answer) -> None:
        request = connection.request
        if request is None:  # what nobody asked for: the server says that it closes the connection
            self._lose(connection, "")
            return
        connection.request, request.status = None, answer.status
        self._finish(request, problem_of(answer))
        if len(self.samples) < SAMPLES or (request.problem and len(self.samples) < 2 * SAMPLES):
            self.samples.append(answer.body.decode(errors="replace")[:2_000])
        if answer.stays:
            self._rest(connection)
        else:
            self._close(connection)

    def _rest(self, connection: Connection) -> None:
        connection.idle_since = time.perf_counter()
        self._idle.append(connection)

    def _finish(self, request: Request, problem: str) -> None:
        request.ended, request.problem = time.perf_counter(), problem
        self.accepted += request.status == 200 and not problem
        self.done.append(request)

    def _lose(self, connection: Connection, problem: str) -> None:
        """The connection is gone, and its request with it; one that was idle is merely closed."""
        request, connection.request = connection.request, None
        if request is None and connection in self._idle:
            self._idle.remove(connection)
        self._close(connection)
        if request is not None:
            self._finish(request, problem)

    def _close(self, connection: Connection) -> None:
        del self._all[connection.sock.fileno()]
        self._poll.unregister(connection.sock)
        connection.sock.close()

    def _sweep(self, now: float) -> None:
        """End what has waited longer than a client would, and leave before the server hangs up."""
        while self._idle and self._idle[0].idle_since < now - IDLE_S:
            self._lose(self._idle[0], "")
        late = now - self._job.timeout_s
        for connection in list(self._all.values()):
            if connection.request is not None and connection.request.due < late:
                self._lose(connection, "timeout")
        while self._waiting and self._waiting[0].due < late:
            self._finish(self._waiting.popleft(), "timeout")


def problem_of(answer: Answer) -> str:
    """Why an answer counts as an error: a refusal is none if it says when to come again."""
    if answer.status == 200:
        whole = b'"degraded":[]' in answer.body or b'"degraded": []' in answer.body
        return "" if whole else f"degraded: {_degraded(answer.body)}"
    if answer.status in (429, 503):
        return "" if b"\r\nretry-after:" in answer.head else f"status {answer.status} without Retry-After"
    return f"status {answer.status}"


def _degraded(body: bytes) -> str:
    found = re.search(rb'"degraded":\s*\[([^\]]*)\]', body)
    return found[1].decode(errors="replace").replace('"', "") if found else "no such field"


def run(job: Job) -> Result:
    """Do one job."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, job.connections + 256), hard), hard))
    generator = Generator(job)
    generator.warm()
    gc.collect()
    gc.disable()  # a pause of the collector would count as the server's
    start, cpu, complete = time.perf_counter(), time.process_time(), True
    try:
        if job.phases:
            complete = generator.open_loop(start)
        else:
            generator.closed_loop(start)
    finally:
        gc.enable()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    generator.abandon()
    return Result(
        phases=tally(generator.done, job.phases or [(0.0, seconds)], start),
        complete=complete,
        seconds=seconds,
        cpu_share=cpu / seconds,
        most_in_flight=generator.most_in_flight,
        samples=generator.samples,
    )


def main() -> None:
    """Read a job from stdin, write its result to stdout."""
    json.dump(asdict(run(Job(**json.load(sys.stdin)))), sys.stdout)


if __name__ == "__main__":
    main()
