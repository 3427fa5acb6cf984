"""The process beside the gateway: it answers as the engine does, ends with us, is replaced when it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from qiance.domain import Outcome, OutcomeType
from qiance.ledger import Ledger
from serve import desk_process, wire
from serve.answers import Written
from serve.args import AppArgs, LeaseArgs
from serve.desk import Clerk, DeskLostError, ThreadDesk
from serve.desk_process import DeskStartError, ProcessDesk
from serve.engine import NotReadyError
from serve.problems import Problem
from serve.slates import Call
from serve.spool import SpoolFullError
from tests.serve.built_cases import BRIEF, CAP, Built
from tests.serve.serve_cases import open_shop

AT = datetime(2026, 5, 4, 10, 0, tzinfo=UTC)
PATIENCE_S = 60.0
T = TypeVar("T")


def wait_until(holds: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


def call(user: str, at: datetime, request_id: str | None = None, n: int = 1) -> Call:
    return Call(user, "home", at, request_id, n, None)


def _is_desk(process: psutil.Process) -> bool:
    try:
        return "serve.desk_main" in process.cmdline()
    except psutil.ZombieProcess:  # it ended, and nobody has asked how
        return False


class Beside:
    """A desk in a process of its own, and the shop whose ledger it uses."""

    def __init__(self, desk: ProcessDesk, args: AppArgs, ledger: Any) -> None:
        self.desk, self.args, self.ledger = desk, args, ledger
        self.runner = asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the one event loop that the desk belongs to."""
        return self.runner.run(work)

    def children(self) -> list[psutil.Process]:
        return [p for p in psutil.Process().children() if _is_desk(p)]

    def child(self) -> psutil.Process:
        (found,) = self.children()
        return found

    def is_another_than(self, before: psutil.Process) -> Callable[[], bool]:
        return lambda: any(p.pid != before.pid for p in self.children()) and self.desk.is_up

    def leased(self, child: psutil.Process) -> int:
        """Minor units that the process has leased and not used; what a killed one had goes back."""
        query = f"SELECT coalesce(sum(amount - used), 0) FROM leases WHERE holder LIKE '%-{child.pid}-%'"
        with self.ledger.engine.connect() as connection:
            return int(connection.exec_driver_sql(query).scalar_one())


@pytest.fixture(scope="module")
def beside(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """One for all tests here, since each takes a quarter of a minute to start; the last one closes it."""
    with open_shop(built, tmp_path_factory.mktemp("desk")) as shop:
        given = {
            "ledger_url": str(shop.ledger.engine.url),
            "spool_bytes": 4_096,
            "leases": LeaseArgs(term_s=2.0),
        }
        args = shop.gateway.args.model_copy(update=given)
        desk = ProcessDesk(args)
        try:
            found = Beside(desk, args, shop.ledger)
            with found.runner:
                yield found
        finally:
            desk.close()


def test_it_loads_nothing_of_the_rooms_that_plan_and_train() -> None:
    """It starts in half the time, and an environment of what decides is enough for it."""
    shown = "import serve.desk_main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    unwanted = r"ray|rich|typer|transformers|training|qiance\.(data|proposer|market|cli|launch)|pandas"
    assert re.findall(rf"(?<!\S)(?:{unwanted})(?!\S)", done.stdout) == []


def test_it_answers_as_the_engine_here_does(beside: Beside) -> None:
    now = beside.args.now()

    async def run() -> tuple[Any, Any]:
        asked = [call(f"u{n}", now, f"r{n}", 2) for n in range(40)]
        first = await asyncio.gather(*(beside.desk.decide(asked[n : n + 8]) for n in range(0, 40, 8)))
        again = await beside.desk.decide([*asked, call("u1", now, "r0")])
        return [one for part in first for one in part], again

    first, again = beside.run(run())
    ids = [one.body.split(b'"')[3] for one in first]
    assert len(set(ids)) == 40
    assert [one.body.split(b'"')[3] for one in again[:40]] == ids
    assert {one.degraded[-1] for one in again[:40]} == {"repeated"}
    assert again[40].status_code == 409, "a Problem keeps what it says"
    assert str(again[40].detail).startswith("request_id: was used for another user")
    assert beside.ledger.decision(ids[7].decode()).request_id == "r7"


def test_a_deadline_means_the_same_in_the_other_process(beside: Beside) -> None:
    at, now = beside.args.now(), time.monotonic()
    late, good = (replace(call("u1", at), deadline=now + left_s) for left_s in (-0.001, PATIENCE_S))
    refused, answered = beside.run(beside.desk.decide([late, good]))
    assert isinstance(refused, Problem)
    assert refused.detail == "decision: no answer in time; try again"
    assert isinstance(answered, Written)


def test_outcomes_are_kept_until_the_spool_is_full(beside: Beside) -> None:
    outcomes = [Outcome(f"e{n}", f"d{n}", OutcomeType.CLICK, AT) for n in range(20)]

    async def run() -> None:
        await beside.desk.keep(outcomes[:2])
        with pytest.raises(SpoolFullError, match="all it may"):
            await beside.desk.keep(outcomes * 10)
        await beside.desk.keep(outcomes[2:4])

    beside.run(run())


def test_one_that_is_killed_is_replaced_also_where_the_first_try_fails(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = beside.child()

    def is_refused() -> bool:
        return "the engine's process did not start: [Errno 2]" in caplog.text

    async def run() -> Any:
        await beside.desk.decide([call(f"u{n}", beside.args.now()) for n in range(30)])
        assert beside.leased(before) > 0
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/nowhere/python")
            before.kill()
            with pytest.raises(DeskLostError):
                await beside.desk.decide([call("u2", beside.args.now())])
            await asyncio.to_thread(wait_until, is_refused, "nobody tried to start another")
            assert not beside.desk.is_up
            beside.desk.check_health()
            broken.setattr(desk_process, "START_S", 0.0)
            with pytest.raises(RuntimeError, match=r"has been down for \d+ s"):
                beside.desk.check_health()
        await asyncio.to_thread(wait_until, beside.is_another_than(before), "no other process came")
        return await beside.desk.decide([call("u3", beside.args.now(), "after")])

    (answer,) = beside.run(run())
    assert isinstance(answer, Written)
    assert beside.child().pid != before.pid
    beside.desk.check_health()
    wait_until(lambda: beside.leased(before) == 0, "nobody took back what it had leased")
    child = beside.child()
    wait_until(lambda: beside.ledger.budget(BRIEF).leased == beside.leased(child), "somebody else has some")
    status = beside.ledger.budget(BRIEF)
    assert status.left + status.leased + held_for(beside.ledger) == CAP


def held_for(ledger: Ledger) -> int:
    """Minor units that logged decisions hold, by the reservations themselves."""
    with ledger.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT sum(amount) FROM reservations").scalar_one())


@pytest.mark.slow
def test_it_ends_when_who_started_it_is_killed(beside: Beside) -> None:
    script = (
        "import sys, time; from serve.args import AppArgs; from serve.desk_process import ProcessDesk\n"
        "desk = ProcessDesk(AppArgs.model_validate_json(sys.argv[1])); print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, beside.args.model_dump_json()], stdout=subprocess.PIPE
    )
    with parent.stdout as said:
        assert said.readline() == b"up\n"
    (child,) = psutil.Process(parent.pid).children()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "it outlived us")


def test_closed_it_gives_its_leases_back_and_ends(beside: Beside) -> None:
    child = beside.child()

    async def run() -> None:
        for n in range(30):
            await beside.desk.decide([call(f"u{n}", beside.args.now())])

    beside.run(run())
    assert beside.leased(child) > 0
    beside.desk.close()
    assert not child.is_running()
    assert beside.leased(child) == 0
    beside.desk.check_health()  # a replica that is drained is not to be replaced


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_desk_that_nobody_follows_is_ill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended the thread: a replica whose engine can never come back must be replaced."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    children = iter([desk_process._Child(process, ours)])

    def start(args: AppArgs) -> desk_process._Child:
        for child in children:
            return child
        raise SystemExit

    monkeypatch.setattr(desk_process, "_start", start)
    with ours, theirs:
        desk = ProcessDesk(AppArgs(workspace=tmp_path))
        desk.check_health()
        process.communicate(b"\n")
        wait_until(lambda: not desk._thread.is_alive(), "the thread went on")
        with pytest.raises(RuntimeError, match="has ended"):
            desk.check_health()


def test_one_that_cannot_be_spawned_is_an_error_that_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DeskStartError, match=r"did not start: .*No such file"):
        ProcessDesk(AppArgs(workspace=tmp_path))


