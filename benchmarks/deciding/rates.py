"""The largest rate that a server holds: short probes, bisection, and a longer run that confirms it."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from benchmarks.deciding.load import GIVEN_UP, Job, Result
from benchmarks.deciding.servers import free_port, running
from benchmarks.deciding.tally import Tally
from benchmarks.deciding.wire import SERIAL
from benchmarks.harness import ROOT, log

LIMIT_MS = 50.0
GIVE_UP_S = 1.0
# What a long run does not confirm is tried lower, in steps that grow, down to this share of the first rate: a
# server that holds the limit at a lower rate is not one that never does.
STEP_BACK = 0.93
LEAST = 0.2
STEP_UP, MOST_STEP_UP, STEP_DOWN = 1.25, 2.0, 0.7  # of the search, while there is one bound only
CLOSED_CONNECTIONS = 32
# A run during which the host gave more than this share of the cores' time to other machines says nothing of
# the server: it is done again, if need be, so many times for each server.
MOST_STOLEN = 0.02
REPEATS = 8


@dataclass(frozen=True)
class Effort:
    """How long and how often is measured.

    warm_s: closed loop before anything counts; closed_s: of each closed-loop figure; probe_s: of each probe;
    probes: most of them; first: share of the closed-loop rate that is tried first; fineness: stop when the
    bounds are this close (ratio); confirm_s: of the last run; overloads: how many at twice the rate, of
    overload_s each, see `recovery`.
    """

    warm_s: float
    closed_s: float
    probe_s: float
    probes: int
    first: float
    fineness: float
    confirm_s: float
    overloads: int = 0
    overload_s: float = 0.0


@dataclass(frozen=True)
class Found:
    """What a server can do.

    rps: the largest open-loop rate with every request decided and p99 within the limit, None if there is
    none; run: the run that confirmed it. closed_rps: the largest closed-loop rate, and closed_connections:
    with how many. idle_p50_ms: median latency of one request at a time. cpu_ms: CPU time of the server's
    processes per decision, at the rate that is compared. speed: of the machine then, see `machine_speed`.
    """

    rps: float | None
    run: Result | None
    closed_rps: float
    closed_connections: int
    idle_p50_ms: float | None
    cpu_ms: float
    speed: float = 1.0

    @property
    def best(self) -> float:
        """The rate to compare: of a server that never meets the limit its closed-loop one."""
        return self.closed_rps if self.rps is None else self.rps


class Prober:
    """Runs the load generator against one server, each time in a new process.

    accepted: decisions so far; repeated: runs that were done again, see `MOST_STOLEN`.
    """

    def __init__(self, port: int, path: str, bodies: Sequence[str]) -> None:
        self._job = Job("127.0.0.1", port, path, bodies, nonce=0)
        self.accepted = self.repeated = 0

    def phases(self, *phases: tuple[float, float], give_up_s: float | None = GIVE_UP_S) -> Result:
        """Open loop at each rate in turn."""
        return self._run(replace(self._job, phases=phases, give_up_s=give_up_s))

    def closed(self, connections: int, seconds: float) -> Tally:
        """Closed loop."""
        tally = self._closed(connections, seconds)
        problems = {problem: n for problem, n in tally.errors.items() if problem != GIVEN_UP}
        if problems or tally.accepted == 0:
            raise RuntimeError(f"the closed loop had errors: {problems}, {tally.accepted} decisions")
        return tally

    def warm(self, seconds: float) -> None:
        """A closed loop that does not count, until some decisions were made; the first may be degraded."""
        self._closed(8, seconds)

    def _closed(self, connections: int, seconds: float) -> Tally:
        job = replace(self._job, closed_s=seconds, connections=connections, warm=connections, timeout_s=60.0)
        return self._run(job).phases[0]

    def _run(self, job: Job) -> Result:
        """The first run of which little was stolen; the last one tried where there is none."""
        while True:
            watch = Stolen()
            result = self._once(job)
            share = watch.share()
            if not result.complete:
                # What was given up is still worked on, and would stand before the requests of the next run.
                self._once(replace(self._job, closed_s=0.1, connections=1, warm=1, timeout_s=60.0))
            if share <= MOST_STOLEN or self.repeated == REPEATS:
                return result
            self.repeated += 1
            log(f"  again: the host took {share:.0%} of the time")

    def _once(self, job: Job) -> Result:
        # Every run has serial numbers of its own: a repeated request id would be answered from the log.
        self._job = replace(self._job, nonce=self._job.nonce + 1)
        job = replace(job, nonce=self._job.nonce)
        patience = 120.0 + job.closed_s + sum(seconds for _, seconds in job.phases)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.deciding.load"],
                input=json.dumps(asdict(job)),
                capture_output=True,
                text=True,
                cwd=ROOT,
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the load generator did not end within {patience:.0f} s") from None
        if done.returncode != 0:
            raise RuntimeError(f"the load generator ended with {done.returncode}: {done.stderr[-2_000:]}")
        result = Result.from_dict(json.loads(done.stdout))
        self.accepted += sum(phase.accepted for phase in result.phases)
        return result


def measure(
    prober: Prober, effort: Effort, name: str, cpu_s: Callable[[], float], guess: float | None = None
) -> Found:
    """Warm up, then find the largest rate.

    cpu_s: CPU seconds of the server so far; guess: the rate that an earlier round found.
    """
    prober.warm(effort.warm_s)
    before = machine_speed()
    found = _measure(prober, effort, name, cpu_s, guess)
    return replace(found, speed=math.sqrt(before * machine_speed()))


class Stolen:
    """The share of the cores' time that a hypervisor gave to other machines since this was made."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    def share(self) -> float:
        """Of time that passed on all cores; 0 where the kernel does not say."""
        before, now = self._before, psutil.cpu_times()
        passed = sum(now) - sum(before)
        return (getattr(now, "steal", 0.0) - getattr(before, "steal", 0.0)) / passed if passed > 0 else 0.0


