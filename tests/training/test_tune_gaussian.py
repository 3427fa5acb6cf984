"""Draws by a Gaussian process: they learn, repeat, spread over workers, and stay in the space."""

from __future__ import annotations

import math

import numpy as np
import optuna
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from training.tune.gaussian import SeededGaussian

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
    return optuna.create_study(sampler=SeededGaussian(seed, startup=4), direction=direction)


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
    parts.sampler = SeededGaussian(5, startup=4)  # as another process has it
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
    study = study_of(2)
    for _ in range(6):
        study.tell(study.ask(fixed_distributions=SPACE), 0.7)
    drawn = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(drawn)) == 6


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=8), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_draws_stay_in_the_space(values: list[float], seed: int) -> None:
    study = study_of(seed)
    for value in values:
        study.tell(study.ask(fixed_distributions=SPACE), value)
    drawn = study.ask(fixed_distributions=SPACE).params
    for name, one in SPACE.items():
        assert one._contains(one.to_internal_repr(drawn[name])), name
