"""Off-policy evaluation: formulas by hand, coverage, clusters, the gate, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.evaluate.ope import BanditLog, clears_gate, difference, estimate

ALL = ["ipw", "clipped-ipw", "snipw", "dm", "dr", "sndr", "greg", "switch-dr", "dros", "mrdr"]
UNBIASED = ["ipw", "snipw", "dr", "sndr", "greg", "mrdr"]


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class World:
    """A small problem with known rewards: mean[x, a] = sigmoid of a linear score, clicks as rewards."""

    weights: np.ndarray
    logging: np.ndarray
    target: np.ndarray
    epsilon: float | None = None  # greedy logging with this exploration, else softmax without any floor

    @classmethod
    def make(cls, seed=0, actions=5):
        rng = np.random.default_rng(seed)
        return cls(*(rng.normal(0, scale, (3, actions)) for scale in (0.7, 0.8, 1.2)))

    def mean(self, x):
        return 1 / (1 + np.exp(-(x @ self.weights - 1)))

    def target_probs(self, x):
        return softmax(x @ self.target)

    def logging_probs(self, x):
        logits = x @ self.logging
        if self.epsilon is None:
            return softmax(logits)
        actions = logits.shape[1]
        return self.epsilon / actions + (1 - self.epsilon) * np.eye(actions)[logits.argmax(axis=1)]

    def truth(self):
        x = np.random.default_rng(99).normal(size=(400_000, 3))
        return float((self.target_probs(x) * self.mean(x)).sum(axis=1).mean())

    def sample(self, n, seed):
        """(log, target probabilities, a biased reward model)."""
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 3))
        probs = self.logging_probs(x)
        action = (np.cumsum(probs, axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=probs.shape[1] - 1)
        row = np.arange(n)
        reward = (rng.random(n) < self.mean(x)[row, action]).astype(float)
        log = BanditLog(action, reward, probs[row, action], context=x)
        return log, self.target_probs(x), 0.8 * self.mean(x) + 0.05


def hand_case():
    log = BanditLog([0, 1, 0, 2], [1.0, 0.0, 2.0, 4.0], [0.5, 0.25, 0.5, 0.25])
    probs = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.0, 0.5]])
    model = np.array([[1.0, 0.5, 3.0], [0.0, 1.0, 3.0], [2.0, 1.0, 3.0], [1.0, 1.0, 3.0]])
    return log, probs, model


# Weights are 1, 4, 2, 2; expected model values 0.75, 1, 2, 2; logged model 1, 1, 2, 3; residuals 0, -1, 0, 1.
# Weighted means of reward and model are 13/9 and 15/9; weighted squares of the model 4 × 1/9 · (…) below.
@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("ipw", None, (1 + 0 + 4 + 8) / 4),
        ("clipped-ipw", 1.5, (1 + 0 + 3 + 6) / 4),
        ("snipw", None, 13 / 9),
        ("dm", None, 5.75 / 4),
        ("dr", None, (5.75 - 4 + 2) / 4),
        ("sndr", None, 5.75 / 4 - 2 / 9),
        # slope: Σ w (q − 15/9) r / Σ w (q − 15/9)² = (-2/3 + 4/3 + 32/3) / (5·4/9 + 2/9 + 32/9) = 17/9
        ("greg", None, 13 / 9 + 17 / 9 * (5.75 / 4 - 15 / 9)),
        ("switch-dr", 3.0, (5.75 + 2) / 4),
        ("switch-dr", 1.0, 5.75 / 4),
        ("dros", 4.0, (5.75 - 4 * 4 / 20 + 4 * 2 / 8) / 4),
        ("dros", 0.0, 5.75 / 4),
        # weights π (1 − p) / p²: 1, 12, 2, 6 (× r: 1, 0, 2, 4); q' = (43·58 − 35·47…) solved by hand below
        ("mrdr", None, None),
    ],
)
def test_values_by_hand(name, parameter, value):
    log, probs, model = hand_case()
    if value is None:
        value = mrdr_by_hand()
    found = estimate(log, probs, model, name, parameter=parameter)
    assert found.parameter == parameter
    assert found.value == pytest.approx(value)
    assert found.estimator == name
    assert found.low < found.value < found.high


def mrdr_by_hand():
    """Normal equations of r = α + β q with weights π (1 − p) / p² = 1, 12, 2, 6 at q = 1, 1, 2, 3."""
    ones, q, qq, r, qr = 21, 1 + 12 + 4 + 18, 1 + 12 + 8 + 54, 0 + 1 + 4 + 24, 1 + 8 + 72
    slope = (ones * qr - q * r) / (ones * qq - q * q)
    level = (r - slope * q) / ones
    residuals = np.array([1, 0, 2, 4]) - level - slope * np.array([1, 1, 2, 3])
    return level + slope * 5.75 / 4 + (np.array([1, 4, 2, 2]) @ residuals) / 4


def test_diagnostics_by_hand():
    log, probs, _ = hand_case()
    probs = np.column_stack([probs * 0.9, np.full(4, 0.1)])  # a fourth action, never logged
    health = estimate(log, probs, estimator="snipw").diagnostics
    assert health.effective_sample_size == pytest.approx(81 / 25)
    assert health.max_weight == pytest.approx(3.6)
    assert health.max_weight_share == pytest.approx(4 / 9)
    assert health.mean_weight == pytest.approx(0.9 * 9 / 4)
    assert health.unsupported_mass == pytest.approx(0.1)
    assert health.unsupported_rows == 1.0
    assert any("never logged (3)" in text for text in health.warnings)
    assert any("effective sample size is 3 of 4" in text for text in health.warnings)


def test_support_is_judged_per_position():
    log, probs, _ = hand_case()
    slots = replace(log, position=[0, 1, 0, 1])  # slot 0 logged action 0 only, slot 1 actions 1 and 2
    assert estimate(log, probs).diagnostics.unsupported_mass == 0
    assert estimate(slots, probs).diagnostics.unsupported_mass == pytest.approx((0.5 + 0 + 0 + 0.5) / 4)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_policy_that_logged_is_worth_its_mean_reward(name):
    world = World.make()
    log, _, model = world.sample(3000, 1)
    found = estimate(log, world.logging_probs(log.context), model, name)
    if name in ("ipw", "snipw"):
        assert found.value == pytest.approx(log.reward.mean())
        assert found.std_error == pytest.approx(log.reward.std(ddof=1) / np.sqrt(3000), rel=1e-3)
    assert found.low < log.reward.mean() < found.high
    assert found.diagnostics.effective_sample_size == pytest.approx(3000)
    assert found.diagnostics.warnings == ()


def covered_share(world, n, name, logs=200):
    truth, covered = world.truth(), 0
    for seed in range(logs):
        log, probs, model = world.sample(n, seed)
        found = estimate(log, probs, model, name)
        covered += found.low <= truth <= found.high
    return covered / logs


@pytest.mark.parametrize("name", [*UNBIASED, "auto", "clipped-ipw", "switch-dr", "dros"])
def test_intervals_cover_the_truth(name):
    """95 % intervals over 200 logs with the decision rule's exploration floor."""
    assert covered_share(replace(World.make(3), epsilon=0.3), 500, name) >= 0.9


