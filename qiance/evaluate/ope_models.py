"""A reward model fitted from the log itself, out of fold, where the caller brings none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import FloatArray, finite_matrix
from qiance.evaluate.bandit_log import BanditLog

FOLDS = 5
# Prior rows for which the average over all actions counts in an action's own fit; chosen out of fold.
_PRIOR_ROWS = (3.0, 30.0, 300.0)


def fit_reward_model(
    log: BanditLog,
    actions: int,
    sample_weight: FloatArray | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> FloatArray:
    """`[n, actions]` expected rewards, each row's by a model that has not seen the row.

    Ridge regressions of the reward on `log.context` and the position, one per action, each drawn towards the
    one of all actions; how strongly is chosen out of fold. Without a context they are the actions' means,
    drawn towards the mean of all. Units stay whole in a fold. sample_weight: `[n]` ≥ 0. Predictions are kept
    within the rewards seen. Categories must be one-hot in the context. Takes twice the memory of the result.
    Raises ValueError for fewer than 2 units.
    Source: cross-fitting: Chernozhukov et al., Econom. J. 21 (2018), C1-C68.
    """
    units = log.units()
    if units.count < 2:
        raise ValueError(
            f"rows: {units.count} independent unit cannot be split into folds; at least 2 are needed"
        )
    design, weight = _design(log), np.ones(len(log)) if sample_weight is None else sample_weight
    order = np.random.default_rng(seed).permutation(units.count)
    fold = order % min(folds, units.count)
    fold = fold if units.codes is None else fold[units.codes]
    best, found = np.inf, np.zeros((len(log), actions))
    for prior in _PRIOR_ROWS:
        predicted = np.empty((len(log), actions))
        for held in range(int(fold.max()) + 1):
            train, test = fold != held, fold == held
            parts = (design[train], log.action[train], log.reward[train], weight[train])
            predicted[test] = design[test] @ _coefficients(*parts, actions, prior).T
        np.clip(predicted, log.reward.min(), log.reward.max(), out=predicted)
        gap = log.reward - predicted[np.arange(len(log)), log.action]
        error = float(weight @ np.square(gap))
        if error < best:
            best, found = error, predicted
    return found


def _design(log: BanditLog) -> FloatArray:
    """`[n, 1 + d + slots − 1]` intercept, standardised context, one-hot position."""
    columns: list[NDArray[np.float64]] = [np.ones((len(log), 1))]
    if log.context is not None:
        context = finite_matrix("context", log.context).astype(np.float64, copy=False)
        spread = context.std(axis=0)
        columns.append((context - context.mean(axis=0)) / np.where(spread > 0, spread, 1.0))
    if log.position is not None:
        slots = np.unique(log.position)
        columns.append((log.position[:, None] == slots[1:]).astype(np.float64))
    return np.hstack(columns)


def _coefficients(
    design: FloatArray,
    action: NDArray[np.int64],
    reward: FloatArray,
    weight: FloatArray,
    actions: int,
    prior: float,
) -> FloatArray:
    """`[actions, d]`: ridge of all rows, plus each action's ridge on what that leaves."""
    root = np.sqrt(weight / weight.mean()) if weight.any() else np.ones_like(weight)
    x, y = design * root[:, None], reward * root
    size = design.shape[1]
    penalty = np.eye(size)
    penalty[0, 0] = 1e-6  # the mean is not drawn towards 0
    shared = np.linalg.solve(x.T @ x + penalty, x.T @ y)
    order = np.argsort(action, kind="stable")
    ends = np.searchsorted(action[order], np.arange(actions + 1))
    x, left = x[order], (y - x @ shared)[order]
    moments = np.tile(prior * np.eye(size), (actions, 1, 1))
    pull = np.zeros((actions, size))
    for place in np.flatnonzero(np.diff(ends)).tolist():
        rows = slice(ends[place], ends[place + 1])
        moments[place] += x[rows].T @ x[rows]
        pull[place] = x[rows].T @ left[rows]
    own = np.linalg.solve(moments, pull[:, :, None])[:, :, 0]
    return np.asarray(shared + own, dtype=np.float64)
