"""Fitted Q evaluation: a value model of a policy, from the log and a regressor that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    states, actions, probs = _checked(log, state, action, policy)
    number = probs.shape[2]
    every = np.eye(number)
    setting = _Setting(log, states, every[actions], make, discount, folds, seed)
    return _backwards(setting, lambda step: np.tile(every, (len(states), 1, 1)), lambda step: probs[:, step])


def fitted_q_numbers(
    log: TrajectoryLog,
    state: ArrayLike,
    action: ArrayLike,
    draws: Callable[[int], FloatArray],
    make: Callable[[], Regressor],
    discount: float = 1.0,
    folds: int = 2,
    seed: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """`fitted_q` for actions that are numbers.

    action: `[n, T, k]`. draws: gives for step t `[n, m, k]` actions of the policy in the states s_t; the mean
    of Q over them stands for Σ_a π(a|s) Q(s, a). The regressor learns from the state and the action.
    """
    shape = log.reward.shape
    arrays = {"state": np.asarray(state, np.float64), "action": np.asarray(action, np.float64)}
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[:2] != shape:
            raise ValueError(f"{name}: has shape {array.shape}; must be ({shape[0]}, {shape[1]}, d)")
        arrays[name] = np.where(log.inside(shape[1])[:, :, None], array, 0.0)
        flat = arrays[name].reshape(shape[0], -1)
        refuse_where(name, flat, ~np.isfinite(flat), "must be finite")
    setting = _Setting(log, arrays["state"], arrays["action"], make, discount, folds, seed)

    def weights(step: int) -> FloatArray:
        return np.ones((shape[0], 1))

    return _backwards(setting, draws, weights)


@dataclass(frozen=True, slots=True, eq=False)
class _Setting:
    """What every step needs: states `[n, T, d]`, actions as numbers `[n, T, k]`, and how to fit."""

    log: TrajectoryLog
    states: FloatArray
    actions: FloatArray
    make: Callable[[], Regressor]
    discount: float
    folds: int
    seed: int


def _backwards(
    of: _Setting, candidates: Callable[[int], FloatArray], weights: Callable[[int], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """(q, v) by folds; of a step the policy's actions `[n, m, k]` and their weights, `[n, m]` or `[n, 1]`."""
    fraction("discount", of.discount)
    reward, fold = of.log.reward, _folds(of)
    inside = of.log.inside(reward.shape[1])
    q, v = np.zeros(reward.shape), np.zeros(reward.shape)
    following = np.zeros((int(fold.max()) + 1, len(reward)))
    for step in reversed(range(reward.shape[1])):
        asked, chance, ask = candidates(step), weights(step), inside[:, step]
        for held in range(len(following)):
            learn, value = (fold != held) & ask, np.zeros(len(reward))
            if learn.any():
                target = reward[learn, step] + of.discount * following[held, learn]
                model = of.make().fit(_features(of.states[learn, step], of.actions[learn, step]), target)
                value[ask] = _policy_value(model, of.states[ask, step], asked[ask], chance[ask])
                test = (fold == held) & ask
                if test.any():
                    q[test, step] = model.predict(_features(of.states[test, step], of.actions[test, step]))
                    v[test, step] = value[test]
            following[held] = value
    return q, v


def _folds(of: _Setting) -> NDArray[np.int64]:
    units = of.log.units()
    if units.count < 2 or of.folds < 2:
        raise ValueError(
            f"folds: {units.count} units cannot be split into {of.folds} folds; use 2 or more of both"
        )
    fold = np.random.default_rng(of.seed).permutation(units.count) % min(of.folds, units.count)
    return np.asarray(fold if units.codes is None else fold[units.codes])


def _features(state: FloatArray, action: FloatArray) -> FloatArray:
    return np.hstack([state, action])


def _policy_value(model: Regressor, state: FloatArray, actions: FloatArray, chance: FloatArray) -> FloatArray:
    """`[m]` weighted mean over the policy's actions `[m, c, k]`."""
    found = [model.predict(_features(state, actions[:, one])) for one in range(actions.shape[1])]
    values = np.stack(found, axis=1).astype(np.float64)
    share = np.broadcast_to(chance, values.shape)
    return np.asarray((values * share).sum(axis=1) / share.sum(axis=1))


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
