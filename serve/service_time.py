"""How long a batch takes, learned from those that ended: the ground to refuse what would be too late."""

from __future__ import annotations

MEMORY = 50.0  # batches; long enough to average single stalls, short enough to follow a change of load
# Until batches of different sizes were seen, the share of a batch's time that grows with its size: between "a
# large one is free" and "in proportion". Weight, in items²: the variance of sizes must be more to count more.
GUESS, GUESS_WEIGHT = 0.5, 1.0


class ServiceTime:
    """Seconds of a batch as `fixed + each × size`, by least squares that forgets exponentially.

    memory: batches after which an observation counts 1/e of a new one. Both terms are kept from falling below
    zero, so a larger batch is never expected to take less time, nor more than in proportion.
    """

    def __init__(self, memory: float = MEMORY) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._n = self._size = self._seconds = self._squares = self._product = 0.0

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` took so long."""
        keep = self._keep
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
