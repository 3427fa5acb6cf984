"""What the gate is for: worse policies stay out, clearly better ones go live."""

from __future__ import annotations

import numpy as np
import pytest
from gate_cases import gate, play


def counts(seeds: range) -> tuple[int, int, np.ndarray]:
    """Of so many seeds: worse policies blocked, better ones let through, and true improvements `[2, seeds]`."""
    blocked = passed = 0
    truths = []
    for seed in seeds:
        played = play(seed)
        worse, loss = gate(played, -1.0)
        better, gain = gate(played, 1.0)
        assert loss < 0 < gain, "by construction"
        blocked += not worse.passed
        passed += better.passed
        truths.append((loss, gain))
        play.cache_clear()
    return blocked, passed, np.array(truths).T


def test_worse_policies_stay_out_and_better_ones_go_live() -> None:
    blocked, passed, _ = counts(range(10))
    assert blocked == 10
    assert passed >= 7


@pytest.mark.slow
def test_in_a_hundred_markets(record_property: pytest.RecordProperty if False else object) -> None:  # type: ignore[valid-type]
    blocked, passed, truths = counts(range(100))
    print(blocked, passed, truths.mean(axis=1))