@pytest.mark.parametrize("name", [*UNBIASED, "auto", "clipped-ipw", "switch-dr", "dros"])
def test_intervals_cover_nearly_where_propensities_have_no_floor(name):
    """Weights without bound: rare large ones are missing from most logs, and no interval can know of them."""
    assert covered_share(World.make(3), 800, name) >= 0.85


def test_a_reward_model_narrows_the_interval():
    log, probs, model = World.make(3).sample(5000, 4)
    perfect = World.make(3).mean(log.context)
    plain, helped = estimate(log, probs), estimate(log, probs, perfect, "sndr")
    assert helped.high - helped.low < plain.high - plain.low
    assert estimate(log, probs, model, "dr").value == pytest.approx(plain.value, abs=4 * plain.std_error)


def test_dm_interval_is_a_seeded_bootstrap_of_the_model_mean():
    log, probs, model = World.make(3).sample(30_000, 4)  # more rows than the bootstrap's groups
    rows = (probs * model).sum(axis=1)
    found = estimate(log, probs, model, "dm", seed=5)
    assert found.value == pytest.approx(rows.mean())
    assert found.std_error == pytest.approx(rows.std() / np.sqrt(rows.size), rel=0.1)
    assert found == estimate(log, probs, model, "dm", seed=5)
    assert found.low != estimate(log, probs, model, "dm", seed=6).low
    assert any("error of the reward model" in text for text in found.diagnostics.warnings)