def machine_speed() -> float:
    """MiB that one core hashes in a millisecond, best of some tries: a shared machine's speed changes."""
    block, best = bytes(1 << 20), 0.0
    for _ in range(20):
        started = time.perf_counter()
        hashlib.sha256(block).digest()
        best = max(best, 1e-3 / (time.perf_counter() - started))
    return best


def _measure(
    prober: Prober, effort: Effort, name: str, cpu_s: Callable[[], float], guess: float | None
) -> Found:
    lone = _closed(prober, effort, 1, cpu_s)
    slow = lone.idle_p50_ms is None or lone.idle_p50_ms > LIMIT_MS
    many = _closed(prober, effort, 8 if slow else CLOSED_CONNECTIONS, cpu_s)
    found = max(many, lone, key=lambda one: one.closed_rps)  # Serve's defaults answer more to fewer at once
    found = replace(found, idle_p50_ms=lone.idle_p50_ms)
    log(f"  {name}: one at a time {found.idle_p50_ms:.1f} ms; closed loop {found.closed_rps:.1f}/s")
    if slow:
        return found
    first = guess or effort.first * found.closed_rps
    rate = search(lambda rate: _probe(prober, rate, effort.probe_s, name), first, effort)
    return found if rate is None else _confirm(prober, effort, name, rate, found, cpu_s)


def _closed(prober: Prober, effort: Effort, connections: int, cpu_s: Callable[[], float]) -> Found:
    before, accepted = cpu_s(), prober.accepted
    tally = prober.closed(connections, effort.closed_s)
    cpu_ms = 1e3 * (cpu_s() - before) / (prober.accepted - accepted)
    return Found(None, None, tally.answered_per_s, connections, tally.p50_ms, cpu_ms)


def search(holds: Callable[[float], bool], first: float, effort: Effort) -> float | None:
    """The largest rate for which `holds` was seen true, by bisection on a log scale from `first`.

    It goes up, in steps that grow, until a rate is not held; only from then on probes are counted.
    """
    low, high, rate, left, step = 0.0, math.inf, first, effort.probes, STEP_UP
    while left:
        if holds(rate):
            low = rate
        else:
            high = rate
        if high == math.inf:
            rate, step = low * step, min(step * step, MOST_STEP_UP)
            continue
        if low and high / low <= effort.fineness:
            break
        rate = math.sqrt(low * high) if low else high * STEP_DOWN
        left -= 1
    return low or None


def _probe(prober: Prober, rate: float, seconds: float, name: str) -> bool:
    result = prober.phases((rate, seconds))
    log(f"  {name}: {describe(result)}")
    return holds(result)


def holds(result: Result) -> bool:
    """Whether the run was complete and clean."""
    return result.complete and all(phase.clean(LIMIT_MS) for phase in result.phases)


def _confirm(
    prober: Prober, effort: Effort, name: str, rate: float, found: Found, cpu_s: Callable[[], float]
) -> Found:
    """The first rate, from `rate` down, that a long run confirms; `found` as it is if none does."""
    least, step = LEAST * rate, STEP_BACK
    while rate > least:
        before, accepted = cpu_s(), prober.accepted
        result = prober.phases((rate, effort.confirm_s))
        log(f"  {name}: {describe(result)} (long run)")
        if holds(result):
            cpu_ms = 1e3 * (cpu_s() - before) / (prober.accepted - accepted)
            return replace(found, rps=rate, run=result, cpu_ms=cpu_ms)
        rate *= step
        step *= STEP_BACK
    return found


def describe(result: Result) -> str:
    """One line on the first phase."""
    phase = result.phases[0]
    p99 = "–" if phase.p99_ms is None else f"{phase.p99_ms:.1f} ms"
    lag = "–" if phase.lag_p99_ms is None else f"{phase.lag_p99_ms:.1f} ms"
    parts = [f"{phase.rate:.0f}/s for {phase.seconds:.0f} s: p99 {p99}, sent {lag} late"]
    parts += [f"{phase.refused} refused"] if phase.refused else []
    parts += [f"errors {phase.errors}"] if phase.errors else []
    return ", ".join(parts if result.complete else [*parts, "given up"])


def generator_limit(seconds: float) -> float:
    """Requests a second that the generator holds against a server that answers at once, in a closed loop."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.deciding.trivial", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder, running(command, port, "/", Path(folder) / "log", {}):
        prober = Prober(port, "/", [json.dumps({"request_id": SERIAL})])
        return prober.closed(CLOSED_CONNECTIONS, seconds).answered_per_s
