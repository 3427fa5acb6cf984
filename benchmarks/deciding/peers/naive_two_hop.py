"""Two deployments under Serve's defaults: a handle call per request to a predictor with `@serve.batch`.

The predictor is the product's engine, so snapshot, model and durable log are ours; what differs is how
requests get there.
"""

import asyncio
from typing import Any

from benchmarks.deciding.peers.command import default_ray, read_command, wait_for_end
from serve.schemas import DecisionRequest

MAX_BATCH = 32


def application(args: dict[str, Any]) -> Any:
    """Ingress → predictor."""
    from fastapi import FastAPI, Response
    from ray import serve

    from benchmarks.deciding.peers.desk import Desk

    api = FastAPI()

    @serve.deployment(name="Predictor")
    class Predictor:
        def __init__(self) -> None:
            self._desk = Desk(args)

        @serve.batch(max_batch_size=MAX_BATCH)
        async def decide(self, bodies: list[DecisionRequest]) -> list[bytes]:
            return await asyncio.to_thread(self._desk.decide, bodies)

    @serve.deployment(name="Ingress")
    @serve.ingress(api)
    class Ingress:
        def __init__(self, predictor: Any) -> None:
            self._predictor = predictor

        @api.post("/v1/decisions")
        async def decide(self, body: DecisionRequest) -> Response:
            return Response(await self._predictor.decide.remote(body), media_type="application/json")

        @api.get("/healthz")
        async def health(self) -> dict[str, str]:
            return {"status": "ready"}

    return Ingress.bind(Predictor.bind())  # type: ignore[attr-defined]  # deployments by their decorators


def main() -> None:
    """Serve until ended."""
    command = read_command()
    with default_ray(command.port):
        from ray import serve

        serve.run(application(command.args), route_prefix="/")
        wait_for_end()


if __name__ == "__main__":
    main()
