"""The product's engine as every peer but the naive one uses it: same snapshot, model and durable log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve.answers import Writer
from serve.args import AppArgs
from serve.assemble import open_engine, open_ledger
from serve.problems import Problem
from serve.schemas import DecisionRequest
from serve.slates import Call


class Desk:
    """Takes requests as JSON values and gives status, headers and JSON text."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = AppArgs.model_validate(args)
        self._ledger = open_ledger(self._args)
        self._service = open_engine(self._args, self._ledger)
        self._writer = Writer(self._service.watcher.catalogue, self._args.currency)

    def decide(self, requests: Sequence[DecisionRequest]) -> list[bytes]:
        """Durable answers, as JSON texts; a Problem is raised: with these requests there should be none."""
        now = self._args.now()
        results = self._service.engine.decide([Call(request, now) for request in requests])
        return [self._written(result) for result in results]

    def _written(self, result: Any) -> bytes:
        if isinstance(result, Problem):
            raise result
        return self._writer.body(result, self._service.watcher.state)

    def close(self) -> None:
        """Give leased money back, and stop every thread."""
        self._service.close()
        self._ledger.close()
