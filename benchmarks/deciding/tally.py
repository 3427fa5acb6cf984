"""From single requests to figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.deciding.wire import Request

SLICE_S = 0.5
LEAST_REST = 0.25  # of a phase


@dataclass(frozen=True)
class Tally:
    """One phase. Latencies count from when a request was due, in milliseconds; None where there is none.

    accepted: answered with a decision, nothing degraded; refused: 429 or 503 with Retry-After; errors: all
    else, by reason. lag_p99_ms: how late requests were sent. rests: every `SLICE_S`, of the requests that
    were due from so many seconds after the phase's start on: whether all were accepted, and their 99th
    percentile.
    """

    rate: float
    seconds: float
    sent: int
    accepted: int
    refused: int
    errors: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    refusal_p99_ms: float | None
    lag_p99_ms: float | None
    rests: Sequence[tuple[float, bool, float]]

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def answered_per_s(self) -> float:
        """Decisions a second."""
        return self.accepted / self.seconds

    def clean(self, limit_ms: float) -> bool:
        """Every request got a decision, and 99 % of them within `limit_ms`."""
        return bool(self.accepted == self.sent and self.p99_ms is not None and self.p99_ms <= limit_ms)

    def settled_after(self, limit_ms: float) -> float | None:
        """Seconds from the phase's start after which its rest is `clean`; None if that is so for no rest that
        is at least `LEAST_REST` of the phase."""
        settled = (after for after, whole, p99 in self.rests if whole and p99 <= limit_ms)
        after = next(settled, math.inf)
        return after if after <= (1.0 - LEAST_REST) * self.seconds else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest of `values` that at least `share` of them do not exceed (nearest rank)."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def tally(done: Sequence[Request], phases: Sequence[tuple[float, float]], start: float) -> list[Tally]:
    """A tally per phase of the requests that were due in it; `start` is when the first phase began."""
    found = []
    for number, (rate, seconds) in enumerate(phases):
        found.append(_one([r for r in done if r.phase == number], rate, seconds, start))
        start += seconds
    return found


def _one(requests: Sequence[Request], rate: float, seconds: float, start: float) -> Tally:
    accepted = [_ms(r) for r in requests if r.status == 200 and not r.problem]
    refused = [_ms(r) for r in requests if r.status != 200 and not r.problem]
    return Tally(
        rate=rate,
        seconds=seconds,
        sent=len(requests),
        accepted=len(accepted),
        refused=len(refused),
        errors=dict(Counter(r.problem for r in requests if r.problem)),
        p50_ms=percentile(accepted, 0.5),
        p99_ms=percentile(accepted, 0.99),
        max_ms=max(accepted, default=None),
        refusal_p99_ms=percentile(refused, 0.99),
        lag_p99_ms=percentile([1e3 * (r.sent - r.due) for r in requests if r.sent], 0.99),
        rests=_rests(requests, start),
    )


def _rests(requests: Sequence[Request], start: float) -> list[tuple[float, bool, float]]:
    groups: dict[int, list[Request]] = {}
    for request in requests:
        groups.setdefault(int((request.due - start) / SLICE_S), []).append(request)
    found, rest = [], list[Request]()
    for number, group in sorted(groups.items(), reverse=True):
        rest += group
        whole = all(r.status == 200 and not r.problem for r in rest)
        found.append((number * SLICE_S, whole, percentile([_ms(r) for r in rest], 0.99) or 0.0))
    return found[::-1]


def _ms(request: Request) -> float:
    return 1e3 * (request.ended - request.due)
