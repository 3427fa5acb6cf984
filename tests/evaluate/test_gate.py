"""The launch gate and the interval for who looks every day."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.gate import GateRule, judge
from qiance.evaluate.ope import difference
from qiance.evaluate.ope_sequence import difference_sequence

ROWS, ACTIONS, EPSILON = 400, 4, 0.4


def greedy(best: np.ndarray, width: int = ACTIONS, epsilon: float = EPSILON) -> np.ndarray:
    """`[n, width]` ε-greedy probabilities around column `best` `[n]`."""
    probs = np.full((len(best), width), epsilon / width)
    probs[np.arange(len(best)), best] += 1.0 - epsilon
    return probs


def world(
    seed: int, rows: int = ROWS, gain: float = 1.0
) -> tuple[BanditLog, np.ndarray, np.ndarray, np.ndarray]:
    """A log of a live policy, a challenger that is better by about `gain`, the live one, and the truth."""
    random = np.random.default_rng(seed)
    best, live_best = random.integers(0, ACTIONS, rows), random.integers(0, ACTIONS, rows)
    truth = np.zeros((rows, ACTIONS))
    truth[np.arange(rows), best] = gain
    live = greedy(live_best)
    action = (random.random((rows, 1)) < live.cumsum(axis=1)).argmax(axis=1)
    reward = truth[np.arange(rows), action] + random.normal(size=rows)
    log = BanditLog(action, reward, live[np.arange(rows), action], cluster=random.integers(0, 150, rows))
    return log, greedy(best), live, truth


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gain=st.floats(-2.0, 2.0),
    margin=st.floats(-1.0, 1.0),
    own=st.floats(-1.0, 1.0),
    share=st.floats(0.0, 1.0),
)
def test_the_gate_opens_only_above_the_margin_of_every_campaign(
    seed: int, gain: float, margin: float, own: float, share: float
) -> None:
    log, policy, live, truth = world(seed, gain=gain)
    campaigns = {"a": np.random.default_rng(seed).random(ROWS) < share, "b": np.arange(ROWS) % 2 == 0}
    rule = GateRule(margin, {"b": own})
    found = judge(log, policy, live, truth, campaigns, rule, policy="new", live="old")
    for one, asked in zip(found.campaigns, (margin, own), strict=True):
        assert one.margin == asked
        assert one.decisions == campaigns[one.campaign].sum()
        if one.passed:
            assert one.improvement.low > asked
    assert found.passed == all(one.passed for one in found.campaigns)
    assert json.loads(json.dumps(found.told()))["passed"] == found.passed


def test_a_campaign_is_judged_by_its_own_decisions() -> None:
    log, policy, live, _ = world(1, rows=2_000)
    inside = np.arange(2_000) % 3 == 0
    (one,) = judge(log, policy, live, None, {"a": inside}).campaigns
    part = BanditLog(
        log.action[inside], log.reward[inside], log.propensity[inside], cluster=log.cluster[inside]
    )
    assert one.improvement == difference(part, policy[inside], live[inside])


def test_one_campaign_that_loses_closes_the_gate_for_all() -> None:
    log, policy, live, _ = world(2, rows=3_000)
    loser = np.arange(3_000) % 4 == 0
    worse = policy.copy()
    worse[loser] = greedy((policy[loser].argmax(axis=1) + 1) % ACTIONS)
    found = judge(log, worse, live, None, {"wins": ~loser, "loses": loser})
    assert [one.passed for one in found.campaigns] == [True, False]
    assert not found.passed
    assert found.improvement.low > 0, "on the whole it is better"
    assert found.reason.startswith("campaign loses: lower bound")


def test_what_the_log_cannot_tell_closes_the_gate() -> None:
    log, policy, live, _ = world(3)
    everything = np.ones(ROWS, dtype=bool)
    found = judge(log, policy, live, None, {"seen": everything, "new": ~everything})
    assert "let the live policy explore them first" in found.reason
    assert not judge(log, policy, live, None, {}).passed
    alone = BanditLog(log.action[:1], log.reward[:1], log.propensity[:1])
    (one,) = judge(alone, policy[:1], live[:1], None, {"a": everything[:1]}).campaigns
    assert not one.passed
    assert one.improvement is None
    never = np.eye(1, 5, 4).repeat(ROWS, axis=0)
    wider = np.hstack([live, np.zeros((ROWS, 1))])
    found = judge(log, never, wider, None, {"a": everything})
    assert found.improvement is None
    assert "no overlap" in found.reason


def test_the_live_policy_is_not_better_than_itself_but_not_worse_either() -> None:
    log, _, live, truth = world(4)
    everything = {"a": np.ones(ROWS, dtype=bool)}
    assert not judge(log, live, live, truth, everything).passed
    assert judge(log, live, live, truth, everything, GateRule(-0.1)).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": np.nan}, "margin: nan is not finite"),
        ({"margins": {"b1": np.inf}}, "margins.b1: inf is not finite"),
        ({"estimator": "best"}, "estimator: 'best' is not one of auto, ipw"),
        ({"confidence": 1.0}, r"confidence: 1.0 is outside \(0, 1\)"),
    ],
)
def test_a_rule_that_is_none_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GateRule(**changes)  # type: ignore[arg-type]


def test_bad_arrays_are_errors_not_closed_gates() -> None:
    log, policy, live, truth = world(5)
    inside = {"a": np.ones(ROWS, dtype=bool)}
    with pytest.raises(ValueError, match="live_probs: has shape"):
        judge(log, policy, np.hstack([live, np.zeros((ROWS, 1))]), None, inside)
    with pytest.raises(ValueError, match="policy_probs row sum"):
        judge(log, policy * 2, live, None, inside)
    with pytest.raises(ValueError, match="reward_model"):
        judge(log, policy, live, truth[:, :2], inside)
    with pytest.raises(ValueError, match=r"campaigns\.a: has shape"):
        judge(log, policy, live, None, {"a": inside["a"][:3]})


def drifting(seed: int, rows: int = 2_500) -> tuple[BanditLog, np.ndarray, np.ndarray, np.ndarray]:
    """A log with users that resemble themselves and a response that drifts; the improvement so far `[n]`."""
    random = np.random.default_rng(seed)
    user = random.integers(0, 60, rows)
    level = random.uniform(0.0, 0.5, 60)[user, None] + np.linspace(0.0, 0.3, rows)[:, None]
    potential = (random.random((rows, ACTIONS)) < level).astype(float)
    live, policy = greedy(random.integers(0, ACTIONS, rows)), greedy(random.integers(0, ACTIONS, rows))
    action = (random.random((rows, 1)) < live.cumsum(axis=1)).argmax(axis=1)
    row = np.arange(rows)
    log = BanditLog(action, potential[row, action], live[row, action], cluster=user)
    return log, policy, live, ((policy - live) * potential).sum(axis=1).cumsum() / (row + 1)


def test_the_interval_holds_at_every_moment_at_once() -> None:
    missed = 0
    for seed in range(150):
        log, policy, live, truth = drifting(seed)
        found = difference_sequence(log, policy, live, np.arange(1, len(log) + 1))
        missed += bool(((truth < found.low) | (truth > found.high)).any())
        assert (found.low <= found.value).all()
        assert (found.value <= found.high).all()
    assert missed <= 7, "5 % of 150"


def test_the_interval_narrows_and_finds_an_improvement() -> None:
    log, policy, live, _ = world(6, rows=12_000)
    reward = (log.reward > 0.5).astype(float)
    log = BanditLog(log.action, reward, log.propensity)
    ends = np.array([100, 1_000, 12_000])
    found = difference_sequence(log, policy, live, ends)
    width = found.high - found.low
    assert (np.diff(width) < 0).all()
    assert found.low[0] < 0 < found.low[-1]
    scaled = BanditLog(log.action, 10 * reward - 3, log.propensity)
    again = difference_sequence(scaled, policy, live, ends, reward_range=(-3, 7))
    np.testing.assert_allclose(again.low, 10 * found.low)


@pytest.mark.parametrize("ends", [[], [0, 5], [5, 3], [ROWS + 1]])
def test_beginnings_that_are_none_are_refused(ends: list[int]) -> None:
    log, policy, live, _ = world(7)
    with pytest.raises(ValueError, match=r"ends: .* must be ascending"):
        difference_sequence(log, policy, live, np.array(ends), reward_range=(-9, 9))
    with pytest.raises(ValueError, match="reward_range: is needed"):
        difference_sequence(log, policy, live, np.array([5]))
