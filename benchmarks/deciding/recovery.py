"""Twice a rate, between the same rate before and after: what is left of the answers, and for how long.

The rate before is the control. A largest rate is at the edge, and a shared machine's speed changes: where the
rate was not clean before the overload either, what came after says nothing about the overload.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.deciding.rates import LIMIT_MS, STEP_BACK, Prober
from benchmarks.deciding.tally import Tally
from benchmarks.harness import log

LEAST = 0.6  # of the first rate; below it no further control is tried


@dataclass(frozen=True)
class Overload:
    """The three phases of one run, each as long as the others."""

    before: Tally
    during: Tally
    after: Tally

    @property
    def is_judged(self) -> bool:
        """Whether the rate was held before the overload, from its first second to its last."""
        return self.before.clean(LIMIT_MS)

    @property
    def recovery_s(self) -> float | None:
        """Seconds after the overload from which on the rate was held again; None if that was never."""
        return self.after.settled_after(LIMIT_MS)


def overload(prober: Prober, rate: float, seconds: float) -> Overload:
    """The rate, twice the rate, and the rate again, without a pause."""
    phases = ((rate, seconds), (2 * rate, seconds), (rate, seconds))
    return Overload(*prober.phases(*phases, give_up_s=None).phases)


def overloads(prober: Prober, rate: float, seconds: float, count: int) -> list[Overload]:
    """Overloads from `rate` down, until `count` of them can be judged; all that were tried.

    After one that cannot, the rate is lower, and stays so, down to `LEAST` of the first.
    """
    tried, least = list[Overload](), LEAST * rate
    while sum(one.is_judged for one in tried) < count and rate >= least:
        tried.append(overload(prober, rate, seconds))
        log(f"  {describe(tried[-1])}")
        if not tried[-1].is_judged:
            rate *= STEP_BACK
    return tried


def describe(one: Overload) -> str:
    """One line: each phase's p99, and the recovery."""
    p99 = (_or_none(phase.p99_ms) for phase in (one.before, one.during, one.after))
    before, during, after = p99
    line = (
        f"{one.before.rate:.0f}/s, twice that, and again: p99 {before}, {during}, {after} ms, "
        f"refused {one.before.refused}, {one.during.refused}, {one.after.refused}, "
    )
    return line + (f"clean after s: {_or_none(one.recovery_s)}" if one.is_judged else "not clean before")


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"
