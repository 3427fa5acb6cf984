"""BentoML: its adaptive batching before the product's engine, in one worker process."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import bentoml

JOB = "QIANCE_BENCH_JOB"
MAX_BATCH = 32


@bentoml.service(name="decisions", workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}})
class Decisions:
    """Decides batches."""

    def __init__(self) -> None:
        from benchmarks.deciding.peers.desk import Desk

        self._desk = Desk(json.loads(Path(os.environ[JOB]).read_text())["args"])

    @bentoml.api(route="/v1/decisions", batchable=True, max_batch_size=MAX_BATCH)
    def decide(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Durable answers; BentoML's batched calls take and give lists."""
        from serve.schemas import DecisionRequest

        found = self._desk.decide([DecisionRequest.model_validate(request) for request in requests])
        return [json.loads(answer) for answer in found]


def main() -> None:
    """Become BentoML's own server."""
    from benchmarks.deciding.peers.command import parse_command

    found = parse_command()
    os.environ |= {JOB: str(found.job), "BENTOML_HOME": str(found.job.parent), "BENTOML_DO_NOT_TRACK": "True"}
    service = "benchmarks.deciding.peers.bento:Decisions"
    words = ["serve", service, "--host", "127.0.0.1", "--port", str(found.port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *words])


if __name__ == "__main__":
    main()
