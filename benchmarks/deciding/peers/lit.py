"""LitServe: its own batching before the product's engine, in one worker process."""

import json
from typing import Any

import litserve
from fastapi import Request

from benchmarks.deciding.peers.command import read_command
from serve.schemas import DecisionRequest

MAX_BATCH = 32


class DecisionApi(litserve.LitAPI):
    """Decodes, decides a batch, encodes."""

    def __init__(self, args: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self._args = args

    def setup(self, device: str) -> None:
        """In the worker process: everything that holds threads or connections."""
        from benchmarks.deciding.peers.desk import Desk

        self._desk = Desk(self._args)

    def decode_request(self, request: Request, **_: Any) -> DecisionRequest:
        """One request; LitServe takes `Request` as a sign to give the body's JSON."""
        return DecisionRequest.model_validate(request)

    def batch(self, inputs: list[DecisionRequest]) -> list[DecisionRequest]:
        """A batch is a list."""
        return list(inputs)

    def predict(self, batch: list[DecisionRequest], **_: Any) -> list[bytes]:
        """Durable answers."""
        return self._desk.decide(batch)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """A batch is a list."""
        return list(output)

    def encode_response(self, output: bytes, **_: Any) -> Any:
        """One answer."""
        return json.loads(output)


def main() -> None:
    """Serve until ended."""
    command = read_command()
    api = DecisionApi(
        command.args,
        api_path="/v1/decisions",
        max_batch_size=MAX_BATCH,
        batch_timeout=float(command.options["batch_timeout_s"]),
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, fast_queue=True, healthcheck_path="/healthz"
    )
    server.run(
        host="127.0.0.1",
        port=command.port,
        generate_client_file=False,
        num_api_servers=1,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
