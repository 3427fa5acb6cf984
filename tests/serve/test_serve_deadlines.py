"""Deadlines go down with a request: to the engine, and to a predictor elsewhere that does not answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from built_cases import Built
from serve_cases import Shop, open_shop

from serve import remote_scorer
from serve.answers import Written
from serve.desk import Clerk
from serve.problems import Problem
from serve.remote_scorer import RemoteScorer
from serve.scoring import NoModelError, ScoredBatch, ScoreRequest
from serve.slates import Call

AT = datetime(2026, 5, 4, 10, 0, tzinfo=UTC)
TIMEOUT_S = 0.05


class Response:
    """As Ray's: waits for a future in the calling thread; notes in `waits` for how long."""

    def __init__(self, future: Future[ScoredBatch], waits: list[float]) -> None:
        self.future, self.waits = future, waits

    def result(self, *, timeout_s: float | None = None) -> ScoredBatch:
        self.waits.append(math.inf if timeout_s is None else timeout_s)
        return self.future.result(timeout_s)

    def cancel(self) -> None:
        self.future.cancel()


class Handle:
    """As Ray's, of a deployment that hangs, unless `work` answers at once."""

    def __init__(self, work: Callable[[Sequence[ScoreRequest]], ScoredBatch] | None = None) -> None:
        self.work, self.calls, self.waits = work, list[Future[ScoredBatch]](), list[float]()

    @property
    def score(self) -> Handle:
        return self

    def remote(self, requests: Sequence[ScoreRequest]) -> Response:
        future: Future[ScoredBatch] = Future()
        self.calls.append(future)
        if self.work is not None:
            future.set_result(self.work(requests))
        return Response(future, self.waits)


def request(left_s: float = 60.0) -> ScoreRequest:
    return ScoreRequest("u", 0, AT, True, time.monotonic() + left_s)


def ask_in_vain(scorer: RemoteScorer, *requests: ScoreRequest) -> None:
    with pytest.raises(TimeoutError):
        scorer.score(requests or [request()])


def wait_of(timeout_s: float, *requests: ScoreRequest) -> float:
    """How long a predictor that hangs is waited for at first."""
    handle = Handle()
    ask_in_vain(RemoteScorer(handle, timeout_s), *requests)
    (asked,) = handle.waits
    return asked


@pytest.fixture
def answer() -> ScoredBatch:
    return ScoredBatch("c", *[None] * 3, None, "m", "", (), ())  # type: ignore[arg-type]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> tuple[Handle, RemoteScorer]:
    """One that did not answer its first call; the rest after that is over."""
    monkeypatch.setattr(remote_scorer, "REST", 0.0)
    handle = Handle()
    scorer = RemoteScorer(handle, TIMEOUT_S)
    ask_in_vain(scorer)
    assert handle.waits == [TIMEOUT_S]
    return handle, scorer


def test_a_predictor_that_hangs_is_waited_for_once(
    silent: tuple[Handle, RemoteScorer], answer: ScoredBatch
) -> None:
    handle, scorer = silent
    for _ in range(20):
        ask_in_vain(scorer)
    assert handle.waits[1:] == [0.0] * 20
    assert len(handle.calls) == 1, "what hangs is not given more and more to do"
    handle.calls[0].set_result(answer)
    handle.work = lambda _: answer
    assert scorer.score([request()]) is answer, "it is back"


def test_a_call_that_is_lost_is_replaced_and_nobody_waits_for_the_next(
    silent: tuple[Handle, RemoteScorer], answer: ScoredBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, scorer = silent
    monkeypatch.setattr(remote_scorer, "RENEW_S", 0.0)
    ask_in_vain(scorer)
    assert [call.cancelled() for call in handle.calls] == [True, False]
    handle.calls[1].set_exception(NoModelError("none yet"))
    ask_in_vain(scorer)
    assert handle.waits[1:] == [0.0, 0.0]
    handle.calls[2].set_result(answer)
    handle.work = lambda _: answer
    assert scorer.score([request()]) is answer


def test_the_wait_is_a_part_of_what_the_most_urgent_request_has_left() -> None:
    assert 0.05 <= wait_of(5.0, request(0.2), request()) <= 0.1
    assert wait_of(5.0, request(-1.0), request()) == remote_scorer.LEAST_S
    assert wait_of(0.01, request(-1.0)) == 0.01


def test_one_that_is_too_slow_is_left_alone_for_longer_than_it_was_waited_for(answer: ScoredBatch) -> None:
    handle = Handle()
    scorer = RemoteScorer(handle, TIMEOUT_S)
    ask_in_vain(scorer)
    handle.calls[0].set_result(answer)
    since = time.monotonic()
    while len(handle.calls) == 1:
        ask_in_vain(scorer)
    assert time.monotonic() - since > 2 * TIMEOUT_S


def test_while_the_predictor_hangs_decisions_are_made_in_time(built: Built, tmp_path: Path) -> None:
    handle = Handle()
    with open_shop(built, tmp_path, RemoteScorer(handle, 1.5)) as shop:
        for _ in range(5):
            answer = shop.decide("u1", deadline_ms=1_000)
            assert answer["degraded"] == ["predictor"]
        assert len(handle.calls) == 1
        handle.calls[0].set_result(shop.predictor.score([request()]))
        handle.work = shop.predictor.score
        deadline = time.monotonic() + 10.0
        while shop.decide("u1")["degraded"]:
            assert time.monotonic() < deadline, "it is not asked again"


def _decisions(shop: Shop) -> int:
    with shop.ledger.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM decisions").scalar_one())


def test_what_comes_to_the_engine_too_late_is_neither_decided_nor_logged(shop: Shop) -> None:
    clerk, now = Clerk(shop.gateway.args, shop.service), time.monotonic()

    def call(deadline: Any) -> Call:
        return Call("u1", "home", shop.gateway.args.now(), None, 1, None, *deadline)

    before = _decisions(shop)
    late, good, always = clerk.decide([call([now - 1.0]), call([now + 60.0]), call([])])
    assert isinstance(late, Problem)
    assert (late.status_code, late.headers) == (503, {"Retry-After": "1"})
    assert isinstance(good, Written)
    assert isinstance(always, Written)
    assert _decisions(shop) == before + 2
    assert [type(reply) for reply in clerk.decide([call([now])])] == [Problem]
