"""One uvicorn process with FastAPI and no Ray: the product's engine, one request at a time per thread."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, Response

from benchmarks.deciding.peers.command import read_command
from benchmarks.deciding.peers.desk import Desk
from serve.schemas import DecisionRequest


def application(desk: Desk, threads: int) -> FastAPI:
    """Decisions and health."""
    api, pool = FastAPI(), ThreadPoolExecutor(threads)

    def decide_one(body: DecisionRequest) -> bytes:
        return desk.decide([body])[0]

    @api.post("/v1/decisions")
    async def decide(body: DecisionRequest) -> Response:
        answer = await asyncio.get_running_loop().run_in_executor(pool, decide_one, body)
        return Response(answer, media_type="application/json")

    @api.get("/healthz")
    async def health() -> dict[str, Any]:
        return {"status": "ready"}

    return api


def main() -> None:
    """Serve until ended."""
    command = read_command()
    desk = Desk(command.args)
    api = application(desk, int(command.options["threads"]))
    try:
        uvicorn.run(api, host="127.0.0.1", port=command.port, log_level="warning", access_log=False)
    finally:
        desk.close()


if __name__ == "__main__":
    main()
