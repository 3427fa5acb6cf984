"""Where the time of a decision goes: CPU and wall time of each step of the engine, by size of batch.

`python -m benchmarks.deciding.profile` prints the table of docs/performance.md. It measures the engine in its
own process; transport and HTTP around it are in the benchmark `decide`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deciding.shop import FOLDER, Shop, Size, open_shop
from benchmarks.harness import log, parse
from serve.answers import Answer, Writer
from serve.args import AppArgs
from serve.assemble import Service, open_engine, open_ledger
from serve.schemas import DecisionRequest
from serve.slates import Call

BATCHES = (1, 8, 32)
US = 1e6


@dataclass
class Steps:
    """Seconds per step: CPU of the thread, and wall."""

    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time every call of a method from now on."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block."""
        cpu, wall = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            self.cpu[name].append(time.thread_time() - cpu)
            self.wall[name].append(time.perf_counter() - wall)

    def clear(self) -> None:
        self.cpu.clear()
        self.wall.clear()

    def table(self, size: int) -> list[str]:
        """Rows of a table: microseconds a decision."""
        return [
            f"| {size} | {name} | {US * statistics.median(self.cpu[name]) / size:,.0f} "
            f"| {US * statistics.median(self.wall[name]) / size:,.0f} |"
            for name in self.cpu
        ]


def profile(shop: Shop, repeats: int, seed: int) -> Iterator[str]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        args = AppArgs.model_validate(shop.app_args(Path(folder)))
        ledger = open_ledger(args)
        service = open_engine(args, ledger)
        try:
            yield from _rows(shop, service, args, repeats, np.random.default_rng(seed))
        finally:
            service.close()
            ledger.close()


def _rows(
    shop: Shop, service: Service, args: AppArgs, repeats: int, rng: np.random.Generator
) -> Iterator[str]:
    engine, users, steps = service.engine, shop.users(), Steps()
    writer = Writer(service.watcher.catalogue, args.currency)
    assert service.predictor is not None, "the predictor runs here"
    steps.watch(engine._ledger, "identify", "identify: pseudonym, consent, contacts, repeats")
    steps.watch(service.predictor.users, "read", "read the user's features")
    steps.watch(service.predictor, "score", "score, the read of features included")
    steps.watch(engine._drawer, "draw", "draw, with budget and caps")
    steps.watch(engine._ledger, "record_slates", "log: one commit")
    for size in BATCHES:
        for number in range(repeats + 3):
            if number == 3:  # the first are warm-up
                steps.clear()
            picked = rng.integers(len(users), size=size)
            calls = [Call.of(DecisionRequest(user_id=users[n], surface="home"), args.now()) for n in picked]
            with steps.step("engine, all of the above"):
                answers = engine.decide(calls)
            with steps.step("write the answer as JSON"):
                for answer in answers:
                    assert isinstance(answer, Answer), "the budget is not exhausted and the ledger is up"
                    writer.write(answer, service.watcher.state)
        yield from steps.table(size)


def main() -> None:
    """Print the table."""
    args = parse(None, "Where the time of a decision goes, step by step.")
    size = args.pick(
        smoke=Size(users=200, items=60, actions=20, categories=8, brands=8, rows=2_000, stock=False),
        quick=Size(users=4_000, items=1_000, actions=500),
        full=Size(users=20_000, items=5_000, actions=500),
    )
    shop = open_shop(size)
    log("| batch | step | CPU µs a decision | wall µs a decision |")
    log("| --- | --- | --- | --- |")
    for row in profile(shop, args.pick(smoke=5, quick=40, full=100), args.seed):
        log(row)


if __name__ == "__main__":
    main()
