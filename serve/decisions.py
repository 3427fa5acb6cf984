"""Decisions at the door: what is wrong with a request is said here, the rest is batched for the engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from serve.answers import Written
from serve.args import AppArgs
from serve.batching import DeadlinePassedError, MicroBatcher, OverloadedError
from serve.bulk import BulkLane
from serve.desk import RETRY_AFTER_S, Desk, DeskLostError, Reply
from serve.limit import Pace
from serve.live import Watcher
from serve.problems import Problem, invalid
from serve.schemas import DecisionRequest, within_reach
from serve.slates import Call


class DecisionService:
    """Checks requests and lets them wait for the desk, within bounds."""

    def __init__(self, desk: Desk, watcher: Watcher, args: AppArgs) -> None:
        self._desk, self._watcher, self._args = desk, watcher, args
        limits = args.batching
        self._batcher: MicroBatcher[Call, Reply] = MicroBatcher(
            desk.decide,
            max_batch=limits.max_batch,
            max_waiting=limits.max_waiting,
            target_s=limits.target_ms / 1_000.0,
            workers=limits.workers,
        )
        self._bulk = BulkLane(desk.decide, limits.max_batch)

    def refuses(self) -> bool:
        """Whether a request that comes is refused: known before its body is read; ask once for each."""
        return self._batcher.refuses()

    @property
    def pace(self) -> Pace:
        """What can be answered in time."""
        return self._batcher.pace

    async def decide(self, request: DecisionRequest) -> Written:
        """The answer to `request`; raises Problem for what the client must mend, or ask again."""
        timeout_s = self._timeout_s(request)
        call = self._call(request, time.monotonic() + timeout_s)
        try:
            result = await self._batcher.submit(call, timeout_s)
        except OverloadedError:
            raise overloaded() from None
        except DeadlinePassedError as error:
            raise overdue(error) from None
        except DeskLostError as error:
            raise lost(error) from None
        if isinstance(result, Problem):
            raise result
        return result

    async def decide_all(self, requests: Sequence[DecisionRequest]) -> list[Reply]:
        """Answers for many users, past the queue of single requests; see `BulkLane`. Raises Problem."""
        now = time.monotonic()
        calls = [
            self._call(request, now + self._timeout_s(request), f"requests.{n}.")
            for n, request in enumerate(requests)
        ]
        try:
            return await self._bulk.decide(calls, self._args.request_timeout_s)
        except OverloadedError:
            raise overloaded("bulk requests") from None
        except DeadlinePassedError as error:
            raise overdue(error) from None
        except DeskLostError as error:
            raise lost(error) from None

    def _timeout_s(self, request: DecisionRequest) -> float:
        timeout_s = self._args.request_timeout_s
        return timeout_s if request.deadline_ms is None else min(timeout_s, request.deadline_ms / 1_000.0)

    def _call(self, request: DecisionRequest, deadline: float, at: str = "") -> Call:
        self._check(request, at)
        return Call.of(request, self._now(request, at), deadline)

    def _now(self, request: DecisionRequest, at: str) -> datetime:
        if self._args.clock == "system":
            return self._args.now()
        told, field = request.context.get("now"), f"{at}context.now"
        try:
            moment = datetime.fromisoformat(str(told))
        except ValueError:
            raise invalid(field, told, "this server simulates time: send an ISO 8601 time") from None
        if moment.tzinfo is None:
            raise invalid(field, told, "has no offset; end it with +00:00")
        try:
            return within_reach(moment)
        except ValueError as error:
            raise invalid(field, told, str(error)) from None

    def _check(self, request: DecisionRequest, at: str) -> None:
        args = self._args
        if request.n > args.max_n:
            raise invalid(f"{at}n", request.n, f"at most {args.max_n} actions a decision")
        if request.candidates is not None:
            field = f"{at}candidates"
            if len(request.candidates) > args.max_candidates:
                raise invalid(field, len(request.candidates), f"at most {args.max_candidates} items")
            for item in request.candidates:
                if item not in self._watcher.catalogue.index:
                    raise invalid(field, item, "is not in the catalogue")


def lost(error: DeskLostError) -> Problem:
    """What is answered when the engine ended: whether it was done is not known, so the ids matter."""
    return Problem(503, f"engine: {error}; try again with the same ids", retry_after=RETRY_AFTER_S)


def overdue(error: DeadlinePassedError) -> Problem:
    """What is answered when the time is over."""
    return Problem(503, f"decision: {error}; try again", retry_after=RETRY_AFTER_S)


def overloaded(what: str = "requests") -> Problem:
    """What is answered when too much waits: at once, and with when to ask again."""
    return Problem(503, f"decision: too many {what} wait; try again", retry_after=RETRY_AFTER_S)
