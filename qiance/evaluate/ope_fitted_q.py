"""Fitted Q evaluation: a value model of a policy, from the log and a regressor that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import FloatArray, fraction, index_vector, refuse_where
from qiance.evaluate.bandit_log import SUM_TOLERANCE
from qiance.evaluate.ope_trajectory import TrajectoryLog


class Regressor(Protocol):
    """scikit-learn's form: LightGBM's and scikit-learn's regressors have it."""

    def fit(self, x: Any, y: Any, /) -> Self:
        """Learn `[m, d]` → `[m]`."""

    def predict(self, x: Any, /) -> NDArray[Any]:
        """`[m, d]` → `[m]`."""


def fitted_q(
    log: TrajectoryLog,
    state: ArrayLike,
    action: ArrayLike,
    policy: ArrayLike,
    make: Callable[[], Regressor],
    discount: float = 1.0,
    folds: int = 2,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """(q, v), both `[n, T]`: Q(s_it, a_it) and Σ_a π(a|s_it) Q(s_it, a), from models that have not seen the
    unit.

    state: `[n, T, d]`. action: `[n, T]` from 0. policy: `[n, T, n_actions]`, rows sum to 1. make: gives a new
    regressor, which learns from the state and the action's one-hot.

    Backwards in time, a regressor for each step t learns r_t + γ Σ_a π(a|s_t+1) Q_t+1(s_t+1, a). Pass q and v
    to `estimate_trajectories` as logged_model and policy_model: "dm" is then fitted Q evaluation, "dr" and
    "wdr" correct it by the log. Source: Le, Voloshin & Yue, ICML (2019), 3703-3712.
    """
    fraction("discount", discount)
    states, actions, probs = _checked(log, state, action, policy)
    units, inside = log.units(), log.inside(log.reward.shape[1])
    if units.count < 2 or folds < 2:
        raise ValueError(
            f"folds: {units.count} units cannot be split into {folds} folds; use 2 or more of both"
        )
    fold = np.random.default_rng(seed).permutation(units.count) % min(folds, units.count)
    fold = fold if units.codes is None else fold[units.codes]
    q, v = np.zeros(log.reward.shape), np.zeros(log.reward.shape)
    for held in range(int(fold.max()) + 1):
        train, test = fold != held, fold == held
        following = np.zeros(len(fold))
        for step in reversed(range(log.reward.shape[1])):
            learn, ask = train & inside[:, step], inside[:, step]
            table = np.zeros(probs[:, step].shape)
            if learn.any():
                target = log.reward[learn, step] + discount * following[learn]
                model = make().fit(
                    _features(states[learn, step], actions[learn, step], probs.shape[2]), target
                )
                table[ask] = _all_actions(model, states[ask, step], probs.shape[2])
            following = np.where(ask, (table * probs[:, step]).sum(axis=1), 0.0)
            q[test, step] = table[test, actions[test, step]] * ask[test]
            v[test, step] = following[test]
    return q, v


def _features(state: FloatArray, action: NDArray[np.int64], actions: int) -> FloatArray:
    return np.hstack([state, np.eye(actions)[action]])


def _all_actions(model: Regressor, state: FloatArray, actions: int) -> FloatArray:
    """`[m, actions]` predictions."""
    columns = [model.predict(_features(state, np.full(len(state), one), actions)) for one in range(actions)]
    return np.stack(columns, axis=1).astype(np.float64)


def _checked(
    log: TrajectoryLog, state: ArrayLike, action: ArrayLike, policy: ArrayLike
) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
    """Arrays of the right shape; what lies beyond a trajectory's end is set to something harmless."""
    shape = log.reward.shape
    states, probs = (np.asarray(given, dtype=np.float64) for given in (state, policy))
    for name, array, form in (("state", states, "d"), ("policy", probs, "n_actions")):
        if array.ndim != 3 or array.shape[:2] != shape:
            raise ValueError(f"{name}: has shape {array.shape}; must be ({shape[0]}, {shape[1]}, {form})")
    inside = log.inside(shape[1])
    states = np.where(inside[:, :, None], states, 0.0)
    refuse_where(
        "state", states.reshape(shape[0], -1), ~np.isfinite(states.reshape(shape[0], -1)), "must be finite"
    )
    probs = np.where(inside[:, :, None], probs, 1 / probs.shape[2])
    sums = probs.sum(axis=2)
    wrong = ~(np.abs(sums - 1) <= SUM_TOLERANCE) | (probs < 0).any(axis=2)
    refuse_where("policy sum", sums, wrong, "must be probabilities ≥ 0 that sum to 1")
    actions = np.where(inside, np.asarray(action), 0)
    if actions.shape != shape:
        raise ValueError(f"action: has shape {actions.shape}; must be {shape}")
    flat = index_vector("action", actions.reshape(-1))
    refuse_where("action", flat, flat >= probs.shape[2], f"out of range: policy has {probs.shape[2]} actions")
    return states, flat.reshape(shape), probs
