"""The winner's curse: chosen estimates are too high, posterior means are not."""

from __future__ import annotations

import numpy as np
import pytest

from qiance.allocate import allocate
from qiance.allocate.risk import Prior, lower_bound


def noisy(seed, users=20_000, actions=4):
    rng = np.random.default_rng(seed)
    true = 50 + 30 * rng.standard_normal((users, actions))
    spread = rng.uniform(10, 90, (users, actions))
    true[:, 0], spread[:, 0] = 0, 0
    cost = rng.uniform(40, 60, (users, actions))
    cost[:, 0] = 0
    return true, true + spread * rng.standard_normal(true.shape), spread, cost


def test_posterior_means_do_not_flatter_the_chosen_and_earn_more():
    true, estimate, spread, cost = noisy(0)
    budget, at = 0.2 * cost.max(axis=1).sum(), np.arange(len(true))
    careful = Prior.of(estimate, spread).posterior(estimate, spread)
    plain, shrunken = allocate(estimate, cost, budget), allocate(careful, cost, budget)
    assert estimate[at, plain.choice].sum() > 1.3 * true[at, plain.choice].sum()
    assert careful[at, shrunken.choice].sum() == pytest.approx(true[at, shrunken.choice].sum(), rel=0.03)
    assert true[at, shrunken.choice].sum() > 1.1 * true[at, plain.choice].sum()


def test_certain_values_stay_and_pure_noise_becomes_the_mean():
    rng = np.random.default_rng(1)
    value = rng.standard_normal((5_000, 3))
    np.testing.assert_allclose(Prior.of(value, 0 * value).posterior(value, 0 * value), value)
    noise = np.full(value.shape, 1.2)
    found = Prior.of(value, noise).posterior(value, noise)
    np.testing.assert_allclose(found[:, 1:], np.tile(value.mean(axis=0)[1:], (5_000, 1)))
    np.testing.assert_array_equal(found[:, 0], value[:, 0])


def test_a_lower_bound_leaves_doing_nothing_alone():
    found = lower_bound([[0.0, 10.0]], [[0.0, 3.0]], 1.5)
    np.testing.assert_array_equal(found, [[0.0, 5.5]])


def test_negative_spread_is_refused():
    with pytest.raises(ValueError, match=r"spread: row 0, column 1 is -1\.0; must be ≥ 0"):
        Prior.of([[0.0, 1.0]], [[0.0, -1.0]])
    with pytest.raises(ValueError, match="deviations: -1 is not a number ≥ 0"):
        lower_bound([[0.0, 1.0]], [[0.0, 1.0]], -1)
