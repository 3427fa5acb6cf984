"""From what was seen of every contender to the result object."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.deciding.contenders import CAPS, Contender, Log
from benchmarks.deciding.rates import LIMIT_MS, Effort, Found
from benchmarks.deciding.recovery import Overload
from benchmarks.deciding.shop import Shop

_PLACE = re.compile(r"\w+://\S+|(?<![\w.])/[\w.+-]+(?:/[\w.+-]+)+")


@dataclass
class Seen:
    """What was seen of one contender, a `Found` per round; reason: why it could not be measured.

    overloads: all that were tried. repeated: runs that were done again, see `rates.MOST_STOLEN`.
    """

    contender: Contender
    found: list[Found] = field(default_factory=list)
    overloads: list[Overload] = field(default_factory=list)
    log_bytes: float | None = None
    transport: str = ""
    reason: str = ""
    repeated: int = 0

    @property
    def rps(self) -> float | None:
        """The rate to compare, median of the rounds; None where nothing was measured."""
        return statistics.median(one.best for one in self.found) if self.found and not self.reason else None

    @property
    def meets(self) -> bool:
        """Whether the limit was met in every round."""
        return all(one.rps is not None for one in self.found)

    def fail(self, reason: str) -> None:
        """Note why there is no figure: one line without addresses and paths, since results are published."""
        self.reason = re.sub(r"\s+", " ", _PLACE.sub("…", reason)).strip()[-400:] or "it ended"

    def check_log(self, accepted: int, before: Log, after: Log) -> None:
        """RuntimeError if a decision was answered that is not in the log; notes bytes per decision."""
        logged = after.decisions - before.decisions
        if logged < accepted:
            raise RuntimeError(f"{accepted} decisions were answered, {logged} are in the log")
        if logged:
            self.log_bytes = (after.bytes - before.bytes) / logged

    def summary(self) -> dict[str, Any]:
        """Figures over the rounds: medians, but the worst 99th percentile."""
        runs = [one.run.phases[0] for one in self.found if one.run is not None]
        return {
            "rps": self.rps,
            "meets_50_ms": self.meets,
            "p50_ms": _median([run.p50_ms for run in runs]),
            "p99_ms": _largest([run.p99_ms for run in runs]),
            "errors": sum(run.failed for run in runs),
            "closed_rps": _median([one.closed_rps for one in self.found]),
            "idle_p50_ms": _median([one.idle_p50_ms for one in self.found]),
            "cpu_ms": _median([one.cpu_ms for one in self.found]),
            "log_bytes": self.log_bytes,
            "machine_speed": _median([one.speed for one in self.found]),
        }


@dataclass(frozen=True)
class Protocol:
    """How it was measured. limit: what the generator sends a second against a server that answers at once."""

    shop: Shop
    effort: Effort
    rounds: int
    limit: float

    def as_dict(self, everybody: Sequence[Seen]) -> dict[str, Any]:
        """For `harness.emit`; the reasons of missing peers included."""
        size, effort, facts = self.shop.size, self.effort, self.shop.facts()
        runs = [one.run for seen in everybody for one in seen.found if one.run is not None]
        return {
            "users": size.users,
            "items": size.items,
            "candidates": size.actions,
            "features": facts["features"],
            "model": facts["model"],
            "limit_ms": LIMIT_MS,
            "arrivals": "open loop, constant rate, timed from when due; users in random order",
            "frequency_caps": len(CAPS),
            "probe_s": effort.probe_s,
            "confirm_s": effort.confirm_s,
            "overload_s": effort.overload_s,
            "rounds": self.rounds,
            "repeated_as_the_host_took_time": sum(seen.repeated for seen in everybody),
            "generator": {
                "limit_rps": self.limit,
                "cpu_share_max": max((run.cpu_share for run in runs), default=None),
                "lag_p99_ms_max": _largest([run.phases[0].lag_p99_ms for run in runs]),
            },
            "transport": {seen.contender.name: seen.transport for seen in everybody if seen.transport},
            "options": {seen.contender.name: seen.contender.about for seen in everybody},
            "missing": {seen.contender.name: seen.reason for seen in everybody if seen.reason},
        }


def figures_of(everybody: Sequence[Seen]) -> dict[str, Any]:
    """The keys that the benchmark promises, then what explains them."""
    by_name = {seen.contender.name: seen for seen in everybody}
    ours, two_hop = by_name["qiance"], by_name["two_hop"]
    mine = ours.summary()
    figures: dict[str, Any] = {"qiance_rps": mine["rps"]}
    figures |= {key: mine[key] for key in ("p50_ms", "p99_ms", "errors")}
    for peer in ("naive_ray", "litserve", "bentoml", "bare"):
        figures[f"vs_{peer}"] = _ratio(ours, by_name[peer])
    # What the ratios were on a machine that kept its speed; the promised ones are of what was measured.
    figures["at_equal_speed"] = {
        f"vs_{peer}": _ratio(ours, by_name[peer], equal_speed=True)
        for peer in ("naive_ray", "litserve", "bentoml", "bare")
    }
    figures["two_hop_rps"] = two_hop.rps
    figures["vs_naive_two_hop"] = _ratio(two_hop, by_name["naive_two_hop"])
    figures |= {key: mine[key] for key in ("meets_50_ms", "closed_rps", "idle_p50_ms", "cpu_ms", "log_bytes")}
    hop = {"overload": _overload(two_hop.overloads)}
    figures["two_hop"] = two_hop.summary() | hop if two_hop.found else None
    figures["overload"] = _overload(ours.overloads)
    return figures


def peers_of(everybody: Sequence[Seen]) -> Mapping[str, Mapping[str, Any] | None]:
    """Each peer's own figures; None where it could not be measured."""
    return {
        seen.contender.name: None if seen.rps is None else seen.summary()
        for seen in everybody
        if not seen.contender.is_ours
    }


