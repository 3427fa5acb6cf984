"""A run that says nothing of the server is done again, a bounded number of times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.deciding.load import Job, Result
from benchmarks.deciding.rates import REPEATS, Effort, Prober, Stolen, measure
from benchmarks.deciding.recovery import overloads
from benchmarks.deciding.tally import Tally


@pytest.fixture
def jobs() -> list[Job]:
    """Every job that was run."""
    return []


@pytest.fixture
def prober(monkeypatch: pytest.MonkeyPatch, jobs: list[Job]) -> Prober:
    """Its runs are numbered by their most requests in flight; those at 99/s are given up."""
    prober, runs = Prober(1, "/", ["{}"]), itertools.count()

    def once(job: Job) -> Result:
        jobs.append(job)
        return Result([], (99.0, 1.0) not in job.phases, 1.0, 0.1, next(runs))

    monkeypatch.setattr(prober, "_once", once)
    return prober


def shares(monkeypatch: pytest.MonkeyPatch, values: Iterator[float]) -> None:
    monkeypatch.setattr(Stolen, "share", lambda _self: next(values))


def test_what_was_disturbed_is_done_again(prober: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shares(monkeypatch, iter([0.3, 0.05, 0.0, 0.0]))
    assert prober.phases((1.0, 1.0)).most_in_flight == 2
    assert prober.repeated == 2
    assert prober.phases((1.0, 1.0)).most_in_flight == 3
    assert prober.repeated == 2


def test_a_host_that_never_gives_its_time_does_not_hold_it_for_ever(
    prober: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares(monkeypatch, iter([0.3] * 100))
    assert prober.phases((1.0, 1.0)).most_in_flight == REPEATS
    assert prober.phases((1.0, 1.0)).most_in_flight == REPEATS + 1


def test_what_was_given_up_is_waited_for(
    prober: Prober, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares(monkeypatch, iter([0.0] * 10))
    prober.phases((50.0, 1.0))
    assert not prober.phases((99.0, 1.0)).complete
    prober.phases((60.0, 1.0))
    assert [(job.phases, job.connections) for job in jobs] == [
        (((50.0, 1.0),), 1_024), (((99.0, 1.0),), 1_024), ((), 1), (((60.0, 1.0),), 1_024),
    ]  # fmt: skip


def test_the_share_is_of_time_that_passed() -> None:
    watch, busy = Stolen(), sum(range(10_000_000))
    assert busy == 10_000_000 * 9_999_999 // 2
    assert 0.0 <= watch.share() < 1.0


def answered(rate: float, seconds: float, p99_ms: float) -> Tally:
    sent = round(rate * seconds)
    return Tally(rate, seconds, sent, sent, 0, {}, 4.0, p99_ms, p99_ms, None, 0.1, [(0.0, True, p99_ms)])


@pytest.fixture
def rates_held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Rates that were tried before an overload; 80/s and less are held."""
    tried: list[float] = []

    def phases(prober: Prober, *wanted: tuple[float, float], give_up_s: float | None = 1.0) -> Result:
        assert (give_up_s is None) == (len(wanted) > 1), "an overload is carried to its end"
        tried.append(wanted[0][0])
        found = [answered(rate, seconds, 30.0 if rate <= 80.0 else 60.0) for rate, seconds in wanted]
        prober.accepted += sum(phase.accepted for phase in found)
        return Result(found, True, 30.0, 0.1, 5)

    monkeypatch.setattr(Prober, "phases", phases)
    return tried


def test_an_overload_follows_a_rate_that_was_held(rates_held: list[float]) -> None:
    tried = overloads(Prober(1, "/", ["{}"]), 100.0, 10.0, 2)
    assert rates_held == pytest.approx([100.0, 93.0, 86.49, 80.4357, 74.805201, 74.805201])
    assert [one.is_judged for one in tried] == [False] * 4 + [True] * 2
    last = tried[-1]
    assert (last.during.rate, last.after.rate) == (2 * last.before.rate, last.before.rate)
    assert {phase.seconds for one in tried for phase in (one.before, one.during, one.after)} == {10.0}


def test_a_rate_that_is_far_from_held_is_not_lowered_for_ever(rates_held: list[float]) -> None:
    assert not any(one.is_judged for one in overloads(Prober(1, "/", ["{}"]), 1_000.0, 10.0, 2))
    assert len(rates_held) == 8, "0.93 ** 7 of the first rate is the last above 0.6"
    assert overloads(Prober(1, "/", ["{}"]), 1_000.0, 10.0, 0) == []


def test_a_server_that_answers_fewer_when_many_ask_at_once_is_searched_from_what_one_gets(
    rates_held: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(prober: Prober, connections: int, seconds: float) -> Tally:
        tally = answered(30.0 if connections == 1 else 8.0, seconds, 30.0)
        prober.accepted += tally.accepted
        return tally

    monkeypatch.setattr(Prober, "_closed", closed)
    effort = Effort(1.0, 1.0, 4.0, 6, first=0.8, fineness=1.04, confirm_s=20.0)
    found = measure(Prober(1, "/", ["{}"]), effort, "naive", lambda: 0.0)
    assert (found.closed_rps, found.closed_connections, found.idle_p50_ms) == (30.0, 1, 4.0)
    assert rates_held[:4] == pytest.approx([24.0, 30.0, 46.875, 93.75])
    assert 72.0 <= (found.rps or 0.0) <= 80.0