@pytest.mark.parametrize("name", ALL)
def test_repeating_every_row_under_its_user_changes_nothing(name):
    """A log in which each user's row is there five times knows no more than the log of the single rows."""
    log, probs, model = World.make(3).sample(500, 6)
    five = {f: np.repeat(getattr(log, f), 5) for f in ("action", "reward", "propensity")}
    users = np.repeat([f"p{i}" for i in range(500)], 5)
    once = estimate(log, probs, model, name)
    arrays = (np.repeat(probs, 5, axis=0), np.repeat(model, 5, axis=0), name)
    clustered = estimate(BanditLog(**five, cluster=users), *arrays)
    naive = estimate(BanditLog(**five), *arrays)
    assert clustered.value == pytest.approx(once.value)
    tolerance = 0.12 if name == "dm" else 1e-6
    assert clustered.std_error == pytest.approx(once.std_error, rel=tolerance)
    assert naive.std_error < 0.6 * clustered.std_error
    assert clustered.diagnostics.units == 500
    assert clustered.diagnostics.effective_sample_size == pytest.approx(
        once.diagnostics.effective_sample_size
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 60), name=st.sampled_from(ALL))
def test_invariants(seed, n, name):
    rng = np.random.default_rng(seed)
    log = BanditLog(rng.integers(0, 3, n), rng.normal(0, 5, n), rng.uniform(0.05, 1, n))
    probs, model = rng.dirichlet(np.ones(3), n), rng.normal(0, 5, (n, 3))
    found = estimate(log, probs, model, name)
    assert found.low <= found.value <= found.high
    shuffled = rng.permutation(n)
    again = estimate(
        BanditLog(log.action[shuffled], log.reward[shuffled], log.propensity[shuffled]),
        probs[shuffled],
        model[shuffled],
        name,
    )
    assert again.value == pytest.approx(found.value)
    money = estimate(replace(log, reward=log.reward * 100), probs, model * 100, name)
    assert money.value == pytest.approx(found.value * 100)
    assert money.high - money.low == pytest.approx((found.high - found.low) * 100)
    if name == "snipw":
        assert log.reward.min() - 1e-9 <= found.value <= log.reward.max() + 1e-9


def test_snipw_error_is_the_jackknife():
    log, probs, _ = World.make(3).sample(40, 8)
    weight = probs[np.arange(40), log.action] / log.propensity
    whole = (weight * log.reward).sum() / weight.sum()
    left_out = np.array(
        [np.average(np.delete(log.reward, i), weights=np.delete(weight, i)) for i in range(40)]
    )
    jackknife = np.sqrt(39 / 40 * ((left_out - whole) ** 2).sum())
    assert estimate(log, probs, estimator="snipw").std_error == pytest.approx(jackknife * 40 / 39)


@pytest.mark.parametrize("name", ALL)
def test_difference_is_paired(name):
    world = World.make(3)
    log, probs, model = world.sample(2000, 9)
    near = 0.9 * probs + 0.1 * world.logging_probs(log.context)
    gain = difference(log, near, probs, model, name)
    one, other = (estimate(log, p, model, name) for p in (near, probs))
    assert gain.value == pytest.approx(one.value - other.value)
    assert gain.baseline_value == pytest.approx(other.value)
    assert gain.std_error < 0.3 * np.hypot(one.std_error, other.std_error)
    same = difference(log, probs, probs, model, name)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-12)


