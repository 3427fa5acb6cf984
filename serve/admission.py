"""At the very door: overload is answered before a body is read, and who hangs up is no longer worked for."""

import asyncio
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import problems
from serve.decisions import DecisionService, overloaded
from serve.haproxy import A_SECOND_HEADER, AT_ONCE_HEADER, MOST_A_SECOND


class Admission:
    """ASGI middleware for the `paths` of decisions.

    service_of: gives the service once there is one. Every answer says what can be answered in time, so that
    HAProxy refuses what goes beyond; it keeps that for itself.
    """

    def __init__(
        self, app: ASGIApp, service_of: Callable[[], DecisionService], paths: Collection[str]
    ) -> None:
        self.app, self.service_of, self.paths = app, service_of, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse at once, or pass the request on and cancel it when its client goes away."""
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
            return
        service = self.service_of()

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                pace = service.pace
                message["headers"].append((AT_ONCE_HEADER, b"%d" % pace.at_once))
                message["headers"].append((A_SECOND_HEADER, b"%d" % min(pace.a_second, MOST_A_SECOND)))
            await send(message)

        if service.refuses():
            await problems.response(overloaded())(scope, receive, telling)
        else:
            await _until_disconnect(self.app, scope, receive, telling)


async def _until_disconnect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Runs `app` once the whole body is there; a disconnect after that cancels it."""
    gone: asyncio.Task[Message] | None = None
    hung_up = False

    async def watched() -> Message:
        nonlocal gone
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            gone = asyncio.ensure_future(receive())
            gone.add_done_callback(hang_up)
        return message

    def hang_up(done: asyncio.Future[Message]) -> None:
        nonlocal hung_up
        if not done.cancelled() and done.exception() is None and done.result()["type"] == "http.disconnect":
            hung_up = True
            work.cancel()

    work = asyncio.ensure_future(app(scope, watched, send))
    try:
        await work
    except asyncio.CancelledError:
        ours = asyncio.current_task()
        if not hung_up or (ours is not None and ours.cancelling()):  # it is we who were cancelled
            raise
    finally:
        if gone is not None:
            gone.cancel()
