"""How many requests a replica may have in hand: all that can wait, or in overload those it answers in time.

The idea is that of "controlled delay": K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue
10(5), 2012.
"""

from __future__ import annotations

import math

from serve.service_time import ServiceTime

# Most answers were late for so long: overload. A stall (a checkpoint of a file, a collection of garbage) is
# shorter and drains by itself, so nobody is refused for it.
LATE_S = 0.15
# In overload batches are no smaller than this share of the largest, however late that makes them. Most of a
# small batch's time is fixed, so batches that shrink further help hardly anybody, and leave most of a slowed
# machine's capacity unused.
LEAST_SHARE = 0.125
# Overload is over when for so long less than this share of the limit was in hand: it would come back at once
# where about as much comes as can be done.
END_S, FULL = 1.0, 0.8


class InHandLimit:
    """Most requests in hand, waiting ones and those worked on.

    most: outside of overload. max_batch: most requests of a batch; workers: batches at a time. target_s:
    longest time from arrival to answer that is in time.
    """

    def __init__(self, *, most: int, max_batch: int, workers: int, target_s: float) -> None:
        self._most, self._max_batch, self._workers, self._target_s = most, max_batch, workers, target_s
        self._least = max(math.ceil(LEAST_SHARE * max_batch), 1)
        self._service_time = ServiceTime()
        self._late_since, self._more_late = math.inf, 0
        self._full_at = -math.inf
        self._overload_batch: int | None = None

    @property
    def overloaded(self) -> bool:
        """Whether answers were late for longer than a stall lasts, and more still comes than can be done."""
        return self._overload_batch is not None

    @property
    def batch(self) -> int:
        """Most requests of the next batch."""
        return self._overload_batch or self._max_batch

    @property
    def value(self) -> int:
        """The limit now: in overload a batch for each worker, and one that waits for them."""
        return self._most if self._overload_batch is None else (self._workers + 1) * self._overload_batch

    def admits(self, waiting: int, working: int, waited_s: float, now: float) -> bool:
        """Whether one more is taken beside `waiting`, the first of them for `waited_s`, and `working`."""
        if late := waited_s > self._target_s:
            self._late(now)
        if not self.overloaded:
            return True
        if waiting + working >= FULL * self.value:
            self._full_at = now
        elif now - self._full_at > END_S:
            self._end()
            return True
        return waiting < self.batch and not late

    def ended(self, size: int, seconds: float, slowest_s: float, now: float) -> None:
        """A batch took `seconds`, and the slowest of its answers `slowest_s` from arrival."""
        self._service_time.observe(size, seconds)
        late = slowest_s > self._target_s
        self._more_late = max(self._more_late + (size if late else -size), 0)
        if late:
            self._late(now)
        elif self._more_late == 0:
            self._late_since = math.inf
        if self.overloaded:
            self._overload_batch = self._in_time()

    def _late(self, now: float) -> None:
        self._late_since = min(self._late_since, now)
        if not self.overloaded and now - self._late_since > LATE_S:
            self._overload_batch, self._full_at = self._in_time(), now

    def _end(self) -> None:
        self._overload_batch, self._late_since, self._more_late = None, math.inf, 0

    def _in_time(self) -> int:
        """The largest batch that may wait for another and is still answered in time."""
        size = self._max_batch
        while size > self._least and 2 * self._service_time.expected(size) > self._target_s:
            size -= 1
        return size
