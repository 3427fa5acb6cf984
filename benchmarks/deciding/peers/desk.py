"""The product's engine as every peer but the naive one uses it: same snapshot, model and durable log."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from serve.args import AppArgs
from serve.assemble import open_engine, open_ledger
from serve.desk import Clerk
from serve.problems import Problem
from serve.schemas import DecisionRequest
from serve.slates import Call


class Desk:
    """Takes requests and gives JSON texts."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = AppArgs.model_validate(args)
        self._ledger = open_ledger(self._args)
        self._clerk = Clerk(self._args, open_engine(self._args, self._ledger))
        gc.collect()
        gc.freeze()  # as the product's own processes do

    def decide(self, requests: Sequence[DecisionRequest]) -> list[bytes]:
        """Durable answers; a Problem is raised: with these requests there should be none."""
        now = self._args.now()
        replies = self._clerk.decide([Call.of(request, now) for request in requests])
        for reply in replies:
            if isinstance(reply, Problem):
                raise reply
        return [reply.body for reply in replies if not isinstance(reply, Problem)]

    def close(self) -> None:
        """Give leased money back, and stop every thread."""
        self._clerk.close()
        self._ledger.close()
