"""Allocation under budget, cap and margin floor, from log to spent budget, against the best in hindsight.

Five response families, frozen before our learner was written (allocating/families.py). Everybody gets the
same 20,000 logged rows, the same arrivals, budget, cap and guard. The oracle is the linear program on the
true expected responses of the whole day, drift and later visits included: it knows what nobody can.

`small_log` has what risk-adjusted values gain where little is known: the same days with 2,000 logged rows,
ours beside its own values without shrinking and beside one fit.

`overspend` is 0 by construction, for the guard reserves the worst case of everybody's offers. What ours does
by itself is in `guard_refusals`, the share of its offers that the guard had to take away. Times are medians
over families and seeds; `p99_us_worst` is the worst run's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.allocating import learners
from benchmarks.allocating.choosers import FirstCome, Priced, Score
from benchmarks.allocating.day import (
    BUDGET_SHARE,
    CAP,
    LATE_RATE,
    MARGIN_FLOOR,
    VISITS,
    Day,
    Log,
    draw_day,
    draw_log,
)
from benchmarks.allocating.families import DEPTHS, FAMILIES, Response, strength
from benchmarks.allocating.ours import UNSHRUNKEN, informed, small_log, table_of, valued
from benchmarks.allocating.runner import Batch, Outcome, oracle_value, run_day
from benchmarks.allocating.scale import measure_scale
from benchmarks.allocating.summary import interval
from benchmarks.harness import Args, PeerEnvironment, emit, log, parse, peer_environment
from training.dose import DoseModel, DoseSettings

CAUSALML = ("causalml==0.15.5", "lightgbm==4.6.0")
PEERS = ("causalml_lp", "greedy_roi", "response_score", "article")
TIMED = 1_000


@dataclass(frozen=True)
class Sizes:
    """Of a mode. few: rows of the small log; scale: rows of the allocation whose time is measured."""

    seeds: int
    rows: int
    few: int
    arrivals: int
    trees: int
    epochs: int
    dose: DoseSettings
    scale: int


SMOKE = Sizes(1, 2_000, 500, 500, 20, 1, DoseSettings(members=1, heads=1, epochs=1, trees=20), 600)
QUICK = Sizes(1, 20_000, 2_000, 8_000, 100, 10, DoseSettings(), 100_000)
FULL = Sizes(5, 20_000, 2_000, 20_000, 100, 10, DoseSettings(), 1_000_000)


@dataclass(frozen=True)
class Result:
    """One family and seed: outcomes by name, oracle, and the times of single decisions with their scoring:
    `[2, n]`, by the wall and of the processor."""

    outcomes: Mapping[str, Outcome]
    oracle: float
    seconds: np.ndarray

    def share(self, name: str) -> float:
        """Of the oracle's value."""
        return self.outcomes[name].value / self.oracle


def one(response: Response, seed: int, sizes: Sizes, peer: PeerEnvironment) -> Result:
    """Learn from the log, then live through the day with every chooser."""
    logged, day = draw_log(response, sizes.rows, seed), draw_day(response, sizes.arrivals, seed)
    model = learners.ours(logged, seed, sizes.dose)
    x = learners.queries(logged, day.x)
    choosers = valued(model, logged, day, x, seed, sizes.dose)
    choosers |= informed(model, logged, day, response, x)
    choosers |= _peers(logged, day, x, seed, sizes, peer)
    outcomes = {name: run_day(day, chooser) for name, chooser in choosers.items()}
    return Result(outcomes, oracle_value(day), _seconds(model, logged, day))


def _peers(
    logged: Log, day: Day, x: np.ndarray, seed: int, sizes: Sizes, peer: PeerEnvironment
) -> dict[str, Any]:
    score = table_of(learners.response_model(logged, seed, sizes.trees)(x), logged)
    network = table_of(learners.article(logged, seed, sizes.epochs)(x), logged)
    found: dict[str, Any] = {
        "greedy_roi": Priced(score, logged, day, best_ratio=True),
        "response_score": Score(score, logged, day),
        "article_rate": FirstCome(network, sales=False),
        "article_sales": FirstCome(network, sales=True),
    }
    if peer.python is not None:
        for name, table in learners.causalml(peer.python, logged, x).items():
            found[f"causalml_{name}"] = Priced(table_of(table, logged), logged, day)
    return found


def _seconds(model: DoseModel, logged: Log, day: Day) -> np.ndarray:
    """`[2, TIMED]` of one arrival each: features to choice, scored by the model on the spot."""
    chooser = Priced(lambda batch: model.predict(batch.x), logged, day, ahead=True)
    times = np.empty((2, min(TIMED, len(day))))
    for row in range(times.shape[1]):
        rows = np.array([row])
        most = day.price[rows, None] * DEPTHS
        batch = Batch(
            rows,
            day.user[rows],
            day.x[rows],
            day.price[rows],
            day.margin[rows],
            day.allowed[rows],
            most,
            rows * 0 + CAP,
        )
        wall, own = time.perf_counter(), time.thread_time()
        chooser.choose(batch)
        times[:, row] = time.perf_counter() - wall, time.thread_time() - own
    return times


def best_share(result: Result, peer: str) -> float | None:
    """Of a peer; of its variants the best, chosen by the true result: to the peer's advantage."""
    prefix = peer.removesuffix("_lp")
    shares = [result.share(name) for name in result.outcomes if name.startswith(prefix)]
    return max(shares, default=None)


