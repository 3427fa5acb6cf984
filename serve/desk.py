"""The desk of decisions: calls in, written answers out. Here on threads of this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Protocol

from qiance.domain import Outcome
from serve.answers import Writer, Written
from serve.args import AppArgs
from serve.assemble import Service
from serve.engine import WARM_S, Result
from serve.live import LiveState
from serve.problems import Problem
from serve.slates import Call

RETRY_AFTER_S = 1
Reply = Written | Problem


def late() -> Problem:
    """What is answered for a call that had not begun at its deadline."""
    return Problem(503, "decision: no answer in time; try again", retry_after=RETRY_AFTER_S)


class DeskLostError(RuntimeError):
    """The desk ended before it had answered: what was asked may be done or not, ask again."""


class Desk(Protocol):
    """Whoever decides for the gateway, on whatever side of a process boundary."""

    @property
    def is_up(self) -> bool:
        """Whether it can be asked now."""
        ...

    def check_health(self) -> None:
        """Raises RuntimeError where it will not be up again by itself."""
        ...

    async def decide(self, calls: Sequence[Call]) -> Sequence[Reply]:
        """One durable answer per call, or what is wrong with it; raises DeskLostError."""
        ...

    async def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes on the local disk, while the ledger is down; raises SpoolFullError, DeskLostError."""
        ...

    def close(self) -> None:
        """Finish what is under way, and give leased money back."""
        ...


class Clerk:
    """Decides and writes in the calling thread; safe to use from several."""

    def __init__(self, args: AppArgs, service: Service) -> None:
        self._service = service
        self._writer = Writer(service.watcher.catalogue, args.currency)

    def decide(self, calls: Sequence[Call]) -> list[Reply]:
        """See `Desk`; what comes after its deadline is neither decided nor logged."""
        now = time.monotonic()
        results = iter(self._service.engine.decide([call for call in calls if call.deadline > now]))
        state = self._service.watcher.state
        return [self._reply(next(results), state) if call.deadline > now else late() for call in calls]

    def _reply(self, result: Result, state: LiveState) -> Reply:
        return result if isinstance(result, Problem) else self._writer.write(result, state)

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """See `Desk`."""
        self._service.outage.keep(outcomes)

    def warm_up(self, patience_s: float = WARM_S) -> None:
        """Do once what is slow the first time; raises LedgerUnavailableError, NotReadyError."""
        self._service.engine.warm_up(patience_s)

    def close(self) -> None:
        """Close what it stands on."""
        self._service.close()


def warm_up(clerk: Clerk, pool: Executor, workers: int, patience_s: float = WARM_S) -> None:
    """Have each of the `workers` threads of `pool` do once what is slow the first time; see `Clerk`."""
    together = threading.Barrier(workers)  # or one thread would do the work of two

    def run() -> None:
        try:
            clerk.warm_up(patience_s)
        except BaseException:
            together.abort()  # or those that are done would wait for this one for ever
            raise
        together.wait()

    failed = [error for call in [pool.submit(run) for _ in range(workers)] if (error := call.exception())]
    if failed:
        raise min(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError))


class ThreadDesk:
    """A clerk in threads of this process; `workers` batches are under way at once."""

    is_up = True

    def __init__(self, clerk: Clerk, workers: int) -> None:
        self._clerk, self._workers = clerk, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="qiance-decide")

    async def decide(self, calls: Sequence[Call]) -> Sequence[Reply]:
        """See `Desk`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._clerk.decide, calls)

    def check_health(self) -> None:
        """See `Desk`: threads here do not end by themselves."""

    async def keep(self, outcomes: Sequence[Outcome]) -> None:
        """See `Desk`."""
        await asyncio.to_thread(self._clerk.keep, outcomes)

    def warm_up(self, patience_s: float = WARM_S) -> None:
        """Make it ready, before it is first asked; raises LedgerUnavailableError, NotReadyError."""
        warm_up(self._clerk, self._pool, self._workers, patience_s)

    def close(self) -> None:
        """See `Desk`."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._clerk.close()
