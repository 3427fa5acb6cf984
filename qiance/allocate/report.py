"""What came of an allocation, in figures and in sentences that need no knowledge of duality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from qiance.allocate.allocation import LimitUse
from qiance.allocate.ask import Tally
from qiance.allocate.offers import Batch, Ints
from qiance.allocate.spec import AllocationSpec
from qiance.report.figures import number, percent

# By kind of limit: what is counted, what a relaxed limit is called, and how much of it is said to be more.
_UNITS = {
    "budget": ("", "further unit of it", 1.0),
    "daily budget": ("", "further unit of it", 1.0),
    "stock": (" units", "further unit", 1.0),
    "segment floor": (" users", "user that it asks for less", 1.0),
    "margin floor": (" of margin", "unit of margin that it asks for less", 1.0),
    "depth fairness": (" of depth", "0.01 more of spread", 0.01),
}
_SMALL = 1e-9  # of the value: prices below are rounding


class Found(Protocol):
    """What the allocator returns, in memory or over chunks."""

    @property
    def value(self) -> float: ...

    @property
    def bound(self) -> float: ...

    @property
    def gap(self) -> float: ...

    @property
    def limits(self) -> tuple[LimitUse, ...]: ...


def report_of(spec: AllocationSpec, found: Found, tally: Tally, cap: dict[str, int] | None) -> dict[str, Any]:
    """For JSON. rows are users, or users on a day. cap: what `cap_use` says, where there is a cap."""
    without = sum(tally.without.values())
    report: dict[str, Any] = {
        "rows": tally.rows,
        "rows_are": "users" if spec.columns.day is None else "users on a day",
        "value": tally.value,
        "bound": found.bound,
        "gap": found.gap,
        "gap_share": found.gap / abs(found.bound) if found.bound else 0.0,
        "cost": tally.cost,
        "without_offer": {"rows": without, "reasons": dict(sorted(tally.without.items()))},
        "offers": dict(sorted(tally.offers.items(), key=lambda item: -item[1]["given"])),
        "limits": [limit_report(one, tally.value) for one in found.limits],
    }
    if cap is not None and spec.frequency_cap is not None:
        report["frequency_cap"] = {"most": spec.frequency_cap.most, **cap}
    return report


def limit_report(use: LimitUse, value: float) -> dict[str, Any]:
    """A limit: how far it is used, whether it binds, its price, and what that means.

    price: value gained per unit by which it is relaxed. gain_of_a_hundredth: the same for a hundredth of the
    limit, to compare limits by; None for limits of 0.
    """
    binds = use.price * max(abs(use.limit), 1.0) > _SMALL * max(abs(value), 1.0)
    price = use.price if binds else 0.0
    return {
        "name": use.name,
        "kind": use.kind,
        "used": use.used,
        "limit": use.limit,
        "least": use.minimum,
        "share": use.used / use.limit if use.limit else None,
        "binds": binds,
        "price": price,
        "gain_of_a_hundredth": price * abs(use.limit) / 100 if use.limit else None,
        "meaning": meaning(use, price),
    }


def meaning(use: LimitUse, price: float) -> str:
    """One sentence."""
    counted, relaxed, step = _UNITS[use.kind]
    if price:
        return f"binds: each {relaxed} would earn {number(price * step, 3)}"
    left = (use.used - use.limit) if use.minimum else (use.limit - use.used)
    if left <= _SMALL * max(abs(use.limit), 1.0):
        return (
            "just met; asking for less would earn nothing"
            if use.minimum
            else "used up; more would earn nothing"
        )
    if use.minimum:
        return f"does not bind: {number(left)}{counted} more than it asks for"
    return f"does not bind: {number(left)}{counted} left"


def cap_use(batch: Batch, choice: Ints, most: int) -> dict[str, int]:
    """People who share a cap, and how many of them get as many offers as it allows."""
    given = np.bincount(batch["person"], choice > 0)
    return {"people": int(given.size), "at_the_cap": int(np.count_nonzero(given >= most))}


def shown_limits(limits: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those worth a line: of pairs of groups only what binds, or the pair that is furthest apart."""
    pairs = [one for one in limits if one["kind"] == "depth fairness"]
    kept = [one for one in pairs if one["binds"]] or sorted(pairs, key=lambda one: -one["used"])[:1]
    return [one for one in limits if one["kind"] != "depth fairness"] + kept


def summary(report: dict[str, Any]) -> str:
    """What a person wants to know first."""
    rows, without = report["rows"], report["without_offer"]["rows"]
    near = f"lacks {percent(report['gap_share'])} of that" if report["gap_share"] else "is worth that"
    value, cost, bound = (number(report[name], 6) for name in ("value", "cost", "bound"))
    return (
        f"{rows - without:,} of {rows:,} {report['rows_are']} get an offer: value {value} for a cost of "
        f"{cost}. No plan within the limits is worth more than {bound}; this one {near}"
    )


def without_words(report: dict[str, Any]) -> str:
    """Why users get no offer."""
    reasons = report["without_offer"]["reasons"]
    said = ", ".join(f"{count:,}: {reason}" for reason, count in sorted(reasons.items(), key=lambda r: -r[1]))
    return f"Without an offer: {said}" if said else "Everybody gets an offer"
