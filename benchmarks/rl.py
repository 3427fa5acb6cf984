"""Reinforcement learning in the planning environments, against the best constant and the myopic allocator.

Sales: NeoRL's SalesPromotion from its rules, 30-day return of the published 10,000 users, `rounds` times. A
policy sees the agent's four numbers only, and is trained online: offers held for an episode, then PPO from
what was best by user (`rllib/plan_start.py`). The best constant is the best of all offers that the policy
chooses among (0 to 5 coupons, price factors from 0.6 to 0.95), found on episodes of its own. Offline results
on NeoRL's logs are context only.

Market: promotions to segments that tire and stock up, budget, 30 days. `myopic` knows the true responses and
sees the same observation as the learned policy, which turns its dials; `constant` is the best setting of
these dials, tuned on a grid. `market_share_of_oracle` is the learned policy's mean return ÷ the mean of a
bound that no policy can pass, whatever it knows: demand known beforehand, budget relaxed by its shadow price,
each segment solved by dynamic programming (`rllib/hindsight.py`). It is fair in that it is not a policy
chosen by us, and harsh in that part of it cannot be reached without knowing the future; `plan` has the share
of the plan that does know it.

`vs_python_env`: steps a second of the vectorised sales environment ÷ those of the same rules with one user
and one day at a time in plain Python (`benchmarks/rling/plain.py`), in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.harness import ROOT, Args, emit, log, parse
from benchmarks.rling.learning import over_seeds, shares_of_bound, train_seeds
from benchmarks.rling.speed import promotion_speed, sales_speed
from rllib.plan_algorithms import DEFAULTS, PlanningSettings
from rllib.planning import PlanningTrained
from serve.launch import LocalCluster

DATA = ROOT.parent / "shared" / "data" / "neorl_sales_promotion"
PUBLISHED = {"CQL": 740.5, "PLAS": 893.0}


@dataclass(frozen=True)
class Sizes:
    """Of a mode. timed: environments side by side, and alone, whose steps are timed."""

    seeds: int
    sales: PlanningSettings
    market: PlanningSettings
    bound: int
    timed: tuple[int, int]


def _sized(environment: str, iterations: int, num_envs: int, episodes: int, rounds: int) -> PlanningSettings:
    return replace(
        DEFAULTS[environment],
        iterations=iterations,
        num_envs=num_envs,
        episodes=episodes,
        rounds=rounds,
        checkpoint_every=iterations,
    )


SMOKE = Sizes(
    1,
    replace(_sized("sales", 1, 32, 64, 1), hidden=(8,)),
    replace(_sized("promotion", 1, 8, 24, 1), hidden=(8,)),
    1,
    (500, 5),
)
QUICK = Sizes(2, _sized("sales", 20, 1_000, 5_000, 1), _sized("promotion", 25, 256, 256, 1), 4, (10_000, 100))
FULL = Sizes(
    3, _sized("sales", 60, 2_000, 10_000, 3), _sized("promotion", 150, 256, 512, 4), 32, (10_000, 300)
)


def measure(args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures, peers and protocol."""
    sizes = args.pick(smoke=SMOKE, quick=QUICK, full=FULL)
    seeds = range(args.seed, args.seed + sizes.seeds)
    there = DATA.is_dir()
    if not there:
        log("the published users of SalesPromotion are not here: their part is left out")
    speed = sales_speed(DATA, *sizes.timed) if there else None
    figures: dict[str, Any] = {"market_env_steps_per_s": promotion_speed(sizes.timed[0])}
    with LocalCluster(proxy="plain"):
        market = train_seeds({"environment": "promotion"}, sizes.market, seeds)
        sales = (
            train_seeds({"environment": "sales", "data": str(DATA)}, sizes.sales, seeds) if there else None
        )
    figures |= _sales_figures(sales, speed) | _market_figures(market, sizes.bound)
    reason = {} if there else {"python_env": "the published users are not here"}
    protocol = {
        "seeds": sizes.seeds,
        "intervals": "90 %, Student t over training seeds; None with one seed",
        "algorithm": "PPO of RLlib, from the best constant (market) or held offer by user (sales)",
        "sales": asdict(sizes.sales),
        "market": asdict(sizes.market),
        "bound_episodes": sizes.bound,
        "timed": {"side_by_side": sizes.timed[0], "alone": sizes.timed[1]},
        "published_offline": PUBLISHED,
        "missing": reason,
    }
    return figures, {"python_env": None if speed is None else {"steps_per_s": speed["plain"]}}, protocol


def _sales_figures(runs: Sequence[PlanningTrained] | None, speed: dict[str, float] | None) -> dict[str, Any]:
    if runs is None or speed is None:
        return dict.fromkeys(
            ("neorl_return", "constant_best", "vs_constant", "env_steps_per_s", "vs_python_env")
        )
    learned = [run.returns["learned"].value for run in runs]
    constants = [run.returns["constant"].value for run in runs]
    ratios = over_seeds([a / b for a, b in zip(learned, constants, strict=True)])
    returns = over_seeds(learned)
    return {
        "neorl_return": returns["value"],
        "constant_best": sum(constants) / len(constants),
        "vs_constant": ratios["value"],
        "env_steps_per_s": speed["ours"],
        "vs_python_env": speed["ours"] / speed["plain"],
        "sales": {"return": returns, "vs_constant": ratios, "kept": [run.chosen for run in runs]},
    }


def _market_figures(runs: Sequence[PlanningTrained], bound: int) -> dict[str, Any]:
    log(f"bounding {bound} episodes by perfect information")
    shares = shares_of_bound(runs, bound)
    ratios = {
        name: over_seeds([run.returns["learned"].value / run.returns[name].value for run in runs])
        for name in ("myopic", "constant")
    }
    return {
        "market_share_of_oracle": shares["learned"]["value"],
        "vs_myopic": ratios["myopic"]["value"],
        "market": {
            "share_of_oracle": shares,
            "vs_myopic": ratios["myopic"],
            "vs_constant": ratios["constant"],
            "kept": [run.chosen for run in runs],
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Policies learned by reinforcement, against the best constant and a myopic allocator.")
    figures, peers, protocol = measure(args)
    emit("rl", args, figures, peers, protocol)


if __name__ == "__main__":
    main()
