"""Bandits in the simulated market, side by side: `python -m benchmarks.rling.bandits [--smoke | --quick]`.

Every agent meets the same users, uniforms and chance. Value: expected margin over leaving everybody alone,
per 1,000 decisions; regret: against the best admissible action in the state that the market is in, which no
agent can reach, since it knows the market. `best_constant` knows which arm to take. All agents choose
uniformly until the first window closes, and all have the same floor of exploration. `lin_ts_at_once` learns
from outcomes as they come, `lin_ts_half` has half the width, `epsilon_greedy_10` explores with 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.harness import Args, emit, log, parse
from qiance.bandits import Bandit, Learn
from qiance.bandits.contest import Agent, Contender, Result, bandit_of, compare, contenders, interval_of
from qiance.bandits.play import Player, Schedule
from qiance.bandits.shop import Shop, made_up_shop
from training.bandit.fit import FitSettings, fit_network

EPSILON = 0.02
_SMOKE = (Schedule(days=10, per_day=200), 2)
_QUICK = (Schedule(days=60, per_day=1_000), 5)
_FULL = (Schedule(days=90, per_day=2_000), 20)


def variants(shop: Shop, schedule: Schedule) -> dict[str, Contender]:
    """One setting changed at a time."""

    def changed(agent: Agent, **settings: Any) -> Contender:
        def make() -> Player:
            usual = bandit_of(agent, shop, schedule.window, EPSILON)
            told = replace(usual.settings, **settings)
            moments = {"centre": usual.centre, "scale": usual.scale}
            return Bandit(usual.features, usual.arms, told, cost=usual.cost, **moments)

        return Contender(make)

    return {
        "lin-ts-at-once": changed(Agent.LIN_TS, learn=Learn.OUTCOME),
        "lin-ts-half": changed(Agent.LIN_TS, width=0.5),
        "epsilon-greedy-10": changed(Agent.EPSILON_GREEDY, epsilon=0.1),
    }


def measure(args: Args) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and protocol."""
    schedule, number = args.pick(smoke=_SMOKE, quick=_QUICK, full=_FULL)
    seeds, shop = range(args.seed, args.seed + number), made_up_shop()
    found = contenders(shop, schedule, EPSILON, fit_network) | variants(shop, schedule)
    last = [""]

    def tell(share: float, text: str) -> None:
        name = text.partition(":")[0]
        if name != last[0]:
            last[0] = name
            log(f"{share:4.0%} {name}")

    results = compare(shop, found, schedule, seeds, tell)
    _print(results)
    greedy = results[Agent.EPSILON_GREEDY].value
    figures = {
        name.replace("-", "_"): {
            "value": asdict(interval_of(of.value)),
            "over_epsilon_greedy": asdict(interval_of(of.value - greedy)),
            "late": asdict(interval_of(of.late)),
            "regret": asdict(interval_of(of.regret)),
        }
        for name, of in results.items()
    }
    protocol = {
        "unit": "minor units per 1,000 decisions, simulated",
        "intervals": "90 %, Student t over seeds",
        "seeds": number,
        "schedule": asdict(schedule),
        "users": len(shop.known),
        "arms": len(shop.arms),
        "features": list(shop.features),
        "epsilon": EPSILON,
        "network": asdict(FitSettings()),
    }
    return figures, protocol


def _print(results: dict[str, Result]) -> None:
    log("| agent | value | 90 % interval | last quarter | regret |")
    log("| --- | --- | --- | --- | --- |")
    for name, of in sorted(results.items(), key=lambda item: -float(np.mean(item[1].value))):
        mean = interval_of(of.value)
        bounds = f"{mean.low:,.0f} to {mean.high:,.0f}"
        log(f"| {name} | {mean.value:,.0f} | {bounds} | {of.late.mean():,.0f} | {of.regret.mean():,.0f} |")


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Contextual bandits in the simulated market, side by side.")
    figures, protocol = measure(args)
    emit("bandits", args, figures, {}, protocol)


if __name__ == "__main__":
    main()
