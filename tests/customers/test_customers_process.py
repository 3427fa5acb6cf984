"""The buying process, the features and the forecasts made of it: invariants, and a planted truth."""

from __future__ import annotations

import numpy as np
import pytest
from customer_cases import plant
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.customers.forecast import Corrected, Forecaster, days_until, tilted
from qiance.customers.history import History, history_of
from qiance.customers.process import BuyingProcess, _counts
from qiance.customers.spend import Credibility, SpendModel
from qiance.data.purchases import PurchaseLog
from training.customers.judge import concordance
from training.customers.process import fit_process
from training.customers.settings import ProcessSettings

SPEND = SpendModel(
    Credibility(2_000.0, 500_000.0, 200_000.0), Credibility(7.5, 0.1, 0.05), (0.0, 1.0, 0.0, 0.0, 0.0)
)


def some_process(seed: int) -> BuyingProcess:
    random = np.random.default_rng(seed)
    rate, dropout = random.uniform(1e-3, 0.6, 12), random.uniform(1e-4, 0.3, 12)
    return BuyingProcess(rate, dropout, random.dirichlet(np.ones(12)))


def some_history(seed: int, customers: int = 12) -> History:
    random = np.random.default_rng(seed)
    many = random.integers(1, 9, customers)
    users = np.repeat([f"u{n:02d}" for n in range(customers)], many)
    log = PurchaseLog.of(users, random.integers(0, 120, len(users)), random.uniform(1, 9_000, len(users)))
    return history_of(log, 120, 120)


@given(seed=st.integers(0, 10_000), horizon=st.integers(7, 120))
@settings(max_examples=25, deadline=None)
def test_forecasts_are_distributions(seed: int, horizon: int) -> None:
    process, history = some_process(seed), some_history(seed)
    random = np.random.default_rng(seed + 1)
    corrected = Corrected(random.uniform(0.001, 0.999, len(history)), random.uniform(1e-4, 4.0, len(history)))
    posterior = process.posterior(history)
    found = Forecaster(process, SPEND, horizon).forecast(history, posterior, corrected)
    assert np.all(np.diff(found.within, axis=1) >= -1e-12), "who has come back does not go away again"
    assert found.within.min() >= 0
    assert np.allclose(found.within[:, -1], 1 - found.churn), "the curve ends where the churn says"
    assert np.all((found.alive >= 0) & (found.alive <= 1 + 1e-12))
    assert np.all(found.purchases >= 1 - found.churn), "who buys, buys at least once"
    assert np.all((found.value_low <= found.value_high) & (found.value_low >= 0))
    assert np.all((found.value_low <= found.value) & (found.value <= found.value_high))
    assert np.all(found.next_low <= found.next_median)
    assert np.all(found.next_median <= found.next_high)


@given(seed=st.integers(0, 10_000), days=st.floats(1, 400))
@settings(max_examples=25, deadline=None)
def test_counts_are_probabilities_with_the_mean_of_the_formula(seed: int, days: float) -> None:
    process = some_process(seed)
    chances = _counts(process.rate, process.dropout, days, 900)
    assert chances.min() >= 0
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-8)
    mean = process.rate / process.dropout * -np.expm1(-process.dropout * days)
    assert np.allclose(chances @ np.arange(901), mean, rtol=1e-6)
    none = 1 - process.rate / (process.rate + process.dropout) * -np.expm1(
        -(process.rate + process.dropout) * days
    )
    assert np.allclose(chances[:, 0], none)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_tilt_has_the_mean_it_was_asked_for(seed: int) -> None:
    random = np.random.default_rng(seed)
    given_ = random.dirichlet(np.ones(40) * 0.3, 20)
    excess = random.uniform(0.01, 20, 20)
    chances = tilted(given_, excess)
    assert np.allclose(chances.sum(axis=1), 1)
    assert np.allclose(chances @ np.arange(40), excess, rtol=1e-4)


def test_planted_rates_are_found() -> None:
    planted = plant(1_500, 300, 3)
    history = history_of(planted.log, 300, 300)
    process = fit_process(history, ProcessSettings(rates=20, dropouts=10, turns=120))
    posterior = process.posterior(history)
    mean = float(process.weight @ process.rate)
    assert mean == pytest.approx(planted.rate.mean(), rel=0.12)
    alive = posterior.alive.sum(axis=1)
    known = alive > 0.5
    own = (posterior.alive @ process.rate / alive)[known]
    assert np.corrcoef(own, planted.rate[known])[0, 1] > 0.8
    recent = history.age - history.last < 20
    assert alive[recent].mean() > 0.8 > alive[~recent].mean()


def test_history_is_what_was_known() -> None:
    log = PurchaseLog.of(
        ["b", "a", "b", "b", "a", "a"],
        np.array([5, 2, 5, 30, 9, 40]),
        np.array([1.0, 2.0, 3.0, 4.0, 6.0, 9.0]),
    )
    history = history_of(log, 20, 20)
    assert history.user_ids.tolist() == ["a", "b"]
    assert history.repeats.tolist() == [1, 0]
    assert history.last.tolist() == [7, 0]
    assert history.age.tolist() == [17, 14]
    assert history.mean_value.tolist() == [4, 4], "two rows of a day are one purchase"
    assert history.recent[:, -1].tolist() == [0, 0]
    assert history.gaps[0].tolist()[:3] == [7, 7, 7]
    assert np.isnan(history.gaps[1]).all()


def test_credibility_lies_between_the_own_mean_and_everybodys() -> None:
    one = Credibility(100.0, 50.0, 25.0)
    found = one.estimate(np.array([200.0, 200.0, 200.0]), np.array([1.0, 10.0, 1e6]))
    assert found == pytest.approx([133.33, 183.33, 200.0], rel=1e-3)
    assert Credibility(100.0, 50.0, 0.0).estimate(np.array([9.0]), np.array([5.0])) == pytest.approx([100.0])


def test_days_beyond_the_horizon_are_infinite() -> None:
    within = np.array([[0.1, 0.4, 0.6], [0.0, 0.1, 0.2]])
    assert days_until(within, 0.5).tolist() == [3.0, np.inf]


def test_concordance_counts_pairs() -> None:
    random = np.random.default_rng(0)
    time, score = random.integers(0, 9, 60).astype(float), random.integers(0, 5, 60).astype(float)
    above = equal = pairs = 0.0
    for i in range(60):
        for j in range(60):
            if time[i] < time[j]:
                pairs += 1
                above += score[i] < score[j]
                equal += score[i] == score[j]
    assert concordance(time, score) == pytest.approx((above + equal / 2) / pairs)
    assert concordance(time, np.ones(60)) == 0.5
