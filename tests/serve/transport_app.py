"""A small Serve application for tests of the transport: an ASGI ingress built as ours is, and a callee."""

import asyncio
import os
import threading
from typing import Any

from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve.handle import DeploymentHandle


@serve.deployment(name="Other")
class Other:
    def size(self, blob: bytes) -> tuple[int, bytes]:
        return len(blob), blob

    def fail(self) -> None:
        raise ValueError("users: 'x' is unknown; give one of the snapshot")


@serve.deployment(name="Front")
@serve.ingress()
class Front:
    """Says who asks and what serves; waits as long as it is told."""

    def __init__(self, other: DeploymentHandle) -> None:
        self._other, self._cancelled = other, 0

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = FastAPI()
        api.get("/who")(self.who)
        api.post("/echo")(self.echo)
        api.get("/wait")(self.wait)
        api.get("/busy")(self.busy)
        api.get("/ask/{size}")(self.ask)
        api.get("/ask1")(self.ask_once)
        api.get("/fail")(self.fail)
        return api

    async def who(self, request: Request) -> dict[str, Any]:
        client = request.client.host if request.client else ""
        return {
            "client": client,
            "pid": os.getpid(),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "thread": threading.current_thread().name,
            "main": threading.current_thread() is threading.main_thread(),
            "cancelled": self._cancelled,
        }

    async def echo(self, request: Request) -> Response:
        return Response(await request.body())

    async def wait(self, seconds: float) -> dict[str, int]:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        return {"pid": os.getpid()}

    async def busy(self) -> Response:
        return Response(status_code=503, headers={"Retry-After": "7"}, media_type="application/problem+json")

    async def ask(self, size: int) -> dict[str, int]:
        """Both ways to call another deployment: on the loop, and from a worker thread."""
        on_loop, _ = await self._other.size.remote(bytes(size))
        in_thread, _ = await asyncio.to_thread(lambda: self._other.size.remote(bytes(size)).result())
        return {"on_loop": on_loop, "in_thread": in_thread}

    async def ask_once(self) -> dict[str, int]:
        size, _ = await self._other.size.remote(b"x")
        return {"size": size}

    async def fail(self) -> dict[str, str]:
        try:
            await self._other.fail.remote()
        except Exception as error:
            return {
                "is": type(error).__name__,
                "value_error": str(isinstance(error, ValueError)),
                "said": str(error),
            }
        return {}


def build(args: dict[str, Any]) -> serve.Application:
    """The application; it takes no arguments."""
    return Front.bind(Other.bind())  # type: ignore[attr-defined, no-any-return]
