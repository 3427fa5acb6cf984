"""Learning to plan from a log: `python -m benchmarks.rling.offline [--smoke | --quick]`.

A cautious rule runs promotions with exploration and is logged, once per seed. From half of the episodes
every algorithm of `qiance train planning-offline` learns; by the other half each policy is judged: what it
would bring more than the running one, doubly robust, and whether the gate lets it through. Then all of them
act in the true environment on episodes of their own, the same for all. `truth` is the mean return more than
the running policy's with the same exploration, which is what was estimated; `alone` is the return without
exploration. `constant` is the best of a grid, tuned by acting, which a log does not allow: what there is to
gain. Where the published users of SalesPromotion are at hand, imitation and MARWIL learn there too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Args, emit, log, median_of, parse
from benchmarks.rling.learning import over_seeds
from rllib.explore import EXPLORE, Exploring, record
from rllib.offline import OfflineTrained, train_offline
from rllib.offline_algorithms import OfflineSettings
from rllib.plan_evaluate import best_constant, returns_of
from rllib.tasks import Task, task_of
from serve.launch import LocalCluster

DATA = ROOT.parent / "shared" / "data" / "neorl_sales_promotion"
# Apart from the seeds of logs, and of training.
_TUNING_SEED, _TRUTH_SEED = 1_000_000, 5_000_000
_ALGORITHMS = {"promotion": ("bc", "marwil", "iql", "cql", "model"), "sales": ("bc", "marwil")}


@dataclass(frozen=True)
class Sizes:
    """Of a mode. episodes: of a log. truth: episodes in which policies act; settings: of every algorithm."""

    seeds: int
    episodes: int
    truth: int
    settings: OfflineSettings


SMOKE = Sizes(1, 80, 100, OfflineSettings(iterations=1, updates=5, checkpoint_every=1))
QUICK = Sizes(3, 4_000, 4_000, OfflineSettings(iterations=10, checkpoint_every=10))
FULL = Sizes(5, 10_000, 10_000, OfflineSettings(iterations=30, checkpoint_every=30))


@dataclass(frozen=True)
class Run:
    """An algorithm on the log of a seed. truth: gain with exploration; alone: return without."""

    trained: OfflineTrained
    truth: float
    alone: float


def runs_of(task: Task, sizes: Sizes, seeds: Sequence[int]) -> tuple[dict[str, list[Run]], list[float]]:
    """Runs by algorithm, one per seed, and the returns of the running policy by seed of the truth."""
    wide, running = EXPLORE[task.name], Exploring(task, task.cautious(), EXPLORE[task.name])
    found: dict[str, list[Run]] = {name: [] for name in _ALGORITHMS[task.name]}
    env, base = task.make(sizes.truth), []
    for seed in seeds:
        logged = record(running, sizes.episodes, seed)
        truth = record(running, sizes.truth, _TRUTH_SEED + seed).reward.sum(axis=1).mean()
        base.append(float(truth))
        for name, runs in found.items():
            settings = replace(sizes.settings, algorithm=name, seed=seed)
            with tempfile.TemporaryDirectory() as folder:
                trained = train_offline(logged, task, out=Path(folder), settings=settings)
            acted = record(Exploring(task, trained.policy, wide), sizes.truth, _TRUTH_SEED + seed)
            alone = returns_of(env, trained.policy, _TRUTH_SEED + seed).mean()
            runs.append(Run(trained, float(acted.reward.sum(axis=1).mean() - truth), float(alone)))
            gain, verdict = trained.judged.improvements["dr"], trained.judged.gate
            log(
                f"{task.name}, seed {seed}, {name}: estimated {gain.value:+.4g} [{gain.low:+.4g}, "
                f"{gain.high:+.4g}], true {runs[-1].truth:+.4g}, alone {alone:.4g}; {verdict.reason}"
            )
    return found, base


def figures_of(runs: Mapping[str, Sequence[Run]], base: Sequence[float]) -> dict[str, Any]:
    """By algorithm, over seeds: what was estimated, what was true, and what the gate did."""
    return {"running": over_seeds(base)} | {name: _summary(of) for name, of in runs.items()}


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    gains = [run.trained.judged.improvements["dr"] for run in runs]
    sizes = [gain.diagnostics.effective_sample_size for gain in gains]
    covered = [g.low <= run.truth <= g.high for g, run in zip(gains, runs, strict=True)]
    promised = [run.trained.promise.gain for run in runs if run.trained.promise is not None]
    return ({"promised": over_seeds(promised)} if promised else {}) | {
        "estimate": over_seeds([gain.value for gain in gains]),
        "half_width": float(np.mean([(gain.high - gain.low) / 2 for gain in gains])),
        "truth": over_seeds([run.truth for run in runs]),
        "alone": over_seeds([run.alone for run in runs]),
        "effective_episodes": float(np.median(sizes)),
        "let_through": sum(run.trained.judged.gate.passed for run in runs),
        "covered": sum(covered),
        "seconds": median_of([run.trained.seconds for run in runs]),
    }


def rules_of(task: Task, sizes: Sizes, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns of rules without exploration on the same episodes."""
    constant = best_constant(task, sizes.truth, _TUNING_SEED)
    env = task.make(sizes.truth)
    rules = {"cautious": task.cautious(), "constant": constant, **task.rules()}
    return {
        name: over_seeds([float(returns_of(env, rule, _TRUTH_SEED + seed).mean()) for seed in seeds])
        for name, rule in rules.items()
    }


def measure(args: Args) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and protocol."""
    sizes = args.pick(smoke=SMOKE, quick=QUICK, full=FULL)
    seeds = range(args.seed, args.seed + sizes.seeds)
    tasks = [task_of({"environment": "promotion"})]
    if DATA.is_dir():
        tasks.append(task_of({"environment": "sales", "data": str(DATA)}))
    else:
        log("the published users of SalesPromotion are not here: their part is left out")
    figures: dict[str, Any] = {}
    with LocalCluster(proxy="plain"):
        for task in tasks:
            runs, base = runs_of(task, sizes, seeds)
            figures[task.name] = figures_of(runs, base) | {"rules": rules_of(task, sizes, seeds)}
    for name, own in figures.items():
        _print(name, own)
    protocol = {
        "seeds": sizes.seeds,
        "intervals": "90 %: of estimates over episodes, of means Student t over seeds",
        "episodes": sizes.episodes,
        "truth_episodes": sizes.truth,
        "explore": EXPLORE,
        "settings": asdict(sizes.settings),
    }
    return figures, protocol


def _print(name: str, figures: Mapping[str, Any]) -> None:
    log(f"{name}: the running policy returns {figures['running']['value']:.4g} with exploration")
    log(
        "| learned by | estimated gain | true gain | effective episodes | let through | without exploration |"
    )
    log("| --- | --- | --- | --- | --- | --- |")
    for algorithm in _ALGORITHMS[name]:
        of = figures[algorithm]
        log(
            f"| {algorithm} | {of['estimate']['value']:+.4g} ± {of['half_width']:.2g} | "
            f"{of['truth']['value']:+.4g} | {of['effective_episodes']:,.0f} | {of['let_through']} | "
            f"{of['alone']['value']:.4g} |"
        )
        if "promised" in of:
            log(f"| (by its own model) | {of['promised']['value']:+.4g} | | | | |")
    log(", ".join(f"{rule} {value['value']:.4g}" for rule, value in figures["rules"].items()))


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Planning policies learned from a log, estimated from it, and the truth beside.")
    figures, protocol = measure(args)
    emit("offline", args, figures, {}, protocol)


if __name__ == "__main__":
    main()
