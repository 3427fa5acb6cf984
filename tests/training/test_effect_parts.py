"""Splits, bootstrap weights, interval widths, losses and the linear regression, each by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.domain.prediction import interval_of
from training.effect.linear import fit_linear, linear_prediction
from training.effect.network import EffectNetwork, NetworkConfig, losses, mean_factor
from training.effect.randomness import poisson_weights
from training.effect.served import ServedNetwork
from training.effect.split import split_by_time, split_by_unit
from training.effect.width import coverage, fit_width, make_groups


@given(st.lists(st.integers(0, 40), min_size=60, max_size=200), st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_a_unit_is_in_one_part_and_stays_there(units: list[int], seed: int) -> None:
    ids = np.array([*units, *range(1000, 1200)])
    split = split_by_unit(ids, seed)
    place = split.valid * 1 + split.test * 2
    assert ((split.train.astype(int) + split.valid + split.test) == 1).all()
    for unit in set(units):
        assert len(set(place[ids == unit])) == 1
    more = split_by_unit(np.concatenate([ids, np.arange(5000, 5100)]), seed)
    assert (more.train[: len(ids)] == split.train).all()


def test_shares_are_kept_and_the_seed_matters() -> None:
    ids = np.arange(20_000)
    split = split_by_unit(ids, seed=3, shares=(0.6, 0.1, 0.3))
    assert split.train.mean() == pytest.approx(0.6, abs=0.02)
    assert split.test.mean() == pytest.approx(0.3, abs=0.02)
    assert (split_by_unit(ids, seed=4, shares=(0.6, 0.1, 0.3)).train != split.train).any()


def test_time_runs_from_train_to_test() -> None:
    times = np.random.default_rng(0).integers(0, 50, 1000).astype("datetime64[D]")
    split = split_by_time(times)
    assert times[split.train].max() < times[split.valid].min()
    assert times[split.valid].max() < times[split.test].min()


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.7, 0.2, 0.2), (1.0, 0.0, 0.0)])
def test_bad_shares_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="not three positive fractions that sum to 1"):
        split_by_unit(np.arange(10), 0, shares)


def test_weights_are_poisson_and_belong_to_the_unit() -> None:
    weights = poisson_weights(np.arange(20_000), heads=6, seed=1)
    assert weights.mean() == pytest.approx(1, abs=0.02)
    assert weights.astype(float).var() == pytest.approx(1, abs=0.03)
    assert np.abs(np.corrcoef(weights.T) - np.eye(6)).max() < 0.03
    users = np.arange(20_000) // 5
    shared = poisson_weights(users, heads=2, seed=1)
    assert (shared.reshape(-1, 5, 2) == shared.reshape(-1, 5, 2)[:, :1]).all()
    assert (poisson_weights(users[::-1], heads=2, seed=1)[::-1] == shared).all()
    assert (poisson_weights(users, heads=2, seed=2) != shared).any()


def _draws(spread: float, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Heads that disagree by `spread` around a rate of 0.2 when the truth is 0.2 + shift."""
    random = np.random.default_rng(seed)
    heads = 0.2 + spread * random.normal(size=8)
    labels = (random.random(20_000) < 0.2 + shift).astype(float)
    return np.tile(heads, (20_000, 1)).astype(np.float32), labels


def test_calibrated_heads_are_not_widened_and_biased_ones_are() -> None:
    groups = make_groups({"click": np.zeros(20_000)}, [], seed=0)
    assert all(len(group) >= 500 for group in groups)
    draws, labels = _draws(spread=0.01, shift=0.0)
    assert fit_width({"click": draws}, {"click": labels}, groups).scale == pytest.approx(1, abs=0.5)
    draws, labels = _draws(spread=0.01, shift=0.06)
    width = fit_width({"click": draws}, {"click": labels}, groups)
    assert width.scale > 1.5
    assert coverage(draws, labels, groups, 1.0) < 0.9
    assert coverage(draws, labels, groups, width.scale) >= 0.9


