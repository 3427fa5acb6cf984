"""The allocation benchmark: its families are probabilities, its guard holds, its oracle bounds everybody."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.allocate import Result, summary
from benchmarks.allocating.choosers import FirstCome, Priced, Table, plan_batch
from benchmarks.allocating.day import CAP, draw_day, draw_log
from benchmarks.allocating.families import DEPTHS, FAMILIES, draw_features
from benchmarks.allocating.runner import Batch, Outcome, oracle_value, run_day


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_probabilities_and_drift(name: str) -> None:
    x = draw_features(np.random.default_rng(0), 2_000)
    early, late = (FAMILIES[name](x, DEPTHS, np.full(2_000, when)) for when in (False, True))
    assert early.shape == (2_000, 5)
    assert ((early >= 0) & (early <= 1) & (late >= 0) & (late <= 1)).all()
    assert np.abs(early - late).max() > 0.01


def test_the_guard_holds_and_the_oracle_is_above_everybody() -> None:
    response = FAMILIES["contrarian"]
    day, log = draw_day(response, 600, 0), draw_log(response, 2_000, 0)
    plan = response(plan_batch(log).x, DEPTHS, np.zeros(2_000, dtype=np.bool_))
    truth = Table(day.response, plan)
    known, careless = Priced(truth, log, day, ahead=True), FirstCome(truth, sales=False)
    best = oracle_value(day)
    for chooser in (known, careless):
        outcome = run_day(day, chooser)
        # The stream's own lease says no before the guard has to; first come, first served runs into it.
        assert (outcome.guard_refusals == 0) is (chooser is known)
        assert outcome.spent <= 1 + 1e-9
        assert outcome.overspend == pytest.approx(0, abs=1e-9)
        assert outcome.violations == 0
        assert outcome.value <= best


def test_what_is_not_allowed_is_counted_and_not_given() -> None:
    day = draw_day(FAMILIES["logistic"], 300, 1)

    class Deepest(FirstCome):
        def choose(self, batch: Batch) -> np.ndarray:
            return np.full(len(batch.row), 4)

    outcome = run_day(day, Deepest(lambda batch: batch.most, sales=False))
    assert outcome.violations > 0
    assert outcome.offers <= CAP * np.unique(day.user).size
    assert outcome.spent <= 1 + 1e-9


def test_every_offer_that_the_guard_takes_away_is_counted() -> None:
    day = replace(draw_day(FAMILIES["logistic"], 300, 1), budget=0.01)  # not enough for a contact

    class Counted(FirstCome):
        asked = 0

        def choose(self, batch: Batch) -> np.ndarray:
            choice = np.where(np.arange(len(batch.row)) % 2 == 0, batch.allowed[:, 1], 0).astype(np.int64)
            self.asked += int(choice.sum())
            return choice

    chooser = Counted(lambda batch: batch.most, sales=False)
    outcome = run_day(day, chooser)
    assert outcome.offers == 0
    assert outcome.guard_refusals == chooser.asked > 100


def test_figures_have_the_guards_share_and_the_worst_run() -> None:
    outcome = Outcome(10.0, 0.9, 0.0, 0, 2, 8, np.ones(3))
    slow, quick = (np.tile(np.linspace(1e-4, most, 101), (2, 1)) for most in (9e-4, 5e-4))
    days = defaultdict(lambda: outcome, qiance=outcome)  # of every chooser
    runs = [Result(days, 20.0, seconds) for seconds in (quick, quick, slow)]
    figures = summary({"logistic": runs})
    assert figures["guard_refusals"] == pytest.approx(0.2)
    assert figures["p99_us"] == pytest.approx(496)
    assert figures["p99_us_worst"] == pytest.approx(892)
