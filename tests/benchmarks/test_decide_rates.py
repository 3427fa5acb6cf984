"""A run during which the host took time away is done again, a bounded number of times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.deciding.rates import REPEATS, Prober, Stolen


@pytest.fixture
def prober(monkeypatch: pytest.MonkeyPatch) -> Prober:
    prober, runs = Prober(1, "/", ["{}"]), iter(range(1_000))
    monkeypatch.setattr(prober, "_once", lambda _job: next(runs))
    return prober


def shares(monkeypatch: pytest.MonkeyPatch, values: Iterator[float]) -> None:
    monkeypatch.setattr(Stolen, "share", lambda _self: next(values))


def test_what_was_disturbed_is_done_again(prober: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shares(monkeypatch, iter([0.3, 0.05, 0.0, 0.0]))
    assert prober.phases((1.0, 1.0)) == 2
    assert prober.repeated == 2
    assert prober.phases((1.0, 1.0)) == 3
    assert prober.repeated == 2


def test_a_host_that_never_gives_its_time_does_not_hold_it_for_ever(
    prober: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares(monkeypatch, iter([0.3] * 100))
    assert prober.phases((1.0, 1.0)) == REPEATS
    assert prober.phases((1.0, 1.0)) == REPEATS + 1


def test_the_share_is_of_time_that_passed() -> None:
    watch, busy = Stolen(), sum(range(10_000_000))
    assert busy == 10_000_000 * 9_999_999 // 2
    assert 0.0 <= watch.share() < 1.0
