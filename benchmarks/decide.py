"""Decisions over HTTP: the largest rate with a 99th percentile of at most 50 ms and no error.

One user × 500 candidates, logged durably before the answer. Requests are due at a constant rate whatever
becomes of those before (open loop), and are timed from when they were due. Every server has the same shop,
and a copy of the same ledger; they run one at a time, in turns.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.deciding import contenders
from benchmarks.deciding.contenders import Stand, standing
from benchmarks.deciding.environments import environment
from benchmarks.deciding.rates import Effort, generator_limit, measure
from benchmarks.deciding.recovery import overloads
from benchmarks.deciding.report import Protocol, Seen, figures_of, peers_of
from benchmarks.deciding.servers import ServerError
from benchmarks.deciding.shop import FOLDER, Shop, Size, open_shop
from benchmarks.harness import emit, log, parse

# Those who are close stand close: the machine has less time to change between them.
EVERYBODY = (
    contenders.LITSERVE,
    contenders.QIANCE,
    contenders.BENTOML,
    contenders.BARE,
    contenders.TWO_HOP,
    contenders.NAIVE_TWO_HOP,
    contenders.NAIVE_RAY,
)
SMOKE_WHO = (contenders.QIANCE, contenders.BARE)
SMOKE = Size(users=200, items=60, actions=20, categories=8, brands=8, rows=2_000, stock=False)
QUICK = Size(users=4_000, items=1_000, actions=500)
FULL = Size(users=20_000, items=5_000, actions=500)
EFFORT_SMOKE = Effort(0.5, 0.5, 1.0, 1, first=0.3, fineness=2.0, confirm_s=1.0)
EFFORT_QUICK = Effort(1.0, 1.0, 2.0, 5, first=0.8, fineness=1.1, confirm_s=4.0, overloads=1, overload_s=4.0)
EFFORT_FULL = Effort(3.0, 3.0, 4.0, 6, first=0.8, fineness=1.04, confirm_s=20.0, overloads=3, overload_s=10.0)
MOST_S = 34 * 60.0  # a further round is begun only if it should end before


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everybody in turn and print the figures."""
    args = parse(argv, "Decisions a second over HTTP, against other ways to serve them.")
    who = args.pick(smoke=SMOKE_WHO, quick=EVERYBODY, full=EVERYBODY)
    effort = args.pick(smoke=EFFORT_SMOKE, quick=EFFORT_QUICK, full=EFFORT_FULL)
    rounds = args.pick(smoke=1, quick=1, full=2)
    shop = open_shop(args.pick(smoke=SMOKE, quick=QUICK, full=FULL))
    seen = [Seen(contender) for contender in who]
    limit = generator_limit(effort.closed_s)
    with tempfile.TemporaryDirectory(prefix="run-", dir=FOLDER) as folder:
        done = _rounds(seen, shop, effort, Path(folder), rounds)
    absent = [
        Seen(contender, reason="left out of --smoke") for contender in EVERYBODY if contender not in who
    ]
    everybody = [*seen, *absent]
    protocol = Protocol(shop, effort, done, limit)
    emit("decide", args, figures_of(everybody), peers_of(everybody), protocol.as_dict(everybody))


def _rounds(seen: Sequence[Seen], shop: Shop, effort: Effort, folder: Path, rounds: int) -> int:
    """Everybody in turn, and back, as often as `rounds` says and the time allows; how often it was."""
    started = time.monotonic()
    for number in range(rounds):
        if number and (time.monotonic() - started) * (number + 1) / number > MOST_S:
            log(f"no round {number + 1}: it would not end in time")
            return number
        for one in seen if number % 2 == 0 else reversed(seen):
            log(f"{one.contender.name}, round {number + 1} of {rounds}")
            _round(one, shop, effort, folder / one.contender.name)
    return rounds


def _round(seen: Seen, shop: Shop, effort: Effort, folder: Path) -> None:
    """Start the contender, measure it, end it; what cannot be had of a peer is noted with the reason."""
    python = None
    if seen.contender.environment and not seen.reason:
        own = environment(seen.contender.environment)
        python, seen.reason = own.python, own.reason
    if seen.reason:
        return
    try:
        with standing(seen.contender, shop, folder, python) as stand:
            _measure(seen, stand, effort)
    except (ServerError, RuntimeError) as error:
        if seen.contender is contenders.QIANCE:
            raise  # the others would be compared with nothing
        log(f"  {seen.contender.name} is left out: {error}")
        seen.fail(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(seen: Seen, stand: Stand, effort: Effort) -> None:
    empty, guess = stand.log(), seen.found[-1].rps if seen.found else None
    found = measure(stand.prober, effort, seen.contender.name, stand.server.cpu_s, guess)
    seen.found.append(found)
    seen.transport = stand.transport()
    if seen.contender.is_ours and not seen.overloads and found.rps:
        seen.overloads = overloads(stand.prober, found.rps, effort.overload_s, effort.overloads)
    seen.repeated += stand.prober.repeated
    if seen.contender.durable:
        seen.check_log(stand.prober.accepted, empty, stand.log())


if __name__ == "__main__":
    main()
