"""What the log decides by itself: reward model, belief in it, parameters; identities that must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.evaluate.inference import Units
from qiance.evaluate.ope import BanditLog, clears_gate, difference, estimate
from qiance.evaluate.ope_estimators import terms_of
from qiance.evaluate.ope_marginal import marginal_log
from qiance.evaluate.ope_models import fit_reward_model
from qiance.evaluate.ope_tuning import RowEstimate, belief, least_error

MODELLED = ["dr", "sndr", "greg", "switch-dr", "dros", "mrdr", "auto"]


def world(n, seed, actions=8, greedy=0.9):
    """(log, policy, mean rewards): the policy prefers the best action, the log is uniform."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    coefficients = np.random.default_rng(7).normal(0, 0.8, (3, actions))
    mean = 1 / (1 + np.exp(-(x @ coefficients)))
    action = rng.integers(0, actions, n)
    reward = (rng.random(n) < mean[np.arange(n), action]).astype(float)
    policy = np.full((n, actions), (1 - greedy) / actions)
    policy[np.arange(n), mean.argmax(axis=1)] += greedy
    return BanditLog(action, reward, np.full(n, 1 / actions), context=x), policy, mean


def truth():
    _, policy, mean = world(200_000, 99)
    return float((policy * mean).sum(axis=1).mean())


@pytest.mark.parametrize("name", MODELLED)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_without_residuals_everything_is_the_direct_method(name, seed):
    """A model that is exact for what was logged leaves nothing to correct, whatever the weights."""
    rng = np.random.default_rng(seed)
    policy, model = rng.dirichlet(np.ones(3), 200), rng.normal(0, 5, (200, 3))
    action = rng.integers(0, 3, 200)
    log = BanditLog(action, model[np.arange(200), action], rng.uniform(0.2, 1, 200))
    direct = estimate(log, policy, model, "dm").value
    assert estimate(log, policy, model, name).value == pytest.approx(direct, abs=1e-9)


@pytest.mark.parametrize("name", ["ipw", "clipped-ipw", "snipw", "greg", "mrdr"])
def test_weights_of_one_give_the_mean(name):
    log, _, mean = world(2000, 3)
    uniform = np.full((2000, 8), 1 / 8)
    found = estimate(log, uniform, np.full_like(mean, 0.5), name)
    assert found.value == pytest.approx(log.reward.mean())
    assert found.diagnostics.effective_share == pytest.approx(1.0)
    assert found.diagnostics.overlap == 1.0


def test_greg_does_not_care_about_scale_and_level_of_the_model():
    log, policy, mean = world(1000, 4)
    one = estimate(log, policy, mean, "greg")
    other = estimate(log, policy, 40 * mean - 7, "greg")
    assert other.value == pytest.approx(one.value)
    assert (other.low, other.high) == pytest.approx((one.low, one.high))
    flat = estimate(log, policy, np.full_like(mean, 3.0), "greg")
    plain = estimate(log, policy, estimator="snipw")
    assert (flat.value, flat.std_error) == pytest.approx((plain.value, plain.std_error))


def test_greg_error_is_the_jackknife():
    log, policy, mean = world(60, 4, actions=3, greedy=0.6)
    model = 0.5 * mean + 0.2 * mean**3
    keep = [np.delete(np.arange(60), i) for i in range(60)]
    left_out = [
        estimate(
            BanditLog(log.action[k], log.reward[k], log.propensity[k]), policy[k], model[k], "greg"
        ).value
        for k in keep
    ]
    whole = estimate(log, policy, model, "greg")
    jackknife = np.sqrt(59 / 60 * np.square(np.array(left_out) - whole.value).sum())
    assert whole.std_error == pytest.approx(jackknife, rel=0.03)


def test_shrinkage_goes_from_the_direct_method_to_doubly_robust():
    log, policy, mean = world(500, 5)
    model = 0.5 * mean
    dm, dr = (estimate(log, policy, model, name).value for name in ("dm", "dr"))
    assert estimate(log, policy, model, "dros", parameter=0.0).value == pytest.approx(dm)
    assert estimate(log, policy, model, "dros", parameter=1e12).value == pytest.approx(dr)
    assert estimate(log, policy, model, "switch-dr", parameter=0.0).value == pytest.approx(dm)
    assert estimate(log, policy, model, "switch-dr", parameter=1e9).value == pytest.approx(dr)
    ipw = estimate(log, policy, estimator="ipw").value
    assert estimate(log, policy, estimator="clipped-ipw", parameter=1e9).value == pytest.approx(ipw)


