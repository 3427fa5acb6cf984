"""Bulk requests: batches of their own, one at a time for all of them, so that single requests pass."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from serve.batching import DeadlinePassedError, OverloadedError
from serve.desk import Reply, late
from serve.slates import Call

# Bulk requests that wait while one is worked on. A thousand decisions take about a second, so the last of
# these is answered within what a request may take.
MOST_WAITING = 4


class BulkLane:
    """Has one bulk request at a time decided, `max_batch` calls by `max_batch`; belongs to one event loop.

    Whoever else asks the desk waits for one such batch at most.
    """

    def __init__(
        self, decide: Callable[[Sequence[Call]], Awaitable[Sequence[Reply]]], max_batch: int
    ) -> None:
        self._decide, self._max_batch = decide, max_batch
        self._turn, self._in_hand = asyncio.Lock(), 0

    async def decide(self, calls: Sequence[Call], timeout_s: float) -> list[Reply]:
        """One reply per call, in order: 503 for each that had not begun at its deadline.

        Raises OverloadedError at once when too many wait, DeadlinePassedError where nothing was decided in
        `timeout_s`, DeskLostError. Cancelled or late, it leaves undone what has not begun.
        """
        if self._in_hand > MOST_WAITING:
            raise OverloadedError(self._in_hand - 1)
        self._in_hand += 1
        replies: list[Reply | None] = [None] * len(calls)
        left = deque(range(len(calls)))
        work = asyncio.ensure_future(self._work(calls, left, replies))
        try:
            # Shielded, since a batch that the desk has goes on: the next bulk one waits for its end.
            await asyncio.wait_for(asyncio.shield(work), timeout_s)
        except TimeoutError:
            pass
        finally:
            left.clear()
        if not any(replies):
            raise DeadlinePassedError("no answer in time")
        return [late() if reply is None else reply for reply in replies]

    async def _work(self, calls: Sequence[Call], left: deque[int], replies: list[Reply | None]) -> None:
        """Fill in `replies` for the numbers in `left`, when it is our turn."""
        try:
            async with self._turn:
                while batch := self._take(calls, left):
                    done = await self._decide([calls[n] for n in batch])
                    for n, reply in zip(batch, done, strict=True):
                        replies[n] = reply
        finally:
            self._in_hand -= 1

    def _take(self, calls: Sequence[Call], left: deque[int]) -> list[int]:
        """The next batch, without those that are too late."""
        now, batch = time.monotonic(), list[int]()
        while left and len(batch) < self._max_batch:
            n = left.popleft()
            if calls[n].deadline > now:
                batch.append(n)
        return batch