def test_one_that_cannot_start_says_why(built: Built, tmp_path: Path) -> None:
    args = AppArgs(workspace=tmp_path / "nowhere", ledger_url=f"sqlite:///{tmp_path / 'ledger.db'}")
    with pytest.raises(DeskStartError, match=r"did not start: .*nowhere"):
        ProcessDesk(args)


def test_every_thread_is_warm_before_the_first_request() -> None:
    seen: list[int] = []

    class Warm(Clerk):
        def __init__(self) -> None: ...

        def warm_up(self, patience_s: float = 0.0) -> None:
            seen.append(threading.get_ident())

        def close(self) -> None: ...

    desk = ThreadDesk(Warm(), 3)
    desk.warm_up()
    desk.close()
    assert len(set(seen)) == len(seen) == 3


def test_a_thread_that_does_not_get_warm_keeps_no_other_waiting() -> None:
    first = threading.Lock()

    class Cold(Clerk):
        def __init__(self) -> None: ...

        def warm_up(self, patience_s: float = 0.0) -> None:
            if first.acquire(blocking=False):
                raise NotReadyError(f"predictor: no pass within {patience_s:g} s")

        def close(self) -> None: ...

    desk = ThreadDesk(Cold(), 3)
    with pytest.raises(NotReadyError, match="within 7 s"):
        desk.warm_up(7.0)
    desk.close()


def test_what_goes_over_the_wire_comes_back_as_it_was() -> None:
    calls = [Call("ü", "home", AT + timedelta(microseconds=1), None, 3, ("i1",), 7.25), call("u", AT, "r")]
    replies = [Written(b'{"a":1}', True, ("predictor", "x")), Problem(503, "full", retry_after=2)]
    outcomes = [Outcome("e", "d", OutcomeType.REFUND, AT, -5)]
    unpacker = wire.unpacker()
    sent = (wire.from_calls(calls), wire.from_replies(replies), wire.from_outcomes(outcomes))
    for byte in wire.pack(sent):  # however it is cut
        unpacker.feed(bytes([byte]))
    ((found_calls, found_replies, found_outcomes),) = unpacker
    assert wire.to_calls(found_calls) == calls
    assert wire.to_outcomes(found_outcomes) == outcomes
    written, problem = wire.to_replies(found_replies)
    assert written == replies[0]
    assert isinstance(problem, Problem)
    assert (problem.status_code, problem.detail, problem.headers) == (503, "full", {"Retry-After": "2"})
    with pytest.raises(RuntimeError, match="KeyError: 'x'"):
        raise wire.to_error(wire.from_error(KeyError("x")))