def test_auto_believes_a_right_model_and_not_a_wrong_one():
    target = truth()
    errors = {"auto": [], "greg": []}
    for seed in range(40):
        log, policy, mean = world(1500, seed)
        found = estimate(log, policy, mean)
        assert found.estimator == "auto"
        assert found.centre == "greg"
        assert dict(found.shares)["dm"] == pytest.approx(1 - dict(found.shares)["greg"])
        errors["auto"].append(abs(found.value - target))
        errors["greg"].append(abs(estimate(log, policy, mean, "greg").value - target))
        wrong = estimate(log, policy, np.full_like(mean, 0.2))
        assert dict(wrong.shares)["dm"] < 0.01
    assert np.median(errors["auto"]) < 0.7 * np.median(errors["greg"])


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_auto_is_never_far_worse_than_what_never_believes(gap):
    """A model that is off by anything from nothing to a lot: the worst is a bias of two or three errors."""
    target = truth()
    squares = {"auto": 0.0, "greg": 0.0}
    for seed in range(40):
        log, policy, mean = world(1500, seed)
        model = mean - gap * policy  # too low where the policy goes
        for name in squares:
            squares[name] += (estimate(log, policy, model, name).value - target) ** 2
    assert squares["auto"] < 2.2 * squares["greg"]


def test_auto_covers_and_stays_in_its_interval():
    target, held = truth(), 0
    for seed in range(100):
        log, policy, _ = world(800, seed)
        found = estimate(log, policy)  # the model is fitted here, from the context
        assert found.low <= found.value <= found.high
        held += found.low <= target <= found.high
    assert held >= 90


def test_auto_of_a_difference_blends_both_alike():
    log, policy, mean = world(1500, 6)
    uniform = np.full_like(policy, 1 / 8)
    gain = difference(log, policy, uniform, mean)
    assert gain.estimator == "auto"
    share = dict(gain.shares)["dm"]
    value = [
        (1 - share) * estimate(log, p, mean, "greg").value + share * estimate(log, p, mean, "dm").value
        for p in (policy, uniform)
    ]
    assert gain.baseline_value == pytest.approx(value[1])
    assert gain.value == pytest.approx(value[0] - value[1])
    assert clears_gate(gain).passed
    assert not clears_gate(difference(log, uniform, policy, mean)).passed


def test_few_effective_rows_do_not_rescale_the_model():
    log, policy, mean = world(40, 8)
    assert estimate(log, policy, mean).centre == "sndr"


def test_belief_by_hand():
    units = Units(None, 100)
    noise = np.tile([1.0, -1.0], 50)  # standard error of the difference: √(100/99)/10
    error = np.sqrt(100 / 99) / 10
    base = RowEstimate(0.0, np.zeros(100))
    assert belief(base, RowEstimate(0.0, noise), units) == 1.0
    assert belief(base, RowEstimate(1e-9, noise), units) == pytest.approx(np.sqrt(17) / (1 + np.sqrt(17)))
    assert belief(base, RowEstimate(1.7 * error, noise), units) == pytest.approx(0.514, abs=0.001)
    assert belief(base, RowEstimate(50 * error, noise), units) == pytest.approx(0.0, abs=1e-12)
    assert belief(base, RowEstimate(0.1, np.zeros(100)), units) == 0.0


def test_least_error_weighs_bias_against_variance():
    units = Units(None, 100)
    wild = RowEstimate(0.0, np.tile([10.0, -10.0], 50))  # error 1
    calm = np.tile([1.0, -1.0], 50)  # error 0.1
    assert least_error(wild, [RowEstimate(0.5, calm)], units).value == 0.5
    assert least_error(wild, [RowEstimate(5.0, calm)], units).value == 0.0


def test_tuning_follows_the_model():
    log, policy, mean = world(3000, 9)
    skewed = replace(log, propensity=log.propensity)
    right = estimate(skewed, policy, mean, "dros")
    wrong = estimate(skewed, policy, mean - 0.4 * policy, "dros")
    assert right.parameter < wrong.parameter
    assert right.centre == "dr"
    assert right.low <= right.value <= right.high


def test_the_model_of_the_log_learns_and_has_not_seen_its_row():
    log, _, mean = world(4000, 10)
    model = fit_reward_model(log, 8)
    flat = np.full_like(model, log.reward.mean())
    assert np.square(model - mean).mean() < 0.3 * np.square(flat - mean).mean()
    noise = replace(log, reward=np.random.default_rng(0).normal(size=4000))
    seen = fit_reward_model(noise, 8)[np.arange(4000), log.action]
    assert abs(np.corrcoef(seen, noise.reward)[0, 1]) < 0.08


def test_without_context_the_model_is_the_actions_means():
    rng = np.random.default_rng(1)
    action = rng.integers(0, 4, 8000)
    log = BanditLog(action, action + rng.normal(size=8000), np.full(8000, 0.25))
    model = fit_reward_model(log, 5)
    np.testing.assert_allclose(model[:, :4].mean(axis=0), np.arange(4), atol=0.1)
    # What was never logged has the mean of all.
    assert model[:, 4].mean() == pytest.approx(1.5, abs=0.1)


