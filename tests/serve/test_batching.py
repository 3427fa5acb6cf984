"""Requests are batched by the load alone, refused when too many wait, and left when nobody waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from serve.batching import DeadlinePassedError, MicroBatcher, OverloadedError


class Work:
    """Doubles numbers, while the gate is open; remembers the batches."""

    def __init__(self) -> None:
        self.gate, self.batches = threading.Event(), list[list[int]]()
        self.gate.set()
        self.fail = False

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.gate.wait(10.0)
        if self.fail:
            raise ConnectionError("the disk is gone")
        return [2 * item for item in items]


def batcher(work: Callable[[Sequence[int]], Sequence[int]], **limits: Any) -> MicroBatcher[int, int]:
    given = {"max_batch": 4, "max_waiting": 6, "max_wait_s": 10.0, "workers": 1, **limits}

    async def in_a_thread(items: Sequence[int]) -> Sequence[int]:
        return await asyncio.to_thread(work, items)

    return MicroBatcher(in_a_thread, **given)


async def submit(to: MicroBatcher[int, int], count: int, timeout_s: float = 5.0) -> list[asyncio.Task[int]]:
    """`count` requests in order, each having arrived when this returns."""
    tasks = [asyncio.create_task(to.submit(n, timeout_s)) for n in range(count)]
    await asyncio.sleep(0.05)
    return tasks


def test_who_comes_alone_is_answered_alone_and_who_comes_together_together() -> None:
    work = Work()

    async def run() -> list[int]:
        service = batcher(work)
        assert await service.submit(7, 1.0) == 14
        work.gate.clear()
        tasks = await submit(service, 6)
        work.gate.set()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10]
    assert work.batches == [[7], [0], [1, 2, 3, 4], [5]]


def test_one_batch_is_worked_on_while_another_is_written() -> None:
    work = Work()

    async def run() -> None:
        service = batcher(work, workers=2)
        work.gate.clear()
        tasks = await submit(service, 5)
        assert work.batches == [[0], [1]]
        work.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert work.batches[2:] == [[2, 3, 4]]


def test_more_than_can_wait_are_refused_at_once() -> None:
    work = Work()

    async def run() -> list[Any]:
        service = batcher(work, max_waiting=3)
        work.gate.clear()
        tasks = await submit(service, 6)
        assert service.is_full
        assert [task.done() for task in tasks] == [False] * 4 + [True] * 2, "refused while the others wait"
        work.gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert not service.is_full
        return [*found, await service.submit(9, 1.0)]

    found = asyncio.run(run())
    assert found[:4] == [0, 2, 4, 6]
    assert all(isinstance(error, OverloadedError) for error in found[4:6])
    assert found[6] == 18


def test_while_one_waits_too_long_no_more_are_taken() -> None:
    work, now = Work(), [0.0]

    async def run() -> None:
        service = batcher(work, max_wait_s=1.0, clock=lambda: now[0])
        work.gate.clear()
        tasks = await submit(service, 2)
        now[0] = 0.9
        assert not service.is_full
        now[0] = 1.1
        assert service.is_full
        work.gate.set()
        await asyncio.gather(*tasks)
        assert not service.is_full

    asyncio.run(run())


def test_a_deadline_ends_the_wait_and_the_work() -> None:
    work = Work()

    async def run() -> list[Any]:
        service = batcher(work)
        work.gate.clear()
        first = await submit(service, 1)
        late = await submit(service, 2, timeout_s=0.02)
        assert all(isinstance(task.exception(), DeadlinePassedError) for task in late)
        work.gate.set()
        return list(await asyncio.gather(*first))

    assert asyncio.run(run()) == [0]
    assert work.batches == [[0]], "what nobody waits for is not begun"


def test_who_goes_away_is_left_out() -> None:
    work = Work()

    async def run() -> list[Any]:
        service = batcher(work)
        work.gate.clear()
        tasks = await submit(service, 4)
        tasks[2].cancel()
        tasks[0].cancel()  # it is being worked on: that goes on, to nobody
        work.gate.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    found = asyncio.run(run())
    assert [found[1], found[3]] == [2, 6]
    assert all(isinstance(found[n], asyncio.CancelledError) for n in (0, 2))
    assert work.batches == [[0], [1, 3]]


def test_a_failure_is_told_to_all_of_its_batch_and_to_no_other() -> None:
    work = Work()

    async def run() -> None:
        service = batcher(work)
        work.fail = True
        with pytest.raises(ConnectionError, match="the disk is gone"):
            await service.submit(1, 1.0)
        work.fail = False
        assert await service.submit(1, 1.0) == 2

    asyncio.run(run())
