"""At the very door: overload is answered before a body is read, and who hangs up is no longer worked for."""

import asyncio
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import problems
from serve.decisions import overloaded


class Admission:
    """ASGI middleware for the `paths` of decisions.

    refuses: whether a further request is refused; it is if this says so.
    """

    def __init__(self, app: ASGIApp, refuses: Callable[[], bool], paths: Collection[str]) -> None:
        self.app, self.refuses, self.paths = app, refuses, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse at once, or pass the request on and cancel it when its client goes away."""
        if scope["type"] != "http" or scope["path"] not in self.paths:
            await self.app(scope, receive, send)
        elif self.refuses():
            await problems.response(overloaded())(scope, receive, send)
        else:
            await _until_disconnect(self.app, scope, receive, send)


async def _until_disconnect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Runs `app` once the whole body is there; a disconnect after that cancels it."""
    gone: asyncio.Task[Message] | None = None

    async def watched() -> Message:
        nonlocal gone
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            gone = asyncio.ensure_future(receive())
            gone.add_done_callback(hang_up)
        return message

    def hang_up(done: asyncio.Future[Message]) -> None:
        if not done.cancelled() and done.exception() is None and done.result()["type"] == "http.disconnect":
            work.cancel()

    work = asyncio.ensure_future(app(scope, watched, send))
    try:
        await work
    except asyncio.CancelledError:
        if not work.done():  # it is we who were cancelled, not the work
            work.cancel()
            raise
    finally:
        if gone is not None:
            gone.cancel()