def test_a_user_is_never_in_both_folds():
    """Each user's reward is his own constant: seen in training, it would be predicted."""
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(60), 20)
    context = np.eye(60)[user]
    reward = rng.normal(size=60)[user]
    log = BanditLog(rng.integers(0, 2, 1200), reward, np.full(1200, 0.5), context=context, cluster=user)
    known = np.square(fit_reward_model(replace(log, cluster=None), 2)[:, 0] - reward).mean()
    held = np.square(fit_reward_model(log, 2)[:, 0] - reward).mean()
    assert known < 0.2 * held


def test_bad_context_is_named():
    log, policy, _ = world(50, 1)
    context = log.context.copy()
    context[3, 1] = np.nan
    with pytest.raises(ValueError, match="context: row 3, column 1 is nan"):
        estimate(replace(log, context=context), policy)


def test_heaviest_rows_and_the_propensity_check():
    log, policy, _ = world(3000, 11)
    row = int(np.flatnonzero(policy[np.arange(3000), log.action] > 0.9)[5])
    odd = log.propensity.copy()
    odd[row] = 1e-4
    health = estimate(replace(log, propensity=odd), policy, estimator="snipw").diagnostics
    assert health.heaviest[0] == (row, pytest.approx(policy[row, log.action[row]] / 1e-4))
    assert any(f"the heaviest row is {row}" in text for text in health.warnings)
    sound = estimate(log, policy, estimator="snipw").diagnostics
    assert sound.mean_weight_low < 1 < sound.mean_weight_high


def test_marginal_weights_vary_less_and_keep_the_truth():
    """200 actions in 4 classes that alone matter."""
    rng = np.random.default_rng(3)
    classes = np.arange(200) % 4
    rate = np.array([0.1, 0.3, 0.5, 0.7])
    policy = np.where(classes == 3, 0.8 / 50, 0.2 / 150)
    logging = rng.dirichlet(np.ones(200))
    truth_value, held, plain, marginal = float(policy @ rate[classes]), 0, [], []
    for _ in range(40):
        action = rng.choice(200, 1000, p=logging)
        reward = (rng.random(1000) < rate[classes[action]]).astype(float)
        log = BanditLog(action, reward, logging[action])
        probs, base = np.tile(policy, (1000, 1)), np.tile(logging, (1000, 1))
        found = estimate(*marginal_log(log, probs, base, classes), estimator="ipw")
        marginal.append(found.value)
        plain.append(estimate(log, probs, estimator="ipw").value)
        held += found.low <= truth_value <= found.high
    assert np.mean(marginal) == pytest.approx(truth_value, abs=4 * np.std(marginal) / np.sqrt(40))
    assert np.std(marginal) < 0.7 * np.std(plain)
    assert held >= 34


def test_marginal_weights_by_hand_and_what_they_refuse():
    log = BanditLog([0, 1, 2], [1.0, 0.0, 2.0], [0.5, 0.25, 0.25])
    base = np.tile([0.5, 0.25, 0.25], (3, 1))
    probs = np.tile([0.2, 0.2, 0.6], (3, 1))
    found, policy = marginal_log(log, probs, base, [[1, 0], [1, 0], [2, 5]])
    np.testing.assert_array_equal(found.action, [0, 0, 1])
    np.testing.assert_allclose(found.propensity, [0.75, 0.75, 0.25])
    np.testing.assert_allclose(policy, np.tile([0.4, 0.6], (3, 1)))
    with pytest.raises(ValueError, match=r"logging_probs: row 1, column 1 is 0.3, .* propensity is 0.25"):
        marginal_log(log, probs, np.tile([0.5, 0.3, 0.2], (3, 1)), [0, 0, 1])
    with pytest.raises(ValueError, match="policy_probs: has 3 columns; must have 2, as embedding"):
        marginal_log(log, probs, base, [0, 1])


def test_mrdr_fits_its_own_model_by_its_own_weights():
    log, policy, mean = world(2000, 12)
    found = estimate(log, policy, estimator="mrdr")
    assert found.estimator == "mrdr"
    assert found.value == pytest.approx(float((policy * mean).sum(axis=1).mean()), abs=4 * found.std_error)
    terms = terms_of(log, policy, None, log.units())
    assert not terms.policy_model.any()


def test_what_belief_costs_and_gains():
    """Errors in units of the unbiased estimator's: docs/evaluation.md quotes these."""
    rng, units = np.random.default_rng(0), Units(None, 2)
    error = {}
    for bias in (0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 6.0):
        squares = 0.0
        for unbiased in rng.normal(size=4000):
            direct = bias + 0.3 * rng.normal()
            gap = np.hypot(1.0, 0.3) * np.array([1.0, -1.0])  # standard error of the difference
            share = belief(RowEstimate(unbiased, np.zeros(2)), RowEstimate(direct, gap), units)
            squares += (unbiased + share * (direct - unbiased)) ** 2
        error[bias] = np.sqrt(squares / 4000)
    assert error[0.0] < 0.6
    assert max(error.values()) < 1.4
    assert error[6.0] < 1.03
