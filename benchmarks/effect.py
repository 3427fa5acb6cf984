"""The response model on public sets, beside what else predicts responses: log loss, calibration, intervals.

Open Bandit (clicks, six logs pooled), The Complete Journey (redemption of a campaign's coupons, spend while
it runs) and Hillstrom (visit, conversion, and spend of those who buy). Users are split, 10 times anew;
features are of before the contact. The difference to a peer is paired by user. `deep` is DCN V2 of
torch-rechub. `vs_deep` compares the rows a second that one network of each goes through; what a whole fit
takes, with its 5 members and their trees, is `fit_s`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from benchmarks.effecting.judge import (
    PEERS,
    Difference,
    best_peer,
    difference,
    peer_figures,
    pooled,
    rate_figures,
    value_figures,
)
from benchmarks.effecting.runs import TEST_SHARE, VALID_SHARE, Run, network_speed, run
from benchmarks.effecting.sets import SETS, VALUE_ONLY, load_sets
from benchmarks.harness import Args, emit, log, median_of, parse, peer_environment

DEEP = ("torch==2.13.0", "torch-rechub==0.9.0")
SPEED_SET = "open_bandit_click"
_NOT_IN_SMOKE = "not installed for --smoke"


def measure(args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures, peers' figures, protocol."""
    every = tuple(SETS)
    sets, missing = load_sets(args.pick(smoke=VALUE_ONLY[:1], quick=every, full=every))
    chosen = list(sets)
    python, missing["deep"] = _deep(args)
    seeds = args.pick(smoke=1, quick=2, full=10)
    sizes = {
        "limit": args.pick(smoke=2_000, quick=12_000, full=10**9),
        "members": args.pick(smoke=2, quick=3, full=5),
    }
    runs = _all_runs(chosen, [args.seed + one for one in range(seeds)], sizes, python)
    figures, peers = _figures(runs, args.seed)
    if "vs_deep" in figures:
        figures["ne_vs_deep"] = figures.pop("vs_deep")
    figures |= _speed(args, python)
    for name in (name for name in chosen if name not in VALUE_ONLY):
        figures[name]["rows_per_s"] = _rows_per_s(args, name)
    peers |= dict.fromkeys((*_sets_missing(missing), *(("deep",) if python is None else ())))
    protocol = {
        "rows": {name: len(sets[name]) for name in chosen},
        "seeds": seeds,
        **sizes,
        "split": f"users: {TEST_SHARE} judged, {VALID_SHARE} for peers to choose by, the rest trains",
        "deep": ", ".join(DEEP),
        "missing": {name: reason for name, reason in missing.items() if reason},
    }
    return figures, peers, protocol


def _sets_missing(missing: Mapping[str, str]) -> list[str]:
    return [name for name, reason in missing.items() if reason and name != "deep"]


def _deep(args: Args) -> tuple[str | None, str]:
    """Interpreter of the deep peer, or why there is none."""
    if args.pick(smoke=True, quick=False, full=False):
        return None, _NOT_IN_SMOKE
    found = peer_environment("effect", DEEP)
    return (None, found.reason) if found.python is None else (str(found.python), "")


def _all_runs(
    names: Sequence[str], seeds: Sequence[int], sizes: Mapping[str, int], python: str | None
) -> dict[str, list[Run]]:
    """Every set and seed, on as many processes as there are cores; in the order asked for."""
    tasks = [(name, seed) for seed in seeds for name in names]
    found = dict[tuple[str, int], Run]()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), _one_thread) as pool:
        waiting = {
            pool.submit(run, name, seed, sizes["limit"], sizes["members"], python): (name, seed)
            for name, seed in tasks
        }
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            name, seed = waiting[done]
            log(f"{len(found)} of {len(tasks)}: {name}, seed {seed}, {_seconds(found[name, seed])}")
    return {name: [found[name, seed] for seed in seeds] for name in names}


def _one_thread() -> None:
    """As many processes as cores: threads beside them would wait for each other."""
    import torch

    torch.set_num_threads(1)


def _seconds(done: Run) -> str:
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in done.seconds.items())


def _figures(runs: Mapping[str, list[Run]], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    figures, by_peer, gaps = dict[str, Any](), {peer: dict[str, Any]() for peer in PEERS}, list[Difference]()
    for name, own in runs.items():
        is_value = name in VALUE_ONLY
        figures[name] = value_figures(own) if is_value else rate_figures(own)
        beside = peer_figures(own, is_value)
        for peer, scores in beside.items():
            by_peer[peer][name] = scores
        if not is_value:
            best = best_peer(beside)
            gaps.append(difference(own, best, seed))
            gap = {"value": gaps[-1].value, "low": gaps[-1].low, "high": gaps[-1].high}
            figures[name] |= {"best_peer": best, "ne_less_best_peer": gap}
    if gaps:
        rates = [name for name in runs if name not in VALUE_ONLY]
        figures["ne_less_best_peer_pooled"] = pooled(gaps)
        figures["coverage90_group"] = _coverage([runs[name] for name in rates])
    figures |= {f"vs_{peer}": _ratio(figures, own, peer, runs) for peer, own in by_peer.items() if own}
    return figures, {peer: own for peer, own in by_peer.items() if own}


def _coverage(runs: Sequence[Sequence[Run]]) -> float:
    """Over all groups of all sets."""
    covered = [one for part in runs for done in part for one in done.covered]
    return sum(covered) / len(covered)


def _ratio(figures: Mapping[str, Any], own: Mapping[str, Any], peer: str, runs: Mapping[str, Any]) -> float:
    """Median over the sets of the peer's NE (RMSE for values) over ours."""
    kinds = {name: "rmse" if name in VALUE_ONLY else "ne" for name in runs}
    return median_of([own[name][kinds[name]] / figures[name][kinds[name]] for name in own])


def _speed(args: Args, python: str | None) -> dict[str, Any]:
    """Rows a second in training; in turns with the deep peer, on one thread each."""
    limit, epochs = args.pick(smoke=2_000, quick=12_000, full=10**9), args.pick(smoke=1, quick=3, full=3)
    turns = args.pick(smoke=1, quick=2, full=3)
    ours, deep = network_speed(SPEED_SET, python, limit, epochs, turns)
    speed = {"rows_per_s": median_of(ours)}
    if deep:
        speed |= {"rows_per_s_deep": median_of(deep), "vs_deep": median_of(ours) / median_of(deep)}
    return speed


def _rows_per_s(args: Args, name: str) -> float:
    """Of one network on one thread, on another set than the peer's."""
    limit, epochs = args.pick(smoke=2_000, quick=12_000, full=10**9), args.pick(smoke=1, quick=1, full=2)
    return median_of(network_speed(name, None, limit, epochs, 1)[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Responses predicted on public sets, beside other models.")
    figures, peers, protocol = measure(args)
    emit("effect", args, figures, peers, protocol)


if __name__ == "__main__":
    main()