def family_figures(results: Sequence[Result]) -> dict[str, Any]:
    """Of one family, over its seeds: shares of the oracle with 95 % t intervals, and ratios."""
    ours = [result.share("qiance") for result in results]
    figures: dict[str, Any] = {"oracle_share": float(np.mean(ours)), **interval(ours)}
    for name in ("plain_mean", "point_estimate", "no_look_ahead", "known_response"):
        figures[name] = float(np.mean([result.share(name) for result in results]))
    for name in UNSHRUNKEN:
        ratio = [result.share("qiance") / result.share(name) for result in results]
        figures[f"over_{name}"] = float(np.median(ratio))
    for peer in PEERS:
        shares = [best_share(result, peer) for result in results]
        known = [share for share in shares if share is not None]
        figures[peer] = float(np.mean(known)) if known else None
        ratios = [own / share for own, share in zip(ours, known, strict=False)]
        figures[f"vs_{peer}"] = float(np.median(ratios)) if known else None
    return figures


def summary(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """The worst family counts, for us and for every ratio."""
    families = {name: family_figures(found) for name, found in results.items()}
    every = [result for found in results.values() for result in found]
    own = [result.outcomes["qiance"] for result in every]
    figures: dict[str, Any] = {
        "oracle_share": min(found["oracle_share"] for found in families.values()),
        "overspend": max(outcome.overspend for outcome in own),
        "guard_refusals": _refused(own),
        "violations": sum(outcome.violations for outcome in own),
        **_times([result.seconds for result in every]),
    }
    for peer in PEERS:
        ratios = [found[f"vs_{peer}"] for found in families.values()]
        figures[f"vs_{peer}"] = min(ratios) if None not in ratios else None
        figures[f"vs_{peer}_median"] = float(np.median(ratios)) if None not in ratios else None
    for name in UNSHRUNKEN:
        figures[f"over_{name}"] = float(np.median([found[f"over_{name}"] for found in families.values()]))
    figures["spent"] = float(np.mean([outcome.spent for outcome in own]))
    return figures | {"families": families}


def _refused(outcomes: Sequence[Outcome]) -> float:
    """Share of a chooser's offers that the guard took away."""
    refused = sum(outcome.guard_refusals for outcome in outcomes)
    return refused / max(refused + sum(outcome.offers for outcome in outcomes), 1)


def _times(seconds: Sequence[np.ndarray]) -> dict[str, float]:
    """Microseconds of a decision, median over families and seeds, and the p99 of the worst of them; `cpu`
    leaves out what others' work took."""
    quantiles = [(0, 0.5, "p50_us"), (0, 0.99, "p99_us"), (1, 0.5, "p50_cpu_us"), (1, 0.99, "p99_cpu_us")]
    runs = {
        name: [1e6 * float(np.quantile(found[row], share)) for found in seconds]
        for row, share, name in quantiles
    }
    return {name: float(np.median(found)) for name, found in runs.items()} | {
        "p99_us_worst": max(runs["p99_us"])
    }


def peer_figures(families: Mapping[str, Any]) -> dict[str, dict[str, float] | None]:
    """Each peer's share of the oracle by family."""
    found: dict[str, dict[str, float] | None] = {}
    for peer in PEERS:
        shares = {name: figures[peer] for name, figures in families.items()}
        found[peer] = None if None in shares.values() else shares
    return found


def measure(args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures, peers' shares, and the protocol."""
    sizes = args.pick(smoke=SMOKE, quick=QUICK, full=FULL)
    skipped = PeerEnvironment(None, "left out of --smoke, which does not install")
    peer = skipped if sizes is SMOKE else peer_environment("allocate", CAUSALML)
    signal = {}
    for name, response in FAMILIES.items():
        signal[name] = asdict(strength(response))
        log(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in signal[name].items()))
    results: dict[str, list[Result]] = {name: [] for name in FAMILIES}
    for number in range(sizes.seeds):
        for name, response in FAMILIES.items():
            result = one(response, args.seed + number, sizes, peer)
            results[name].append(result)
            shares = ", ".join(f"{key} {result.share(key):.3f}" for key in result.outcomes)
            log(f"seed {args.seed + number}, {name}: {shares}")
    figures = summary(results)
    log(f"the same with {sizes.few:,} logged rows")
    seeds = range(args.seed, args.seed + sizes.seeds)
    figures["small_log"] = small_log(sizes.few, sizes.arrivals, seeds, sizes.dose)
    log(f"allocating {sizes.scale:,} rows at once")
    figures["scale"] = measure_scale(sizes.scale, args.seed)
    protocol = {
        "families": signal,
        "logged_rows": sizes.rows,
        "arrivals": sizes.arrivals,
        "seeds": sizes.seeds,
        "depths": DEPTHS,
        "budget_share": BUDGET_SHARE,
        "cap": CAP,
        "margin_floor": MARGIN_FLOOR,
        "visits": VISITS,
        "afternoon_rate": LATE_RATE,
        "pacing": "ours for causalml_lp and greedy_roi; own threshold for response_score; none for article",
        "causalml": "best of its S, T and X learners by the true result",
        "qiance": "empirical-Bayes means of the lifts; plain_mean: not shrunken; point_estimate: one fit",
        "missing": peer.missing("causalml_lp"),
    }
    return figures, peer_figures(figures["families"]), protocol


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(
        argv, "Allocation under budget, cap and margin floor, against peers and the best in hindsight."
    )
    figures, peers, protocol = measure(args)
    emit("allocate", args, figures, peers, protocol)


if __name__ == "__main__":
    main()
