"""Reward models of the benchmark, fitted out of fold: one of the right form, one of the wrong form.

right: a logistic regression per action, the form of the truth. wrong: one logistic regression on the context
and the action's one-hot, without interplay: what OBP's `RegressionModel` fits by default. mrdr: the wrong
form with the weights of more robust doubly robust (Farajtabar, Chow and Ghavamzadeh, ICML 2018), as OBP fits
it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.opeval.problem import Floats, Sample

FOLDS = 3
_STEPS = 25


def fit(sample: Sample, form: str, seed: int) -> Floats:
    """`[n, K]` predictions, each row's by a model of the other folds. form: right, wrong or mrdr."""
    fold = np.random.default_rng([seed, 3]).permutation(len(sample.action)) % FOLDS
    found = np.empty(sample.policy.shape)
    row = np.arange(len(sample.action))
    weight = np.ones(len(row))
    if form == "mrdr":
        p = sample.propensity
        weight = sample.policy[row, sample.action] * (1 - p) / p**2
        weight = weight / weight.mean()
    for held in range(FOLDS):
        train, test = fold != held, fold == held
        learn = _per_action if form == "right" else _additive
        found[test] = learn(sample, train, weight)(sample.context[test])
    return found


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def _per_action(sample: Sample, train: NDArray[np.bool_], weight: Floats) -> Callable[[Floats], Floats]:
    """Newton steps for all actions at once; the penalty is C = 1 but for the intercept."""
    actions, rows = sample.policy.shape[1], np.flatnonzero(train)
    x = np.column_stack([sample.context[rows], np.ones(len(rows))])
    order = np.argsort(sample.action[rows], kind="stable")
    x, y, a = x[order], sample.reward[rows][order], sample.action[rows][order]
    starts = np.searchsorted(a, np.arange(actions))
    has = np.bincount(a, minlength=actions) > 0
    outer = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    penalty = np.diag([1.0] * (x.shape[1] - 1) + [1e-2])
    theta = np.zeros((actions, x.shape[1]))

    def by_action(values: Floats) -> Floats:
        sums = np.zeros((actions, values.shape[1]))
        sums[has] = np.add.reduceat(values, starts[has], axis=0)
        return sums

    for _ in range(_STEPS):
        p = _sigmoid((x * theta[a]).sum(axis=1))
        gradient = by_action(x * (y - p)[:, None]) - theta @ penalty
        curve = by_action(outer * (p * (1 - p))[:, None]).reshape(actions, *penalty.shape) + penalty
        step = np.linalg.solve(curve, gradient[:, :, None])[:, :, 0]
        theta += step
        if np.abs(step).max() < 1e-8:
            break
    return lambda context: _sigmoid(context @ theta[:, :-1].T + theta[:, -1])


def _additive(sample: Sample, train: NDArray[np.bool_], weight: Floats) -> Callable[[Floats], Floats]:
    """Newton steps on context and one-hot action; the penalty is scikit-learn's default, C = 1."""
    actions, rows = sample.policy.shape[1], np.flatnonzero(train)
    x, a, y, w = sample.context[rows], sample.action[rows], sample.reward[rows], weight[rows]
    size = x.shape[1]
    theta, curve = np.zeros(size + actions), np.zeros((size + actions, size + actions))
    for _ in range(_STEPS):
        p = _sigmoid(x @ theta[:size] + theta[size:][a])
        gap, bend = w * (y - p), w * p * (1 - p)
        slope = np.concatenate([gap @ x, np.bincount(a, gap, actions)]) - theta
        cross = np.stack([np.bincount(a, bend * column, actions) for column in x.T])
        curve[:size, :size] = (x * bend[:, None]).T @ x
        curve[:size, size:], curve[size:, :size] = cross, cross.T
        curve[size:, size:] = np.diag(np.bincount(a, bend, actions))
        step = np.linalg.solve(curve + np.eye(len(curve)), slope)
        theta += step
        if np.abs(step).max() < 1e-8:
            break
    return lambda context: _sigmoid((context @ theta[:size])[:, None] + theta[size:])
