"""How long a batch takes, and how surely, by those that ended: the ground to refuse what would be late."""

from __future__ import annotations

import math

# What is remembered: so many seconds of work, and so many batches at least. Long enough to outweigh a stall,
# also where batches are small and many of them fall into it; short enough to follow a machine's speed.
MEMORY_S, MEMORY_BATCHES = 1.0, 50.0
# Until batches of different sizes were seen, the share of a batch's time that grows with its size: between "a
# large one is free" and "in proportion". Weight, in items²: the variance of sizes must be more to count more.
GUESS, GUESS_WEIGHT = 0.5, 1.0
# A batch that takes more than twice as long as expected is a stall, and counts as twice as long: one of them
# must not make every batch of the next second look slow and unsure. A machine that slowed down is known all
# the same, within some tens of batches.
MOST_OFF = 1.0
NORMAL_99 = 2.326  # standard deviations above the mean that 99 of 100 normal values do not exceed


class ServiceTime:
    """Seconds of a batch as `fixed + each × size`, by least squares that forgets exponentially.

    Both terms are kept from falling below zero, so a larger batch is never expected to take less time, nor
    more than in proportion. The spread around that is learned as a share of it, and forgotten as fast.
    """

    def __init__(self) -> None:
        self._n = self._size = self._seconds = self._squares = self._product = self._off = 0.0

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` took so long."""
        off = 0.0
        if expected := self.expected(size):
            off = min(seconds / expected - 1.0, MOST_OFF)
            seconds = expected * (1.0 + off)
        keep = max(math.exp(-seconds / MEMORY_S), 1.0 - 1.0 / MEMORY_BATCHES)
        self._off = keep * self._off + off * off
        self._n = keep * self._n + 1.0
        self._size = keep * self._size + size
        self._seconds = keep * self._seconds + seconds
        self._squares = keep * self._squares + size * size
        self._product = keep * self._product + size * seconds

    def expected(self, size: int) -> float:
        """Seconds that a batch of `size` will take; 0 while nothing is known."""
        if not self._n:
            return 0.0
        mean_size, mean_seconds = self._size / self._n, self._seconds / self._n
        spread = self._squares / self._n - mean_size**2
        together = self._product / self._n - mean_size * mean_seconds
        most = mean_seconds / mean_size
        each = (together + GUESS_WEIGHT * GUESS * most) / (max(spread, 0.0) + GUESS_WEIGHT)
        each = min(max(each, 0.0), most)
        return mean_seconds + each * (size - mean_size)

    def within(self, size: int, batches: int) -> float:
        """Seconds in which 99 of 100 times so many batches of `size`, one after the other, have ended."""
        if not self._n:
            return 0.0
        spread = math.sqrt(self._off / self._n / batches)
        return batches * self.expected(size) * (1.0 + NORMAL_99 * spread)
