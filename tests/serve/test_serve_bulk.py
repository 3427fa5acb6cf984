"""Bulk requests: bounded in number and in time, and single ones pass them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
from serve_cases import Shop

from serve.answers import Written
from serve.args import AppArgs
from serve.bulk import MOST_WAITING
from serve.decisions import DecisionService
from serve.desk import Clerk, Reply, ThreadDesk
from serve.problems import Problem
from serve.schemas import DecisionRequest
from serve.slates import Call

MAX_BATCH = 4


class Slow(Clerk):
    """Answers a batch with the users' names, some time later or when the gate opens; remembers batches."""

    def __init__(self) -> None:
        self.batches, self.gate, self.takes_s = list[list[str]](), threading.Event(), 0.0
        self.gate.set()

    def decide(self, calls: Sequence[Call]) -> list[Reply]:
        self.batches.append([call.user_id for call in calls])
        time.sleep(self.takes_s)
        assert self.gate.wait(10.0)
        return [Written(call.user_id.encode(), False, ()) for call in calls]

    def close(self) -> None: ...


class Door:
    """Decisions over a slow desk with one worker."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        self.clerk = Slow()
        self.desk = ThreadDesk(self.clerk, 1)
        args = AppArgs.model_validate(
            {"workspace": ".", "request_timeout_s": timeout_s, "batching": {"max_batch": MAX_BATCH}}
        )
        self._service = DecisionService(self.desk, cast("Any", None), args)

    async def single(self, user: str) -> Written:
        return await self._service.decide(DecisionRequest(user_id=user, surface="home"))

    def bulk(self, name: str, size: int, **given: Any) -> asyncio.Task[list[Reply]]:
        bodies = [DecisionRequest(user_id=f"{name}{n}", surface="email", **given) for n in range(size)]
        return asyncio.create_task(self._service.decide_all(bodies))

    def bodies(self, replies: Sequence[Reply]) -> list[str | int]:
        """What each was told, or the status of its problem."""
        return [r.status_code if isinstance(r, Problem) else r.body.decode() for r in replies]


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door()
    yield made
    made.clerk.gate.set()
    made.desk.close()


async def begun(door: Door, batches: int) -> None:
    while len(door.clerk.batches) < batches:
        await asyncio.sleep(0.005)


def test_a_single_request_waits_for_one_bulk_batch_at_most(door: Door) -> None:
    door.clerk.takes_s = 0.02

    async def run() -> None:
        tasks = [door.bulk(f"bulk{n}-", 4 * MAX_BATCH) for n in range(1 + MOST_WAITING)]
        await begun(door, 2)
        for n in range(4):
            before = len(door.clerk.batches)
            assert (await door.single(f"single{n}")).body == f"single{n}".encode()
            assert [f"single{n}"] in door.clerk.batches[before : before + 2], "another batch came before it"
        for n, replies in enumerate(await asyncio.gather(*tasks)):
            assert door.bodies(replies) == [f"bulk{n}-{place}" for place in range(4 * MAX_BATCH)]

    asyncio.run(run())


def test_more_bulk_requests_than_can_wait_are_refused_at_once(door: Door) -> None:
    door.clerk.gate.clear()

    async def run() -> None:
        first = door.bulk("first", MAX_BATCH)
        await begun(door, 1)
        waiting = [door.bulk(f"waits{n}-", 1) for n in range(MOST_WAITING)]
        with pytest.raises(Problem, match="503") as refused:
            await door.bulk("refused", 1)
        assert refused.value.detail == "decision: too many bulk requests wait; try again"
        assert refused.value.headers == {"Retry-After": "1"}
        assert not first.done()
        door.clerk.gate.set()
        assert all(door.bodies(replies)[0] for replies in await asyncio.gather(first, *waiting))
        assert len(await door.bulk("again", 3)) == 3

    asyncio.run(run())


def test_what_has_not_begun_at_its_deadline_is_not_decided(door: Door) -> None:
    door.clerk.gate.clear()

    async def run() -> None:
        task = door.bulk("u", 2 * MAX_BATCH, deadline_ms=50)
        await asyncio.sleep(0.1)
        door.clerk.gate.set()
        assert door.bodies(await task) == [f"u{n}" for n in range(MAX_BATCH)] + [503] * MAX_BATCH
        assert len(door.clerk.batches) == 1

    asyncio.run(run())


def test_while_the_engine_hangs_bulk_requests_are_answered_in_time_and_wait_for_its_batch() -> None:
    door = Door(timeout_s=0.1)
    door.clerk.gate.clear()

    async def run() -> None:
        for name in ("hangs", "waits"):
            with pytest.raises(Problem, match="503") as late:
                await door.bulk(name, 2 * MAX_BATCH)
            assert late.value.detail == "decision: no answer in time; try again"
            assert late.value.headers == {"Retry-After": "1"}
        assert door.clerk.batches == [[f"hangs{n}" for n in range(MAX_BATCH)]], "one batch at a time"
        door.clerk.gate.set()
        assert door.bodies(await door.bulk("after", 1)) == ["after0"]
        assert door.clerk.batches[1:] == [["after0"]], "what nobody waits for is not decided"

    asyncio.run(run())
    door.desk.close()


def test_for_who_hung_up_only_the_batch_under_way_is_finished(door: Door) -> None:
    door.clerk.gate.clear()

    async def run() -> None:
        task = door.bulk("gone", 3 * MAX_BATCH)
        await begun(door, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        door.clerk.gate.set()
        await door.bulk("after", 1)

    asyncio.run(run())
    assert [batch[0] for batch in door.clerk.batches] == ["gone0", "after0"]


def test_each_entry_has_its_own_deadline(shared_shop: Shop) -> None:
    entries = [{"user_id": f"u{n}", "surface": "email"} for n in range(3)]
    entries[1]["deadline_ms"] = 0.001  # type: ignore[assignment]
    response = shared_shop.post("/v1/decisions:batch", {"requests": entries})
    one, late, two = response.json()["decisions"]
    assert (response.status_code, late["status"]) == (200, 503)
    assert all(shared_shop.log(answer["decision_id"]) for answer in (one, two))


def test_answers_stand_in_the_order_of_their_requests(shared_shop: Shop) -> None:
    bodies = {"requests": [{"user_id": f"u{n % 150}", "surface": "email", "n": 1 + n % 2} for n in range(60)]}
    answer = shared_shop.post("/v1/decisions:batch", bodies).json()["decisions"]
    assert len(answer) == 60
    rows = [shared_shop.log(one["decision_id"]).decision for one in answer]
    assert [row.pseudonym for row in rows] == shared_shop.ledger.pseudonyms(
        [r["user_id"] for r in bodies["requests"]]
    )
    assert all(
        one["actions"][0]["propensity"] == row.propensity for one, row in zip(answer, rows, strict=True)
    )
