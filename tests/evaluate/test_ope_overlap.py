"""Steps and slots at which a log says nothing of a policy: refused, and named, by whoever needs them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.evaluate.ope_densities import density_pair
from qiance.evaluate.ope_result import clears_gate
from qiance.evaluate.ope_slate import estimate_slates
from qiance.evaluate.ope_trajectory import (
    SEQUENTIAL,
    TrajectoryLog,
    estimate_trajectories,
    trajectory_improvement,
)

ROWS, STEPS = 40, 4
NEEDING = [name for name in SEQUENTIAL if name != "dm"]


def logged(seed: int = 0, columns: int = STEPS) -> TrajectoryLog:
    rewards = np.random.default_rng(seed).random((ROWS, columns))
    return TrajectoryLog(rewards, np.full((ROWS, columns), 0.5))


def without(column: int, columns: int = STEPS) -> np.ndarray:
    """A policy that takes what was logged with 0.6, and never in one column."""
    probs = np.full((ROWS, columns), 0.6)
    probs[:, column] = 0.0
    return probs


@pytest.mark.parametrize("name", NEEDING)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_later_step_without_overlap_is_refused(name: str, step: int) -> None:
    log, model = logged(), np.full((ROWS, STEPS), 0.5)
    told = rf"policy_probs: no overlap at step {step}: .* 40 trajectories .*\(row 0, column {step} is 0\)"
    for asked in (estimate_trajectories, trajectory_improvement):
        with pytest.raises(ValueError, match=told) as refused:
            asked(log, without(step), model, model, name)
    assert f"keep the first {step} step" in str(refused.value)
    assert ("estimator='dm'" in str(refused.value)) is (name in ("dr", "wdr"))
    cut = TrajectoryLog(log.reward[:, :step], log.propensity[:, :step])
    models = (model[:, :step],) * 2
    assert np.isfinite(estimate_trajectories(cut, without(step)[:, :step], *models, name).value)


def test_the_first_step_has_no_step_before_it_to_keep() -> None:
    with pytest.raises(ValueError, match="no overlap at step 0: ") as refused:
        estimate_trajectories(logged(), without(0))
    assert "keep the first" not in str(refused.value)


def test_the_value_model_alone_needs_no_overlap_and_says_what_its_interval_leaves_out() -> None:
    model = np.random.default_rng(1).random((ROWS, STEPS))
    found = estimate_trajectories(logged(), without(0), model, model, "dm")
    assert found.value == pytest.approx(model[:, 0].mean())
    assert any("not the error of the value model" in text for text in found.diagnostics.warnings)
    assert any("effective sample size is 0 of 40" in text for text in found.diagnostics.warnings)


def test_who_has_ended_does_not_speak_for_those_who_go_on() -> None:
    length = np.where(np.arange(ROWS) < 10, 2, STEPS)
    log = logged()
    log = TrajectoryLog(log.reward, log.propensity, length)
    for name in ("is", "pdis", "wpdis"):
        with pytest.raises(ValueError, match=r"step 2: in none of the 30 .*row 10, column 2 is 0\)"):
            estimate_trajectories(log, without(2), estimator=name)


def test_a_step_that_the_policy_does_not_get_to_is_not_needed() -> None:
    """By the log the policy's trajectories all end after one step: nothing follows."""
    ends = np.arange(ROWS) < 10
    log = logged()
    log = TrajectoryLog(log.reward, log.propensity, np.where(ends, 1, STEPS))
    probs = np.where(ends[:, None], 0.6, without(0))
    found = estimate_trajectories(log, probs, estimator="wpdis")
    assert found.value == pytest.approx(log.reward[ends, 0].mean())


def answered(log: TrajectoryLog, probs: np.ndarray, name: str) -> float | None:
    """The value, None where the log is refused."""
    try:
        return estimate_trajectories(log, probs, estimator=name).value
    except ValueError:
        return None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), taken=st.floats(0.2, 0.9), rows=st.integers(3, 12))
