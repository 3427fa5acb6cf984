"""Policies made from predictions: distributions, contact budgets, and what they choose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.cli.offline.policies import BEST, LOGGED, SOFTMAX, Choice, best_single, policies, softmax


def choice_of(value: np.ndarray, control: bool, epsilon: float = 0.1) -> Choice:
    n, size = value.shape
    first = np.arange(n) % 2 == 0
    return Choice(
        value, [f"arm {k}" for k in range(size)], control, (first, ~first), np.full(size, 1 / size), epsilon
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 60), st.integers(2, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_policy_is_a_distribution(n: int, size: int, control: bool, seed: int) -> None:
    value = np.random.default_rng(seed).normal(0.1, 0.05, (n, size))
    for policy in policies(choice_of(value, control)):
        for probs in (policy.probs, policy.random):
            if probs is not None:
                assert probs.shape == (n, size)
                assert (probs >= 0).all()
                np.testing.assert_allclose(probs.sum(axis=1), 1.0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 200), st.integers(0, 2**32 - 1))
def test_contacts_stay_within_their_share_in_each_half(n: int, seed: int) -> None:
    value = np.random.default_rng(seed).normal(0.1, 0.05, (n, 3))
    choice = choice_of(value, control=True)
    for policy in policies(choice):
        if not policy.name.startswith("contact"):
            continue
        share = float(policy.name.split("%")[0].split()[1]) / 100
        assert policy.random is not None
        for rows in choice.halves:
            contacted = 1 - policy.probs[rows, 0]
            assert contacted.sum() <= share * rows.sum() + 1e-9
            np.testing.assert_allclose(1 - policy.random[rows, 0], contacted.mean(), atol=1e-9)


def test_contacts_go_to_the_highest_uplift_and_never_to_a_loss() -> None:
    value = np.array([[0.1, 0.5], [0.1, 0.2], [0.1, 0.05], [0.1, 0.4]] * 10)
    found = {p.name: p.probs for p in policies(choice_of(value, control=True))}
    assert found["contact 30% by predicted uplift"][:, 1].reshape(-1, 4).sum(axis=0)[0] == 6
    half = found["contact 50% by predicted uplift"][:, 1].reshape(-1, 4).sum(axis=0)
    assert half[2] == 0
    assert (found[BEST][:, 1].reshape(-1, 4) == [1, 1, 0, 1]).all()


def test_without_control_it_explores_and_with_many_arms_only_the_best_single_one_is_shown() -> None:
    value = np.random.default_rng(0).normal(size=(20, 9))
    names = [p.name for p in policies(choice_of(value, control=False, epsilon=0.2))]
    assert names == [
        LOGGED,
        "everybody: the best single arm",
        BEST,
        f"{BEST}, 20% exploration",
        SOFTMAX,
    ]
    assert choice_of(value, control=False, epsilon=0.2).proposals == (names[3], SOFTMAX)
    assert choice_of(value, control=True).proposals == (BEST,)


def test_the_best_single_arm_is_never_control_and_may_differ_between_halves() -> None:
    value = np.zeros((4, 3))
    value[:, 0] = 9.0
    value[[0, 2], 1] = 1.0
    value[[1, 3], 2] = 1.0
    assert best_single(choice_of(value, control=True)).argmax(axis=1).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_softmax_does_not_depend_on_the_scale_of_the_predictions(scale: float) -> None:
    value = np.random.default_rng(1).normal(size=(50, 4))
    halves = (np.ones(50, dtype=bool),)
    np.testing.assert_allclose(softmax(value * scale, halves), softmax(value, halves), rtol=1e-9)


def test_softmax_of_equal_predictions_is_uniform() -> None:
    assert softmax(np.full((3, 4), 0.2), (np.ones(3, dtype=bool),)).tolist() == [[0.25] * 4] * 3
