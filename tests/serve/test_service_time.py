"""What is learned of how long batches take: size, spread, stalls, and a machine whose speed changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.service_time import MEMORY_BATCHES, MEMORY_S, ServiceTime


def test_nothing_is_expected_of_what_is_not_known() -> None:
    unknown = ServiceTime()
    assert (unknown.expected(8), unknown.within(8, batches=2)) == (0.0, 0.0)


@given(
    fixed_ms=st.floats(1, 10),
    each_ms=st.floats(0.2, 2),
    spread=st.floats(0.02, 0.3),
    batches=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_ninety_nine_of_a_hundred_end_within_what_is_told(
    fixed_ms: float, each_ms: float, spread: float, batches: int, seed: int
) -> None:
    random, learned = np.random.default_rng(seed), ServiceTime()

    def takes(size: int) -> float:
        # Not below a third: the spread is that of a normal distribution, the time is not negative.
        return (fixed_ms + each_ms * size) / 1e3 * max(random.normal(1.0, spread), 0.3)

    for size in random.integers(1, 33, 500):
        learned.observe(int(size), takes(int(size)))
    told = learned.within(16, batches)
    share = np.mean([sum(takes(16) for _ in range(batches)) <= told for _ in range(1_000)])
    assert share >= 0.95, "at least, since what is learned from some tens of batches is not exact"
    assert told <= 1.3 * batches * (fixed_ms + each_ms * 16) / 1e3 * (1 + 2.6 * spread)


@pytest.mark.parametrize("size", [2, 8])
def test_one_stall_changes_little(size: int) -> None:
    learned = ServiceTime()
    for number in range(400):
        learned.observe(1 + number % 6, 0.004 + 0.0005 * (1 + number % 6))
    before, sure = learned.expected(32), learned.within(32, batches=2)
    learned.observe(size, 0.5)
    assert learned.expected(32) == pytest.approx(before, rel=0.1)
    assert learned.within(32, batches=2) <= 1.5 * sure


@pytest.mark.parametrize("times", [0.25, 4.0])
def test_a_machine_that_changes_is_known_within_some_seconds_of_work(times: float) -> None:
    learned = ServiceTime()
    for _ in range(1_000):
        learned.observe(16, 0.012)
    for _ in range(int(4 * max(MEMORY_S / (times * 0.012), MEMORY_BATCHES))):
        learned.observe(16, times * 0.012)
    assert learned.expected(16) == pytest.approx(times * 0.012, rel=0.15)
