"""Which processes the processor time of a decision goes to, at rates that are held with ease.

`python -m benchmarks.deciding.shares [--smoke | --quick]` prints the table of docs/performance.md: HTTP, the
engine beside it, HAProxy, and what Ray runs. `deciding.profile` says what the engine does with its part.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.decide import FULL, SMOKE
from benchmarks.deciding import contenders
from benchmarks.deciding.contenders import Stand, standing
from benchmarks.deciding.servers import Server
from benchmarks.deciding.shop import FOLDER, open_shop
from benchmarks.harness import log, parse

RATES = (50.0, 200.0, 400.0)
WARM_S = 3.0
# What a process's command line has, and what it is; the first that fits.
ROLES = (
    ("serve.desk_main", "engine"),
    ("ServeReplica:qiance:Gateway", "replica: HTTP"),
    ("bin/haproxy", "HAProxy"),
    ("ray::DashboardAgent", "Ray's agent: metrics"),
    ("ray::ServeReplica", "other replicas"),
    ("ray::ServeController", "Serve's controller, proxy"),
    ("ray::ProxyActor", "Serve's controller, proxy"),
    ("ray::HAProxyManager", "Serve's controller, proxy"),
)
OTHER = "Ray: head, raylet, logs, dashboard"


def role(command: Sequence[str]) -> str:
    """What the process with this command line is."""
    line = " ".join(command)
    return next((name for part, name in ROLES if part in line), OTHER)


def cpu_by_role(server: Server) -> dict[tuple[int, str], float]:
    """CPU seconds so far of each process that lives, by its id and what it is."""
    seconds: dict[tuple[int, str], float] = {}
    for process in [server.process, *server.process.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds[process.pid, role(process.cmdline())] = times.user + times.system
    return seconds


def spent(
    before: Mapping[tuple[int, str], float], after: Mapping[tuple[int, str], float]
) -> dict[str, float]:
    """Seconds between two instants, by what the processes are."""
    total: dict[str, float] = defaultdict(float)
    for key, seconds in after.items():
        total[key[1]] += seconds - before.get(key, 0.0)
    return total


def rows(stand: Stand, rate: float, seconds: float) -> Iterator[str]:
    """Rows of the table for one rate; RuntimeError if it was not held."""
    before = cpu_by_role(stand.server)
    phase = stand.prober.phases((rate, seconds)).phases[0]
    used = spent(before, cpu_by_role(stand.server))
    if phase.accepted < phase.sent:
        raise RuntimeError(f"of {phase.sent} requests {phase.accepted} were decided: {phase.errors}")
    for name, cpu in [*sorted(used.items(), key=lambda one: -one[1]), ("together", sum(used.values()))]:
        yield f"| {rate:.0f} | {name} | {1e6 * cpu / phase.accepted:,.0f} | {cpu / seconds:.0%} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse(argv, "Which processes the processor time of a decision goes to.")
    seconds = args.pick(smoke=1.0, quick=10.0, full=30.0)
    shop = open_shop(args.pick(smoke=SMOKE, quick=FULL, full=FULL))
    with (
        tempfile.TemporaryDirectory(prefix="run-", dir=FOLDER) as folder,
        standing(contenders.QIANCE, shop, Path(folder) / "qiance", None) as stand,
    ):
        stand.prober.warm(WARM_S)
        log("| decisions/s | process | CPU µs a decision | of a core |")
        log("| --- | --- | --- | --- |")
        for rate in RATES[: args.pick(smoke=1, quick=3, full=3)]:
            for row in rows(stand, rate, seconds):
                log(row)


if __name__ == "__main__":
    main()
