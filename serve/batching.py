"""Requests that arrive while others are worked on are worked on together: batches grow with the load alone.

A batch is taken whenever a worker is free, and holds all that waits then. Nobody waits for company, so a
lone request is never delayed; under load the cost of a pass and of a commit is shared by many. While more
comes than can be done, what would be answered too late is refused at once, by how long batches took lately.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.service_time import ServiceTime

# Answers were expected too late for so long without a break: overload. A stall (a checkpoint of a file, a
# collection of garbage) is shorter and drains by itself, so nobody is refused for it. The idea is that of
# "controlled delay": K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012.
LATE_S = 0.15
# While less than a quarter of a batch waits, nobody is refused before the answer would take so many times the
# target. Most of a small batch's time is fixed, so batches that shrink further help hardly anybody, and leave
# most of a slowed machine's capacity unused.
LATEST = 4.0
T = TypeVar("T")
R = TypeVar("R")


class OverloadedError(RuntimeError):
    """More waits than can be answered in time; retry_after_s: when to ask again."""

    def __init__(self, waiting: int, retry_after_s: int = 1) -> None:
        super().__init__(f"{waiting} requests wait; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class DeadlinePassedError(RuntimeError):
    """The request waited until its answer was of no use."""


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    size: int
    since: float


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    future: asyncio.Future[R]
    since: float
    deadline: float


class MicroBatcher(Generic[T, R]):
    """Has `work` done on batches of what was submitted; belongs to one event loop.

    work: answers a batch, one result per item in order. max_batch: most items of a batch. max_waiting: most
    items that wait. target_s: in overload an item is refused when it should be answered later than this, or
    `LATEST` times this while few wait; where nothing waits it is always taken. workers: batches under way at
    the same time, so that one is computed while another is written to disk.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        max_waiting: int,
        target_s: float,
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._clock = work, clock
        self._max_batch, self._max_waiting, self._target_s = max_batch, max_waiting, target_s
        self._workers, self._service_time = workers, ServiceTime()
        self._running: set[_Running] = set()
        self._late_since, self._refused_at = math.inf, -math.inf
        self._queue: deque[_Waiting[T, R]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return len(self._queue)

    def refuses(self) -> bool:
        """Whether a further item is refused; only ask to act upon it, since a refusal is remembered."""
        now = self._clock()
        full = len(self._queue) >= self._max_waiting
        if full or self._is_overloaded(now):
            self._refused_at = now
            return True
        return False

    def _is_overloaded(self, now: float) -> bool:
        """Whether one more would be late, as others were for a while; lasts as long as items are refused."""
        few = len(self._queue) < self._max_batch // 4
        if not self._queue or self._expected_s() <= self._target_s * (LATEST if few else 1.0):
            self._late_since = math.inf
            return False
        self._late_since = min(self._late_since, now)
        return now - self._late_since > LATE_S or now - self._refused_at < LATE_S

    def _expected_s(self) -> float:
        """Seconds from arrival to answer of the first item of the batch that one more would join.

        The newcomer makes the batch longer for those before it, so it is theirs that must be in time.
        """
        now, expected = self._clock(), self._service_time.expected
        free = [max(expected(running.size) - (now - running.since), 0.0) for running in self._running]
        heapq.heapify(free)
        batches, company = divmod(len(self._queue), self._max_batch)
        for _ in range(batches):
            heapq.heapreplace(free, free[0] + expected(self._max_batch))
        waited = now - self._queue[batches * self._max_batch].since if company else 0.0
        return waited + free[0] + expected(company + 1)

    async def submit(self, item: T, timeout_s: float) -> R:
        """The result for `item`.

        Raises OverloadedError at once when too many wait, DeadlinePassedError after `timeout_s`. Cancelled,
        it leaves the queue; what a worker has begun is finished.
        """
        if self.refuses():
            raise OverloadedError(len(self._queue))
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        now = self._clock()
        self._queue.append(_Waiting(item, future, now, now + timeout_s))
        self._dispatch()
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise DeadlinePassedError(f"no answer within {timeout_s:g} s") from None

    def _dispatch(self) -> None:
        while len(self._running) < self._workers and self._queue:
            batch = self._take()
            if batch:
                self._run(batch)

    def _take(self) -> list[_Waiting[T, R]]:
        """The next batch, without those that nobody waits for any more."""
        batch: list[_Waiting[T, R]] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if not waiting.future.done() and waiting.deadline > self._clock():
                batch.append(waiting)
        return batch

    def _run(self, batch: Sequence[_Waiting[T, R]]) -> None:
        running = _Running(len(batch), self._clock())
        self._running.add(running)
        call = asyncio.ensure_future(self._work([waiting.item for waiting in batch]))
        call.add_done_callback(lambda done: self._finish(running, batch, done))

    def _finish(
        self, running: _Running, batch: Sequence[_Waiting[T, R]], done: asyncio.Future[Sequence[R]]
    ) -> None:
        self._running.discard(running)
        self._service_time.observe(running.size, self._clock() - running.since)
        self._dispatch()  # first, so that nobody idles while these are answered
        error = done.exception()
        for place, waiting in enumerate(batch):
            if waiting.future.done():
                continue
            if error is not None:
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(done.result()[place])
