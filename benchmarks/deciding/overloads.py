"""What is left of Qiance's answers when more comes than it can answer, several times in a row.

`python -m benchmarks.deciding.overloads [--smoke | --quick]`. Each round measures the closed-loop rate anew,
since the machine's speed changes, then sends `SHARE` of it, twice that, and `SHARE` again, without a pause.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.decide import FULL, SMOKE
from benchmarks.deciding import contenders
from benchmarks.deciding.contenders import standing
from benchmarks.deciding.rates import CLOSED_CONNECTIONS, Prober
from benchmarks.deciding.recovery import Overload, overload
from benchmarks.deciding.shop import FOLDER, open_shop
from benchmarks.harness import log, parse

SHARE = 0.55  # of the closed-loop rate: about what is held within 50 ms
WARM_S, CLOSED_S = 3.0, 3.0
HEADS = (
    "closed loop/s", "p99 ms before", "offered/s", "decided/s", "p50 ms", "p99 ms", "refused",
    "refusal p99 ms", "failed", "clean after s",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each overload, and the median p99."""
    args = parse(argv, "Overloads in a row: how many are decided, and how fast.")
    rounds = args.pick(smoke=1, quick=5, full=15)
    seconds = args.pick(smoke=1.0, quick=10.0, full=10.0)
    shop, found = open_shop(args.pick(smoke=SMOKE, quick=FULL, full=FULL)), list[Overload]()
    with (
        tempfile.TemporaryDirectory(prefix="run-", dir=FOLDER) as folder,
        standing(contenders.QIANCE, shop, Path(folder) / "qiance", None) as stand,
    ):
        stand.prober.warm(WARM_S)
        log("   ".join(HEADS))
        for _ in range(rounds):
            found.append(_one(stand.prober, seconds))
    log(f"p50 of decisions in overload, ms: {_spread([one.during.p50_ms for one in found])}")
    log(f"p99 of decisions in overload, ms: {_spread([one.during.p99_ms for one in found])}")


def _one(prober: Prober, seconds: float) -> Overload:
    closed = prober.closed(CLOSED_CONNECTIONS, CLOSED_S).answered_per_s
    found = overload(prober, SHARE * closed, seconds)
    seen = found.during
    figures = (
        closed, found.before.p99_ms, seen.rate, seen.answered_per_s, seen.p50_ms, seen.p99_ms,
        float(seen.refused), seen.refusal_p99_ms, float(seen.failed), found.recovery_s,
    )  # fmt: skip
    log("   ".join(_cell(value, head) for value, head in zip(figures, HEADS, strict=True)))
    return found


def _cell(value: float | None, head: str) -> str:
    return ("none" if value is None else f"{value:.1f}").rjust(len(head))


def _spread(figures: Sequence[float | None]) -> str:
    values = sorted(value for value in figures if value is not None)
    if not values:
        return "nothing was decided"
    return f"median {statistics.median(values):.1f}, {values[0]:.1f} to {values[-1]:.1f}"


if __name__ == "__main__":
    main()
