"""Strategies proposed for segments of the simulated market, at equal budgets, in the market's truth.

Every seed is another population, another log of random strategies on small groups, and another model. For
each segment, goal and budget per member, each contender names one strategy; what the budget would bring by
it, in expectation, is its gain. `python -m benchmarks.copying.proposing [--smoke | --quick] [--seed N]`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.copying.strategy_world import BRIEF, GOALS, ITEM, StrategyWorld, random_vectors
from benchmarks.harness import Args, Mode, emit, log, parse
from qiance.domain import Objective
from qiance.evaluate.ab import mean_interval
from qiance.proposer.outcome import reached
from qiance.proposer.proposer import Proposer, Request
from qiance.proposer.vector import Floats, Vectors
from training.propose.fit import ProposerSettings, VaeSettings, fit_proposer
from training.propose.log import StrategyLog

OURS = "vae"
ABLATION: dict[str, dict[str, Any]] = {
    "vae_observed": {"level": "observed"},
    "vae_weighted": {"steer": "weight"},
    "vae_observed_weighted": {"level": "observed", "steer": "weight"},
}
BUDGET_QUANTILES = (0.25, 0.75)
RANDOM_DRAWS = 4


def measure(args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures, what stands beside them, protocol."""
    seeds = args.pick(smoke=2, quick=10, full=20)
    sizes = args.pick(smoke=(4, 15, 800), quick=(10, 30, 2_500), full=(24, 40, 6_000))
    runs, started = [], time.monotonic()
    for number in range(seeds):
        runs.append(one_seed(args.seed * 1_000 + number, sizes, args))
        seen = ", ".join(f"{name} {gains[Objective.MARGIN]:.1f}" for name, gains in runs[-1].items())
        log(f"seed {number + 1} of {seeds}, {time.monotonic() - started:.0f} s; margin: {seen}")
    names = [name for name in runs[0] if name != OURS]
    figures: dict[str, Any] = {"seconds": time.monotonic() - started}
    for goal in GOALS:
        ours = np.array([run[OURS][goal] for run in runs])
        figures[goal.value] = {OURS: float(ours.mean())} | {
            f"vs_{name}": against(ours, np.array([run[name][goal] for run in runs])) for name in names
        }
    beside = {
        name: {goal.value: float(np.mean([run[name][goal] for run in runs])) for goal in GOALS}
        for name in names
    }
    protocol = {
        "populations": seeds,
        "segments": sizes[0],
        "trials": sizes[0] * sizes[1],
        "users": sizes[2],
        "budgets": f"per member: quantiles {BUDGET_QUANTILES} of what a logged trial cost per user",
        "gain": "expected per member of the segment in the market's truth, mean over segments and budgets",
        "interval": "95 % of the paired difference over populations, Student-t",
    }
    return figures, beside, protocol


def against(ours: Floats, theirs: Floats) -> dict[str, float]:
    """Ratio of the means and the paired difference with its interval."""
    found = mean_interval(ours - theirs)
    ratio = float(ours.mean() / theirs.mean())
    return {"ratio": ratio, "difference": found.value, "low": found.low, "high": found.high}


def one_seed(seed: int, sizes: tuple[int, int, int], args: Args) -> dict[str, dict[Objective, float]]:
    """Mean gain in truth of every contender by goal."""
    segments, per_segment, users = sizes
    world = StrategyWorld(seed, segments, users)
    tried, errors = world.log(per_segment)
    vae = VaeSettings(seed=seed, epochs=args.pick(smoke=20, quick=300, full=300))
    settings = {OURS: ProposerSettings(vae)}
    if args.mode is not Mode.SMOKE:
        settings |= {name: ProposerSettings(vae, **own) for name, own in ABLATION.items()}
    models = {name: proposer_of(tried, own) for name, own in settings.items()}
    gains: dict[str, dict[Objective, list[float]]] = {}
    for budget in np.quantile(tried.cost / tried.users, BUDGET_QUANTILES):
        for goal in GOALS:
            for segment in range(segments):
                brief = replace(BRIEF, objective=goal)
                request = Request(world.features[segment], ITEM, brief, float(budget))
                for name, chosen in contenders(models, tried, errors, segment, request, seed).items():
                    truths = [world.truth(segment, chosen, row) for row in range(len(chosen))]
                    mean = float(np.mean([truth.gain(goal, request.budget) for truth in truths]))
                    gains.setdefault(name, {}).setdefault(goal, []).append(mean)
    return {name: {goal: float(np.mean(own[goal])) for goal in GOALS} for name, own in gains.items()}


def proposer_of(tried: StrategyLog, settings: ProposerSettings) -> Proposer:
    """Fitted on the whole log."""
    return Proposer(fit_proposer(tried, settings), tried.names, tried.segments, settings.asked)


def contenders(
    models: Mapping[str, Proposer],
    tried: StrategyLog,
    errors: Floats,
    segment: int,
    request: Request,
    seed: int,
) -> dict[str, Vectors]:
    """What each would do: one strategy, or several where it chooses by chance and the mean counts."""
    rng = np.random.default_rng([seed, segment, int(request.budget * 100)])
    ours = models[OURS]
    drawn = ours.draw(request, seed)
    some = np.arange(RANDOM_DRAWS)
    guesses = random_vectors(len(drawn), rng)
    own = np.flatnonzero(tried.segment == f"s{segment:02d}")
    goal = request.brief.objective
    reach = reached(tried.cost[own] / tried.users[own], request.budget)
    observed = tried.outcomes[goal][own] / tried.users[own]
    shrunk = shrink(observed, errors[own, GOALS.index(goal)])
    return {
        OURS: ours.choose(request, drawn).vectors,
        "vae_unranked": drawn.take(some),
        **{name: model.propose(request, seed).vectors for name, model in models.items() if name != OURS},
        "random": guesses.take(some),
        "best_of_log": tried.vectors.take(own[[np.argmax(observed * reach)]]),
        "shrunk_best_of_log": tried.vectors.take(own[[np.argmax(shrunk * reach)]]),
        "ranked_log": ours.choose(request, tried.vectors.take(own)).vectors,
        "ranked_random": ours.choose(request, guesses).vectors,
    }


def shrink(means: Floats, errors: Floats) -> Floats:
    """Towards the segment's mean, by normal-normal empirical Bayes with the variance between by moments.

    Source: Morris, J. Am. Stat. Assoc. 78 (1983), 47-55.
    """
    between = max(float(means.var(ddof=1) - np.mean(errors**2)), 0.0)
    share = between / (between + np.maximum(errors, 1e-9) ** 2)
    return np.asarray(means.mean() + share * (means - means.mean()))


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Strategies proposed for segments at equal budgets, in the simulated market's truth.")
    emit("proposing", args, *measure(args))


if __name__ == "__main__":
    main()