def _overload(tried: Sequence[Overload]) -> dict[str, Any] | None:
    """Medians over the overloads that can be judged, sums of what should not be; None if none was tried."""
    if not tried:
        return None
    judged = [one for one in tried if one.is_judged]
    count = {"judged": len(judged), "not_clean_before": len(tried) - len(judged)}
    if not judged:
        return count
    during = [one.during for one in judged]
    recoveries = [math.inf if one.recovery_s is None else one.recovery_s for one in judged]
    usual = statistics.median_high(recoveries)
    return count | {
        "rate": _median([one.rate for one in during]),
        "accepted_rps": _median([one.answered_per_s for one in during]),
        "accepted_p50_ms": _median([one.p50_ms for one in during]),
        "accepted_p99_ms": _median([one.p99_ms for one in during]),
        "accepted_p99_ms_max": _largest([one.p99_ms for one in during]),
        "before_p99_ms": _median([one.before.p99_ms for one in judged]),
        "after_p99_ms": _median([one.after.p99_ms for one in judged]),
        "refused": sum(one.refused for one in during),
        "refusal_p99_ms": _largest([one.refusal_p99_ms for one in during]),
        "errors": sum(one.failed for one in during),
        "error_kinds": dict(sum((Counter(one.errors) for one in during), Counter())),
        "recovery_s": usual if math.isfinite(usual) else None,
        "recovered_within_5_s": sum(seconds <= 5.0 for seconds in recoveries),
        "errors_after": sum(one.after.failed for one in judged),
    }


def _ratio(ours: Seen, theirs: Seen, equal_speed: bool = False) -> float | None:
    if not ours.rps or not theirs.rps:
        return None
    if not equal_speed:
        return ours.rps / theirs.rps
    mine, other = (statistics.median(one.best / one.speed for one in seen.found) for seen in (ours, theirs))
    return mine / other


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
