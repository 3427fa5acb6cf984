"""Simulated users ask again where that helps, and say what was answered where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import pytest
from aiohttp import web

from qiance.cli.loop.live import RETRIES, ServiceError, post

BUSY = (503, {"Retry-After": "0"})
OK = (200, {})


def asked(answers: Sequence[tuple[int, dict[str, str]] | None]) -> tuple[object, int, int]:
    """Answer, retries, and how many requests came to a service that answers so; None hangs up."""
    came: list[object] = []

    async def answer(request: web.Request) -> web.Response:
        came.append(await request.json())
        said = answers[min(len(came), len(answers)) - 1]
        if said is None:
            request.transport.abort()
            return web.Response()
        status, headers = said
        return web.json_response({"n": len(came)}, status=status, headers=headers)

    async def run() -> tuple[object, int, int]:
        app = web.Application()
        app.router.add_post("/v1/decisions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            async with aiohttp.ClientSession(f"http://{host}:{port}") as client:
                found, retries = await post(client, "/v1/decisions", {"user_id": "u"})
            assert all(body == {"user_id": "u"} for body in came)
            return found, retries, len(came)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize("trouble", [[], [BUSY], [(429, {"Retry-After": "0"})], [None], [BUSY, None, BUSY]])
def test_it_is_asked_again_until_it_answers(trouble: list[tuple[int, dict[str, str]] | None]) -> None:
    n = len(trouble)
    assert asked([*trouble, OK]) == ({"n": n + 1}, n, n + 1)


def test_what_stays_busy_is_an_error_with_what_was_said() -> None:
    with pytest.raises(ServiceError, match=rf"/v1/decisions: 503 .*{RETRIES + 1}"):
        asked([BUSY])


def test_a_broken_connection_that_stays_broken_is_an_error() -> None:
    with pytest.raises(ServiceError, match="/v1/decisions: ServerDisconnectedError"):
        asked([None])


def test_what_is_wrong_is_not_asked_again() -> None:
    with pytest.raises(ServiceError, match=r"/v1/decisions: 422 .*1"):
        asked([(422, {}), OK])
