"""The largest rate that a server holds: short probes, bisection, and a longer run that confirms it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from benchmarks.deciding.load import Job, Result
from benchmarks.deciding.tally import Tally
from benchmarks.harness import ROOT, log

LIMIT_MS = 50.0
GIVE_UP_S = 1.0
STEP_BACK = 0.93
CONFIRMATIONS = 5
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Effort:
    """How long and how often is measured.

    warm_s: closed loop before anything counts; closed_s: of each closed-loop figure; probe_s: of each probe;
    probes: most of them; fineness: stop when the bounds are this close (ratio); confirm_s: of the last run.
    """

    warm_s: float
    closed_s: float
    probe_s: float
    probes: int
    fineness: float
    confirm_s: float


@dataclass(frozen=True)
class Found:
    """What a server can do.

    rps: the largest open-loop rate with every request decided and p99 within the limit, None if there is
    none; run: the run that confirmed it. closed_rps: the largest closed-loop rate, and closed_connections:
    with how many. idle_p50_ms: median latency of one request at a time.
    """

    rps: float | None
    run: Result | None
    closed_rps: float
    closed_connections: int
    idle_p50_ms: float | None

    @property
    def best(self) -> float:
        """The rate to compare: of a server that never meets the limit its closed-loop one."""
        return self.closed_rps if self.rps is None else self.rps


class Prober:
    """Runs the load generator against one server, each time in a new process."""

    def __init__(self, host: str, port: int, path: str, bodies: Sequence[str], nonce: int = 0) -> None:
        self._job = Job(host, port, path, bodies, nonce)

    def phases(self, *phases: tuple[float, float], give_up_s: float | None = GIVE_UP_S) -> Result:
        """Open loop at each rate in turn."""
        return self._run(replace(self._job, phases=phases, give_up_s=give_up_s))

    def closed(self, connections: int, seconds: float) -> Tally:
        """Closed loop."""
        job = replace(self._job, closed_s=seconds, connections=connections, warm=connections, timeout_s=30.0)
        return self._run(job).phases[0]

    def _run(self, job: Job) -> Result:
        # Every run has serial numbers of its own: a repeated request id would be answered from the log.
        self._job = replace(self._job, nonce=(self._job.nonce + 1) & _MASK)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.deciding.load"],
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120.0 + job.closed_s + sum(seconds for _, seconds in job.phases),
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the load generator ended with {done.returncode}: {done.stderr[-2_000:]}")
        return Result.from_dict(json.loads(done.stdout))


def measure(prober: Prober, effort: Effort, name: str, guess: float | None = None) -> Found:
    """Warm up, then find the largest rate; `guess`: what an earlier round found."""
    prober.closed(8, effort.warm_s)
    idle = prober.closed(1, effort.closed_s)
    slow = idle.p50_ms is None or idle.p50_ms > LIMIT_MS
    loads = {count: prober.closed(count, effort.closed_s) for count in ((1, 8, 32) if slow else (32,))}
    connections, best = max(loads.items(), key=lambda entry: entry[1].answered_per_s)
    log(f"  {name}: one at a time {idle.p50_ms or math.nan:.1f} ms; closed loop {best.answered_per_s:.1f}/s")
    if best.accepted == 0:
        raise RuntimeError(f"{name}: decided nothing in the closed loop: {best.errors}")
    found = Found(None, None, best.answered_per_s, connections, idle.p50_ms)
    if slow:
        return found
    rate = search(
        lambda rate: _probe(prober, rate, effort.probe_s, name), guess or 0.8 * found.closed_rps, effort
    )
    return found if rate is None else _confirm(prober, effort, name, rate, found)


def search(holds: Callable[[float], bool], first: float, effort: Effort) -> float | None:
    """The largest rate for which `holds` was seen true, by bisection on a log scale from `first`."""
    low, high, rate = 0.0, math.inf, first
    for _ in range(effort.probes):
        if holds(rate):
            low = rate
        else:
            high = rate
        if low and high < math.inf:
            if high / low <= effort.fineness:
                break
            rate = math.sqrt(low * high)
        else:
            rate = low * 1.25 if low else high * 0.7
    return low or None


def _probe(prober: Prober, rate: float, seconds: float, name: str) -> bool:
    result = prober.phases((rate, seconds))
    log(f"  {name}: {describe(result)}")
    return holds(result)


def holds(result: Result) -> bool:
    """Whether the run was complete and clean."""
    return result.complete and all(phase.clean(LIMIT_MS) for phase in result.phases)


def _confirm(prober: Prober, effort: Effort, name: str, rate: float, found: Found) -> Found:
    """The first rate, from `rate` down, that a long run confirms; `found` as it is if none does."""
    for _ in range(CONFIRMATIONS):
        result = prober.phases((rate, effort.confirm_s))
        log(f"  {name}: {describe(result)} (long run)")
        if holds(result):
            return replace(found, rps=rate, run=result)
        rate *= STEP_BACK
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