def gate_of(seed, better):
    """The gate's verdict about a policy that is better or worse than the live one by construction."""
    world = World.make(7)
    log, _, model = world.sample(4000, seed)
    live, mean = world.logging_probs(log.context), world.mean(log.context)
    best = np.eye(5)[mean.argmax(axis=1)] if better else np.eye(5)[mean.argmin(axis=1)]
    return clears_gate(difference(log, 0.5 * live + 0.5 * best, live, model), margin=0.0)


def test_gate_blocks_the_worse_and_passes_the_better():
    assert sum(gate_of(seed, better=False).passed for seed in range(100)) == 0
    assert sum(gate_of(seed, better=True).passed for seed in range(100)) >= 80


def test_gate_says_why():
    world = World.make(7)
    log, probs, model = world.sample(4000, 1)
    live = world.logging_probs(log.context)
    gain = difference(log, probs, live, model)
    assert "does not exceed the margin 5" in clears_gate(gain, 5.0).reason
    passed = clears_gate(gain, gain.low - 1e-6)
    assert passed.passed
    assert passed.improvement is gain
    assert not clears_gate(gain, gain.low).passed
    assert "reward model" in clears_gate(difference(log, probs, live, model, "dm"), -5.0).reason
    short = BanditLog(log.action[:20], log.reward[:20], log.propensity[:20])
    few = difference(short, probs[:20], live[:20])
    assert "effective sample size" in clears_gate(few, -5.0).reason
    unseen = np.column_stack([probs * 0.8, np.full(4000, 0.2)])
    padded = np.column_stack([live, np.zeros(4000)])
    assert "never logged" in clears_gate(difference(log, unseen, padded), -5.0).reason
    with pytest.raises(ValueError, match="improvement: is a policy's value"):
        clears_gate(estimate(log, probs), 0.0)
    with pytest.raises(ValueError, match="margin: nan"):
        clears_gate(gain, np.nan)


def test_wrong_propensities_are_noticed():
    world = World.make(7)
    log, probs, _ = world.sample(4000, 1)
    wrong = replace(log, propensity=np.minimum(log.propensity * 1.5, 1.0))
    assert not any("mean importance weight" in t for t in estimate(log, probs).diagnostics.warnings)
    assert any("mean importance weight" in t for t in estimate(wrong, probs).diagnostics.warnings)


def test_rewards_that_do_not_vary_give_a_warning_not_a_certainty():
    log, probs, _ = World.make(7).sample(500, 1)
    found = estimate(replace(log, reward=np.zeros(500)), probs)
    assert any("no width" in text for text in found.diagnostics.warnings)


LOG = {"action": [0, 1, 0], "reward": [1.0, 0.0, 2.0], "propensity": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": [0.5, 0.0, 0.5]}, r"propensity: row 1 is 0.0; must be in \(0, 1\]"),
        ({"propensity": [0.5, 0.5, -0.1]}, "propensity: row 2 is -0.1"),
        ({"propensity": [1.5, 0.5, 2.0]}, r"propensity: row 0 is 1.5; .*\(1 more like it\)"),
        ({"propensity": [np.nan, 0.5, 0.5]}, "propensity: row 0 is nan; must be finite"),
        ({"propensity": [0.5, 0.5]}, "propensity: has 2 rows; must have 3"),
        ({"reward": [1.0, np.nan, 0.0]}, "reward: row 1 is nan"),
        ({"reward": [1.0, 0.0, np.inf]}, "reward: row 2 is inf"),
        ({"reward": [1.0]}, "reward: has 1 rows; must have 3"),
        ({"reward": ["a", "b", "c"]}, "reward: dtype .* is not numeric"),
        ({"action": [0, -1, 0]}, "action: row 1 is -1; must be ≥ 0"),
        ({"action": [0, 0.5, 0]}, "action: row 1 is 0.5; must be a whole number"),
        ({"action": [[0], [1], [0]]}, r"action: has shape \(3, 1\); must have 1 dimension"),
        ({"action": [], "reward": [], "propensity": []}, r"action: is empty"),
        ({"position": [0, 1]}, "position: has 2 rows"),
        ({"position": [0, 1, -2]}, "position: row 2 is -2"),
        ({"context": np.zeros((2, 4))}, r"context: has shape \(2, 4\); must have 3 rows"),
        ({"cluster": ["a", "b"]}, r"cluster: has shape \(2,\); must be \(3,\)"),
        ({"cluster": ["a", None, "b"]}, "cluster: row 1 is None; must be a cluster id"),
        ({"cluster": [1.0, np.nan, 2.0]}, "cluster: row 1 is nan"),
    ],
)
def test_bad_logs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        BanditLog(**{**LOG, **change})


