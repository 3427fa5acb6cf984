"""What the gate is for: a policy that is worse stays out, one that is clearly better goes live."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from gate_cases import ALONE, GUESSING, gate, play


@dataclass(frozen=True)
class Counted:
    """Over so many seeds: worse policies kept out, better ones let through, mean true improvements."""

    seeds: int
    blocked: int
    passed: int
    loss: float
    gain: float


def count(seeds: range, live: str = ALONE) -> Counted:
    blocked = passed = 0
    losses, gains = [], []
    for seed in seeds:
        played = play(seed, live)
        (worse, loss), (better, gain) = gate(played, -1.0), gate(played, 1.0)
        assert loss < 0 < gain, "by construction"
        blocked, passed = blocked + (not worse.passed), passed + better.passed
        losses.append(loss)
        gains.append(gain)
    return Counted(len(seeds), blocked, passed, float(np.mean(losses)), float(np.mean(gains)))


def test_worse_policies_stay_out_and_better_ones_go_live() -> None:
    found = count(range(1_000, 1_004))
    assert found.blocked == 4
    assert found.passed >= 3


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("live", [ALONE, GUESSING])
def test_in_a_hundred_markets(live: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = count(range(100), live)
    with capsys.disabled():
        print(f"\nthe live policy {live}: {found}")
    assert found.blocked >= 95
    assert found.passed >= 80