def test_no_step_that_the_policy_gets_to_is_left_out(seed: int, taken: float, rows: int) -> None:
    """Whatever is answered, a reward more at any such step makes the answer larger."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, STEPS + 1, rows)
    rewards, propensity = rng.random((rows, STEPS)), np.full((rows, STEPS), 0.5)
    probs = np.where(rng.random((rows, STEPS)) < taken, 0.7, 0.0)
    log = TrajectoryLog(rewards, propensity, length)
    inside = log.inside(STEPS)
    for name in ("pdis", "wpdis"):
        value = answered(log, probs, name)
        if value is None:
            continue
        before = np.hstack([np.ones((rows, 1)), np.cumprod(np.where(inside, probs, 0.5), axis=1)[:, :-1]])
        for step in np.flatnonzero((inside & (before > 0)).any(axis=0)):
            more = rewards.copy()
            more[:, step] += 1.0
            raised = answered(TrajectoryLog(more, propensity, length), probs, name)
            assert raised is not None
            assert raised > value


@pytest.mark.parametrize("name", ["sips", "iips", "rips", "snrips", "pi", "cascade-dr"])
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_slot_without_overlap_is_refused(name: str, slot: int) -> None:
    model = np.full((ROWS, 3), 0.5)
    told = rf"policy_probs: no overlap at slot {slot}: .* 40 lists .*\(row 0, column {slot} is 0\)"
    with pytest.raises(ValueError, match=told):
        estimate_slates(logged(columns=3), without(slot, 3), model, model, name)


def test_slots_that_are_looked_at_by_themselves_need_no_whole_list() -> None:
    """Half of the lists have the policy's item on top, the other half below: no list has both."""
    first = np.arange(ROWS) % 2 == 0
    probs = np.stack([np.where(first, 1.0, 0.0), np.where(first, 0.0, 1.0)], axis=1)
    log = logged(columns=2)
    found = estimate_slates(log, probs, estimator="iips")
    assert found.value == pytest.approx(log.reward[first, 0].mean() + log.reward[~first, 1].mean())
    assert np.isfinite(estimate_slates(log, probs, estimator="pi").value)
    for name in ("sips", "rips", "snrips"):
        with pytest.raises(ValueError, match="no overlap at slot 1: in none of the 20 lists"):
            estimate_slates(log, probs, estimator=name)


@pytest.mark.parametrize("far", [0, 1, 2, 3])
def test_densities_far_from_the_log_at_any_step_get_a_number_and_no_pass(far: int) -> None:
    """A density is never 0, so nothing is refused; the effective sample size keeps the gate closed."""
    rng = np.random.default_rng(3)
    log_p, log_pi = rng.normal(size=(2, ROWS, STEPS))
    log_pi[:, far] -= 5_000 + 300 * rng.random(ROWS)
    length = np.where(np.arange(ROWS) < 5, 1, STEPS)
    for lengths in (None, length):
        propensity, probs = density_pair(log_p, log_pi, lengths)
        log = TrajectoryLog(rng.random((ROWS, STEPS)) + 1.0, propensity, lengths)
        model = np.zeros((ROWS, STEPS))
        for name in ("is", "pdis", "dr"):
            found = trajectory_improvement(log, probs, model, model, name)
            assert np.isfinite([found.value, found.low, found.high]).all()
            assert not clears_gate(found).passed


def test_densities_keep_what_they_weigh_of_each_other_when_they_are_raised() -> None:
    """Two trajectories e^3 apart at a step far from the log, after one that is near."""
    logged_density = np.zeros((2, 2))
    policy_density = np.array([[0.0, -1_000.0], [0.0, -1_003.0]])
    propensity, probs = density_pair(logged_density, policy_density)
    weight = np.cumprod(probs / propensity, axis=1)
    np.testing.assert_allclose(weight[:, 0], 1.0)
    assert np.log(weight[0, 1] / weight[1, 1]) == pytest.approx(3.0)
    assert weight[0, 1] == pytest.approx(np.exp(-150.0))
