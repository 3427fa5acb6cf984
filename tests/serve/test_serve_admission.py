"""Who hangs up is no longer worked for; a request that the server itself cancels ends as cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Message, Receive, Scope, Send

from serve.admission import _until_disconnect


class Request:
    """One whose body is there, whose work goes on without end, and whose client may hang up."""

    def __init__(self) -> None:
        self.begun, self.hung_up, self.cancelled = asyncio.Event(), asyncio.Event(), 0
        self._messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        raise AssertionError("nobody is there to be told")


def run(end: Callable[[Request, asyncio.Task[None]], object]) -> tuple[Request, asyncio.Task[None]]:
    """The request, and the task that it ran in, after `end` ended it."""

    async def ended() -> tuple[Request, asyncio.Task[None]]:
        request = Request()
        task = asyncio.create_task(
            _until_disconnect(request.app, {"type": "http"}, request.receive, request.send)
        )
        await request.begun.wait()
        end(request, task)
        await asyncio.wait([task], timeout=10.0)
        return request, task

    return asyncio.run(ended())


def test_who_hangs_up_is_no_longer_worked_for() -> None:
    request, task = run(lambda request, _: request.hung_up.set())
    assert request.cancelled == 1
    assert not task.cancelled()
    assert task.exception() is None


def test_a_request_that_is_cancelled_ends_as_cancelled() -> None:
    request, task = run(lambda _, task: task.cancel())
    assert request.cancelled == 1
    assert task.cancelled()


def test_both_at_once_end_as_cancelled() -> None:
    request, task = run(lambda request, task: (request.hung_up.set(), task.cancel()))
    assert request.cancelled == 1
    assert task.cancelled()
