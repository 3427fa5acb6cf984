"""The product's engine as every peer but the naive one uses it: same snapshot, model and durable log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.answers import Writer
from serve.args import AppArgs
from serve.engine import open_engine
from serve.problems import Problem
from serve.schemas import DecisionRequest
from serve.slates import Call


class Desk:
    """Takes requests as JSON values and gives status, headers and JSON text."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = AppArgs.model_validate(args)
        self._engine = open_engine(self._args)
        self._writer = Writer(self._engine.watcher.catalogue, self._args.currency)

    def decide(self, requests: Sequence[DecisionRequest]) -> list[bytes]:
        """Durable answers, as JSON texts; a Problem is raised: with these requests there should be none."""
        now = self._args.now()
        results = self._engine.decide([Call(request, now) for request in requests])
        return [self._written(result) for result in results]

    def _written(self, result: Any) -> bytes:
        if isinstance(result, Problem):
            raise result
        return self._writer.body(result, self._engine.watcher.state)

    def close(self) -> None:
        self._engine.close()