def test_the_scale_widens_the_interval_that_is_served() -> None:
    """For a group so large that noise vanishes, the served interval reaches the true mean."""
    draws, labels = _draws(spread=0.01, shift=0.06)
    groups = make_groups({"click": np.zeros(20_000)}, [], seed=0)
    width = fit_width({"click": draws}, {"click": labels}, groups)
    narrow = interval_of(draws.mean(axis=0), 1.0, 0.9)
    wide = interval_of(draws.mean(axis=0), width.scale, 0.9)
    assert narrow.high < 0.26 < wide.high + 0.01


def test_natural_groups_below_the_least_size_are_left_out() -> None:
    names = np.array(["big"] * 900 + ["small"] * 100)
    with_natural = make_groups({"click": np.arange(1000.0)}, [names], seed=0)
    without = make_groups({"click": np.arange(1000.0)}, [], seed=0)
    assert len(with_natural) == len(without) + 1
    assert len(make_groups({"click": np.arange(30.0)}, [], seed=0)) == 1


def _config(entire_space: bool) -> NetworkConfig:
    return NetworkConfig(
        num_width=3,
        cardinalities=(4,),
        tasks=("click", "conversion", "sales", "margin"),
        entire_space=entire_space,
        heads=2,
        hidden=(8,),
        rates={"click": 0.2, "conversion": 0.05},
        sales_scale=900.0,
        margin_centre=100.0,
        margin_scale=50.0,
    )


@pytest.mark.parametrize("entire_space", [True, False])
def test_losses_agree_with_what_is_served(entire_space: bool) -> None:
    torch.manual_seed(0)
    config = _config(entire_space)
    network = EffectNetwork(config).eval()
    num, cat = torch.randn(64, 3), torch.randint(0, 4, (64, 1))
    served = ServedNetwork(network)(num, cat).detach()
    converted = (torch.rand(64) < 0.5).float()
    labels = {"click": torch.ones(64), "conversion": converted, "sales": converted * 800, "margin": converted}
    found = losses(config, network(num, cat), labels)
    for place, task in enumerate(("click", "conversion")):
        p, y = served[:, :, place], labels[task][:, None]
        expected = -(y * p.log() + (1 - y) * (1 - p).log())
        torch.testing.assert_close(found[task], expected, rtol=1e-4, atol=1e-5)
    assert (found["sales"][converted == 0] == 0).all()
    start = served.mean(dim=(0, 1))
    assert float(start[0]) == pytest.approx(0.2, abs=0.1)
    assert float(start[1]) == pytest.approx(0.05, abs=0.05)


def test_the_entire_space_loss_is_finite_at_extremes() -> None:
    config = _config(True)
    raw = torch.tensor([[[60.0, -60.0, 0.0, 0.0]], [[-60.0, 60.0, 0.0, 0.0]]])
    labels = {name: torch.tensor([1.0, 0.0]) for name in ("click", "conversion")}
    labels |= {name: torch.zeros(2) for name in ("sales", "margin")}
    assert torch.isfinite(losses(config, raw, labels)["conversion"]).all()


def test_an_odd_row_cannot_predict_a_fortune() -> None:
    assert float(mean_factor(torch.tensor(1e6))) < 55
    assert float(mean_factor(torch.tensor(0.1))) == pytest.approx(np.exp(0.1), rel=1e-3)


def test_the_worked_example_is_4_9() -> None:
    """0.1 + 0.05·100 + 0.02·5 − 0.01·30 is 4.9; it is printed elsewhere as 0.65."""
    value = linear_prediction([0.05, 0.02, -0.01], [100, 5, 30], intercept=0.1)
    assert value == pytest.approx(4.9)
    assert value != pytest.approx(0.65)


def test_least_squares_finds_the_line() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(500, 3)) * [1, 100, 0] + [0, 50, 7]
    target = 3 + 2 * features[:, 0] - 0.05 * features[:, 1]
    fit = fit_linear("sales", ("a", "b", "constant"), features, target)
    assert fit.coefficients["a"] == pytest.approx(2)
    assert fit.coefficients["b"] == pytest.approx(-0.05)
    assert fit.intercept == pytest.approx(3)
    assert fit.mse == pytest.approx(0, abs=1e-18)
    assert fit.formula(terms=2) == "sales = 3 - 0.05·b + 2·a + … (1 more terms)"
    np.testing.assert_allclose(fit.predict(features), target)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features: shape \(2,\) does not fit \(3,\) coefficients"):
        linear_prediction([1, 2, 3], [1, 2])
