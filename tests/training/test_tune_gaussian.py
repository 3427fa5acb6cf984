"""Draws by a Gaussian process: they learn, repeat, spread over workers, and stay in the space."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from training.tune.gaussian import SeededGaussian, most_promising

SPACE = {
    "rate": FloatDistribution(0.01, 1.0, log=True),
    "leaves": IntDistribution(3, 64, log=True),
    "share": FloatDistribution(0.4, 1.0),
    "size": CategoricalDistribution(["[32]", "[64, 32]"]),
}


def loss(drawn: dict[str, float | str]) -> float:
    rate, leaves, share = (float(drawn[name]) for name in ("rate", "leaves", "share"))
    far = math.log10(rate / 0.1) ** 2 + 0.3 * math.log(leaves / 3) ** 2 + (1.0 - share) ** 2
    return far + 0.2 * (drawn["size"] == "[32]")


def study_of(seed: int, direction: str = "minimize") -> optuna.study.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=SeededGaussian(SPACE, seed, startup=4), direction=direction)


def swept(study: optuna.study.Study, trials: int, sign: float = 1.0) -> list[float]:
    values = []
    for _ in range(trials):
        trial = study.ask(fixed_distributions=SPACE)
        values.append(loss(trial.params))
        study.tell(trial, sign * values[-1])
    return values


def test_it_learns_from_a_dozen_trials() -> None:
    seeds = range(10)
    runs = [swept(study_of(seed), 12) for seed in seeds]
    random = [
        min(loss(study_of(1_000 + k).ask(SPACE).params) for k in range(12 * s, 12 * s + 12)) for s in seeds
    ]
    best = [min(values) for values in runs]
    assert np.median(best) < 0.4 * np.median(random)
    later = [np.median(values[4:]) for values in runs]
    assert np.median(later) < 0.5 * np.median([np.median(values[:4]) for values in runs])


def test_the_larger_is_the_better_where_the_metric_says_so() -> None:
    least, most = study_of(3), study_of(3, "maximize")
    assert swept(least, 8) == swept(most, 8, sign=-1.0)


def test_an_opened_study_goes_on_as_it_would_have() -> None:
    whole = study_of(5)
    swept(whole, 9)
    parts = study_of(5)
    swept(parts, 6)
    parts.sampler = SeededGaussian(SPACE, 5, startup=4)  # as another process has it
    swept(parts, 3)
    assert [one.params for one in parts.trials] == [one.params for one in whole.trials]
    other = study_of(6)
    swept(other, 9)
    assert other.trials[8].params != whole.trials[8].params


def test_workers_do_not_try_the_same() -> None:
    study = study_of(1)
    swept(study, 8)
    first, second = (study.ask(fixed_distributions=SPACE) for _ in range(2))
    assert first.params != second.params
    assert (first.params["leaves"], first.params["share"]) != (
        second.params["leaves"],
        second.params["share"],
    )


def test_equal_values_say_nothing() -> None:
    places, random = np.random.default_rng(0).random((5, 3)), np.random.default_rng(1)
    drawn = most_promising(places, np.full(5, 0.7), np.empty((0, 3)), random)
    assert drawn.shape == (3,)
    assert ((drawn >= 0) & (drawn <= 1)).all()


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=9),
    st.integers(0, 3),
    st.integers(0, 2**31),
)
def test_draws_stay_in_the_unit_cube(values: list[float], flying: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    tried, waiting = random.random((len(values), 2)), random.random((flying, 2))
    drawn = most_promising(tried, np.array(values), waiting, random)
    assert drawn.shape == (2,)
    assert ((drawn >= 0) & (drawn <= 1)).all()


@pytest.mark.parametrize("worst", [3.0, 1e9])
def test_how_bad_a_failure_was_changes_nothing(worst: float) -> None:
    tried = np.linspace(0, 1, 6)[:, None]
    values = np.array([0.3, 0.2, 0.15, 0.16, 0.21, worst])
    drawn = most_promising(tried, values, np.empty((0, 1)), np.random.default_rng(2))
    assert 0.3 < drawn[0] < 0.65, "between the two best"
