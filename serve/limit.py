"""How many requests a replica may have in hand while more comes than it can answer in time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from serve.service_time import ServiceTime

# Batches are counted upon to be no smaller than this share of the largest, however late that makes them. Most
# of a small batch's time is fixed, so batches that shrink further help hardly anybody, and leave most of a
# slowed machine's capacity unused.
LEAST_SHARE = 0.25
RATE_S = 0.3  # over which what comes is averaged; a stall that makes many come at once is shorter


@dataclass(frozen=True, slots=True)
class Pace:
    """What can be answered in time: batches of `batch`, at_once requests in hand, and a_second of them."""

    batch: int
    at_once: int
    a_second: float


class Admittance:
    """Admits everybody, but where more comes than can be answered in time, no more than can be at once.

    A stall (a checkpoint of a file, a collection of garbage) fills the queue too, but not for long: nobody is
    refused for it. There is no state of overload that could outlast it. max_batch: most requests of a batch;
    workers: batches at a time; target_s: longest time from arrival to answer that is in time, for 99 of 100.
    """

    def __init__(self, *, max_batch: int, workers: int, target_s: float) -> None:
        self._max_batch, self._workers, self._target_s = max_batch, workers, target_s
        self._least = max(math.ceil(LEAST_SHARE * max_batch), 1)
        self._service_time = ServiceTime()
        self._rate, self._came_at = 0.0, 0.0
        self.pace = self._pace()

    def came(self, now: float) -> None:
        """A request came, whether it is taken or not."""
        self._rate = self._rate * math.exp((self._came_at - now) / RATE_S) + 1.0 / RATE_S
        self._came_at = now

    def admits(self, in_hand: int) -> bool:
        """Whether one more is taken beside those that wait and are worked on."""
        return in_hand < self.pace.at_once or not self._is_too_much()

    @property
    def max_batch(self) -> int:
        """Most requests of a batch; of uneven ones the last of the admitted would be late."""
        return self.pace.batch if self._is_too_much() else self._max_batch

    def _is_too_much(self) -> bool:
        return self._rate > self.pace.a_second

    def ended(self, size: int, seconds: float) -> None:
        """A batch of `size` took so long."""
        self._service_time.observe(size, seconds)
        self.pace = self._pace()

    def _pace(self) -> Pace:
        """A batch for each worker and one that waits for them, each the largest for which that is in time.

        What that is for 99 of 100 limits what is in hand; what it is on average, what may come.
        """
        service_time = self._service_time
        size = self._largest(lambda size: service_time.within(size, batches=2))
        usual = self._largest(lambda size: 2 * service_time.expected(size))
        seconds = service_time.expected(usual)
        a_second = self._workers * usual / seconds if seconds else math.inf
        return Pace(size, (self._workers + 1) * size, a_second)

    def _largest(self, takes: Callable[[int], float]) -> int:
        """The largest batch that `takes` no more seconds than the target, and the least one if none does."""
        sizes = range(self._least, self._max_batch + 1)  # a larger batch never takes less time
        return sizes[max(bisect_right(sizes, self._target_s, key=takes) - 1, 0)]
