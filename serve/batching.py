"""Requests that arrive while others are worked on are worked on together: batches grow with the load alone.

A batch is taken whenever a worker is free, and holds all that waits then. Nobody waits for company, so a
lone request is never delayed; under load the cost of a pass and of a commit is shared by many. While more
comes than can be done, what would be answered too late is refused at once (`serve.limit`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.limit import Admittance, Pace

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
    items that wait. target_s: while more comes than can be answered in this time, others are refused.
    workers: batches under way at the same time, so that one is computed while another is written to disk.
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
        self._max_waiting, self._workers = max_waiting, workers
        self._admittance = Admittance(max_batch=max_batch, workers=workers, target_s=target_s)
        self._running: set[_Running] = set()
        self._queue: deque[_Waiting[T, R]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that no worker has taken yet."""
        return len(self._queue)

    @property
    def pace(self) -> Pace:
        """What can be answered in time, by how long batches took lately."""
        return self._admittance.pace

    def refuses(self) -> bool:
        """Whether an item that comes is refused; ask once for each, before `submit`."""
        self._admittance.came(self._clock())
        return self._is_full()

    def _is_full(self) -> bool:
        in_hand = len(self._queue) + sum(running.size for running in self._running)
        return len(self._queue) >= self._max_waiting or not self._admittance.admits(in_hand)

    async def submit(self, item: T, timeout_s: float) -> R:
        """The result for `item`.

        Raises OverloadedError at once when too many wait, DeadlinePassedError after `timeout_s`. Cancelled,
        it leaves the queue; what a worker has begun is finished.
        """
        if self._is_full():
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
        most = self._admittance.max_batch
        while self._queue and len(batch) < most:
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
        self._admittance.ended(running.size, self._clock() - running.since)
        self._dispatch()  # first, so that nobody idles while these are answered
        error = done.exception()
        for place, waiting in enumerate(batch):
            if waiting.future.done():
                continue
            if error is not None:
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(done.result()[place])
