"""Whom a brief's plans contact and what they offer, beside random ones and a response score, for equal money.

An effect model learns from a log of old campaigns to the households of The Complete Journey in the simulated
market. For every item and channel the plan is judged that it promises most of, in the market's truth:
`audience`, an advertisement at full price, for whom a shallow tree on predicted uplift picks out;
`promotion`, who × level: audience and depth. `ours` contacts members of the audience by predicted uplift per
cost, as decisions do, and nobody of whom a loss is predicted; `rule_alone` contacts them in any order. Rivals
have the same item, channel and money: `random` contacts anybody, with any admissible depth; `response` those
of the highest predicted conversion, by the same model, with the depth that has the highest. `foresight` is
the same planning with the truth instead of predictions. A gain is the expected margin over doing nothing
after contact cost and discount; intervals are over worlds (log, training, tastes).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.harness import emit, log, parse
from benchmarks.targeting.plans import KINDS, RIVALS, Gains, gains, request_of
from benchmarks.targeting.world import journey, learn
from qiance.domain import Brief, Channel, Money, Objective
from qiance.workspace import Snapshot

CONFIDENCE = 0.95
MONEY = Money.of("100.00")  # of a plan


@dataclass(frozen=True)
class Sizes:
    """Of a mode: worlds, and the log of each."""

    worlds: int
    days: int
    per_day: int
    epochs: int


SMOKE, QUICK, FULL = Sizes(1, 4, 500, 1), Sizes(2, 40, 1_000, 10), Sizes(8, 40, 1_000, 40)


def brief_of(snapshot: Snapshot) -> Brief:
    """More margin from everybody, two weeks from the end of the real log."""
    return Brief(
        "target",
        Objective.MARGIN,
        MONEY,
        snapshot.as_of,
        snapshot.as_of + timedelta(days=14),
        channels=(Channel.EMAIL, Channel.DISPLAY, Channel.MAILER),
    )


def summary(worlds: Sequence[Gains]) -> dict[str, Any]:
    """Totals over plans, the mean over worlds; differences to the rivals with their interval."""
    totals = {who: np.array([world.total(who) for world in worlds]) for who in worlds[0].by}
    found: dict[str, Any] = {
        "plans": sum(len(world.by["ours"]) for world in worlds),
        "gain": {who: float(values.mean()) / 100 for who, values in totals.items()},
    }
    if totals["ours"].sum() > 0:  # a share of next to nothing says nothing
        found["share_of_foresight"] = float(totals["ours"].sum() / totals["foresight"].sum())
    for rival in RIVALS:
        differences = (totals["ours"] - totals[rival]) / 100
        found[f"over_{rival}"] = _interval(differences)
        better = [float((w.by["ours"] > w.by[rival]).mean()) for w in worlds]
        found[f"better_than_{rival}"] = float(np.mean(better))
    return found


def _interval(differences: np.ndarray) -> dict[str, float | None]:
    """Mean over worlds with Student's interval; no interval of a single world."""
    mean, size = float(differences.mean()), len(differences)
    if size < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, size - 1) * differences.std(ddof=1) / np.sqrt(size))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main(argv: Sequence[str] | None = None) -> None:
    """Learn in every world, plan, judge, and print the result."""
    args = parse(argv, "Audiences and promotion plans of a brief in the market's truth, at equal budget.")
    sizes = args.pick(smoke=SMOKE, quick=QUICK, full=FULL)
    found: dict[str, list[Gains]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        snapshot = journey(Path(folder) / "data")
        for world in range(sizes.worlds):
            seed = args.seed + world
            learned = learn(snapshot, seed, sizes.days, sizes.per_day, sizes.epochs, Path(folder) / str(seed))
            request = request_of(snapshot, brief_of(snapshot), seed)
            for kind, worlds in found.items():
                worlds.append(gains(kind, request, learned.predictor, learned.market))
                said = ", ".join(f"{who} {worlds[-1].total(who) / 100:,.0f}" for who in worlds[-1].by)
                log(f"world {seed}, {kind}: {said}")
    figures = {kind: summary(worlds) for kind, worlds in found.items()}
    peers = {rival: {kind: figures[kind]["gain"][rival] for kind in KINDS} for rival in RIVALS}
    protocol = {
        "households": len(snapshot.users),
        "log_rows": sizes.days * sizes.per_day,
        "worlds": sizes.worlds,
        "money_of_a_plan": str(MONEY),
        "gain": "major units, all plans of a world together",
        "interval": f"{CONFIDENCE:.0%}, Student's t over worlds",
    }
    emit("target", args, figures, peers, protocol)


if __name__ == "__main__":
    main()