HALF = np.full((3, 2), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy_probs": HALF * 0.9}, "policy_probs row sum: row 0 is 0.9; must be 1 within 1e-06"),
        ({"policy_probs": [[1.5, -0.5], [0.5, 0.5], [0.5, 0.5]]}, "policy_probs: row 0, column 1 is -0.5"),
        ({"policy_probs": [[1, np.nan], [0.5, 0.5], [0.5, 0.5]]}, "policy_probs: row 0, column 1 is nan"),
        ({"policy_probs": HALF[:2]}, "policy_probs: has 2 rows; must have 3"),
        ({"policy_probs": np.ones((3, 1))}, "action: row 1 is 1; out of range: policy_probs has 1 columns"),
        ({"policy_probs": [[0, 1.0], [1.0, 0], [0, 1.0]]}, "policy_probs: no overlap"),
        (
            {"policy_probs": [[1, 0.0], [1.0, 0], [0, 1.0]]},
            r"too little overlap: one row \(row 0\) carries all",
        ),
        ({"reward_model": np.zeros((3, 3))}, r"reward_model: has shape \(3, 3\); must be \(3, 2\)"),
        ({"reward_model": HALF * np.nan}, "reward_model: row 0, column 0 is nan"),
        (
            {"estimator": "magic"},
            "estimator: 'magic' is not known; choose one of auto, ipw, clipped-ipw, snipw, dm, dr, sndr",
        ),
        ({"estimator": "dr", "parameter": 1.0}, "parameter: dr has none; only clipped-ipw, switch-dr, dros"),
        ({"estimator": "dros", "parameter": -1.0}, "parameter: -1.0 is not a number ≥ 0"),
        ({"interval": "wide"}, "interval: 'wide' is not known; choose one of default, normal, bootstrap"),
        (
            {"interval": "anytime"},
            "reward_range: is needed for this interval, for rewards are not all 0 or 1",
        ),
        (
            {"interval": "anytime", "reward_range": (0, 1)},
            r"reward: row 2 is 2.0; outside reward_range \[0, 1\]",
        ),
        ({"interval": "bernstein", "reward_range": (1, 1)}, r"reward_range: \(1, 1\) is no range"),
        ({"confidence": 1.0}, r"confidence: 1.0 is outside \(0, 1\)"),
        ({"confidence": np.nan}, "confidence: nan"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate(**{"log": BanditLog(**LOG), "policy_probs": HALF, **arguments})


def test_one_user_gives_no_interval():
    log = BanditLog(**LOG, cluster=["a", "a", "a"])
    with pytest.raises(ValueError, match="1 independent unit"):
        estimate(log, HALF, estimator="ipw")
    with pytest.raises(ValueError, match="one cluster"):
        estimate(log, HALF, estimator="snipw")
    with pytest.raises(ValueError, match="1 independent unit cannot be split"):
        estimate(log, HALF)
    pairs = BanditLog(**LOG, cluster=["a", "a", "b"])
    with pytest.raises(
        ValueError, match="'anytime' is for independent rows, and cluster has 2 units for 3 rows"
    ):
        estimate(pairs, HALF, interval="anytime")
    with pytest.raises(ValueError, match="'bernstein' is for independent rows"):
        difference(pairs, HALF, HALF, interval="bernstein")


def test_difference_names_the_baseline():
    log = BanditLog(**LOG)
    with pytest.raises(ValueError, match="baseline_probs row sum: row 0"):
        difference(log, HALF, HALF * 2)
    with pytest.raises(ValueError, match=r"baseline_probs: has shape \(3, 3\); must be \(3, 2\)"):
        difference(log, HALF, np.full((3, 3), 1 / 3))
