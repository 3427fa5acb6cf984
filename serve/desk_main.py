"""The process that decides: `python -m serve.desk_main FD`, started by `serve.desk_process` alone."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from serve import wire
from serve.args import AppArgs
from serve.assemble import open_engine, open_ledger
from serve.desk import Clerk, warm_up

logger = logging.getLogger(__name__)


def main() -> None:
    """Answer what comes over the socket whose number is the argument, until its other end is closed."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    channel = socket.socket(fileno=int(sys.argv[1]))
    messages = _read(channel)
    args = AppArgs.model_validate_json(next(messages))
    workers = args.batching.workers
    with ThreadPoolExecutor(workers, thread_name_prefix="qiance-decide") as pool:
        try:
            ledger = open_ledger(args, args.ledger_timeout_s)
            clerk = Clerk(args, open_engine(args, ledger))
            warm_up(clerk, pool, workers)
        except Exception as error:
            logger.exception("the engine did not start")
            channel.sendall(wire.pack(f"{type(error).__name__}: {error}"))
            return
        gc.collect()
        gc.freeze()  # what is loaded by now lives as long as the process: no later collection looks at it
        channel.sendall(wire.pack(wire.READY))
        _answer(clerk, messages, channel, pool)
    clerk.close()
    ledger.close()


def _answer(clerk: Clerk, messages: Iterator[Any], channel: socket.socket, pool: Executor) -> None:
    lock = threading.Lock()

    def handle(number: int, kind: wire.Kind, what: Any) -> None:
        try:
            answer: tuple[int, Any, Any] = (number, _reply(clerk, kind, what), None)
        except Exception as error:
            logger.exception("a batch failed")
            answer = (number, None, wire.from_error(error))
        with lock, contextlib.suppress(BrokenPipeError):  # whoever asked is gone: the end is near
            channel.sendall(wire.pack(answer))

    for number, kind, what in messages:
        pool.submit(handle, number, kind, what)


def _reply(clerk: Clerk, kind: wire.Kind, what: Any) -> Any:
    if kind == "decide":
        return wire.from_replies(clerk.decide(wire.to_calls(what)))
    return clerk.keep(wire.to_outcomes(what))


def _read(channel: socket.socket) -> Iterator[Any]:
    """Messages until the other end is closed."""
    unpacker = wire.unpacker()
    while piece := channel.recv(65_536):
        unpacker.feed(piece)
        yield from unpacker


if __name__ == "__main__":
    main()
