"""A desk in a process beside the one that speaks HTTP, so that neither waits for the other's Python.

In one process, an engine that lets go of Python's lock at every query and every matrix product stands in line
for it with the event loop each time, and gets less than half done.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qiance.domain import Outcome
from serve import wire
from serve.args import AppArgs
from serve.desk import DeskLostError, Reply
from serve.slates import Call

START_S = 120.0
STOP_S = 10.0
PAUSE_S = 1.0  # before another is started, lest one that cannot live is started without end
logger = logging.getLogger(__name__)


class DeskStartError(RuntimeError):
    """The process did not come up; the message says why."""


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    channel: socket.socket


class _Wire(asyncio.Protocol):
    """Questions under way on one channel; belongs to its event loop."""

    def __init__(self) -> None:
        self._numbers, self._unpacker = itertools.count(), wire.unpacker()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        self._unpacker.feed(data)
        for number, reply, error in self._unpacker:
            future = self._waiting.pop(number)
            if future.done():
                continue
            if error is None:
                future.set_result(reply)
            else:
                future.set_exception(wire.to_error(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(DeskLostError("the engine's process ended before it had answered"))
        self._waiting.clear()

    async def ask(self, kind: wire.Kind, what: Any) -> Any:
        """The answer, or what the other side raised."""
        if self._transport is None:
            raise DeskLostError("the engine's process ended")
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._transport.write(wire.pack((number, kind, what)))
        return await future


class ProcessDesk:
    """Starts the process, and another when it ends. Ready to be asked when it is made."""

    def __init__(self, args: AppArgs) -> None:
        self._args, self._closing = args, threading.Event()
        self._child: _Child | None = _start(args)
        self._down_since = 0.0  # of a child that is None
        self._wired: tuple[_Child, _Wire] | None = None
        self._lock, self._wiring = threading.Lock(), asyncio.Lock()
        self._thread = threading.Thread(target=self._follow, name="qiance-desk", daemon=True)
        self._thread.start()

    @property
    def is_up(self) -> bool:
        """See `Desk`."""
        return self._child is not None

    def check_health(self) -> None:
        """See `Desk`."""
        if self._closing.is_set():
            return
        if not self._thread.is_alive():
            raise RuntimeError("the thread that follows the engine's process has ended")
        if self._child is None and (down_s := time.monotonic() - self._down_since) > START_S:
            raise RuntimeError(f"the engine's process has been down for {down_s:.0f} s")

    async def decide(self, calls: Sequence[Call]) -> Sequence[Reply]:
        """See `Desk`."""
        return wire.to_replies(await (await self._wire()).ask("decide", wire.from_calls(calls)))

    async def keep(self, outcomes: Sequence[Outcome]) -> None:
        """See `Desk`."""
        await (await self._wire()).ask("keep", wire.from_outcomes(outcomes))

    def close(self) -> None:
        """See `Desk`."""
        with self._lock:
            self._closing.set()
        if (child := self._child) is not None:
            with contextlib.suppress(OSError):
                child.channel.shutdown(socket.SHUT_WR)
            _end(child.process, STOP_S)
        self._thread.join(timeout=START_S)

    async def _wire(self) -> _Wire:
        child = self._child
        if child is None:
            raise DeskLostError("the engine's process ended; another starts")
        if (wired := self._wired) is not None and wired[0] is child:
            return wired[1]
        async with self._wiring:
            if self._wired is None or self._wired[0] is not child:
                loop = asyncio.get_running_loop()
                _, wire = await loop.create_unix_connection(_Wire, sock=child.channel)
                self._wired = (child, wire)
            return self._wired[1]

    def _follow(self) -> None:
        """Start another process whenever one ends, until closed."""
        while not self._closing.is_set():
            if (child := self._child) is not None:
                code = child.process.wait()
                if self._closing.is_set():
                    return
                logger.error("the engine's process ended with %d; another starts", code)
                self._down_since, self._child = time.monotonic(), None
            try:
                self._adopt(_start(self._args))
            except DeskStartError as error:
                logger.error("%s", error)
                self._closing.wait(PAUSE_S)

    def _adopt(self, child: _Child) -> None:
        """Ask it from now on; or end it, where we were closed while it started."""
        with self._lock:
            if not self._closing.is_set():
                self._child = child
                return
        child.channel.close()
        _end(child.process, STOP_S)


def _start(args: AppArgs) -> _Child:
    """A process that has warmed up; DeskStartError if there is none within `START_S`."""
    try:
        child = _spawn()
        try:
            _greet(child.channel, args)
        except BaseException:
            child.channel.close()
            _end(child.process, 0.0)
            raise
    except OSError as error:  # also where there is no memory for a process, or no number for a file
        raise DeskStartError(f"the engine's process did not start: {error}") from error
    return child


def _spawn() -> _Child:
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "serve.desk_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": _search_path()},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us: it ends when the channel is closed
            )
        except BaseException:
            ours.close()
            raise
    return _Child(process, ours)


def _greet(channel: socket.socket, args: AppArgs) -> None:
    """Tell it what to serve, and wait until it is ready."""
    channel.settimeout(START_S)
    channel.sendall(wire.pack(args.model_dump_json()))
    said = _first(channel)
    if said != wire.READY:
        raise DeskStartError(f"the engine's process did not start: {said}")
    channel.setblocking(False)


def _first(channel: socket.socket) -> Any:
    unpacker, deadline = wire.unpacker(), time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            piece = channel.recv(65_536)
        except TimeoutError:
            break
        if not piece:
            return "it ended; its log says why"
        unpacker.feed(piece)
        for message in unpacker:
            return message
    return f"nothing was heard of it for {START_S:.0f} s"


def _search_path() -> str:
    """Where this process finds its modules, with our own root first."""
    return os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
