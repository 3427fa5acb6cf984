"""Weighted ridge regression within groups: what a text adds to the logarithm of the click rate of its group.

With y the logarithm of a text's click rate, α an intercept of each group and one penalty per view,

    min over α, w of  Σ_i (y_i − α_group(i) − Σ_v s_v x_iv · w_v)² / (τ² + 1/c_i)  +  Σ_v |w_v|²

where c are clicks: 1/c is the variance of a logarithm of a count, τ² what no text explains. This is the
posterior mean of a Gaussian process with linear kernels of variance s_v² (Rasmussen and Williams, 2006, 2.1),
solved without its matrix by LSMR (Fong and Saunders, 2011).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, lsmr

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Half a click is added, as usual for logarithms of counts that may be 0 (Haldane, 1956; Anscombe).
HALF = 0.5
_ITERATIONS = 400
_TOLERANCE = 1e-6


def log_rate(clicks: Floats, impressions: Floats) -> tuple[Floats, Floats]:
    """`[n]` logarithm of the click rate, and its sampling variance."""
    return np.log((clicks + HALF) / impressions), 1 / (clicks + HALF)


class Within:
    """Weighted deviations from the mean of each group: the projection that removes its intercept."""

    def __init__(self, group: Ints, weight: Floats) -> None:
        _, self._code = np.unique(group, return_inverse=True)
        self._root = np.sqrt(weight)
        self._total = np.bincount(self._code, weights=weight)

    def __call__(self, values: Floats) -> Floats:
        """`[n]` → `[n]`, symmetric and idempotent, of values already times the root of the weight."""
        mean = np.bincount(self._code, weights=values * self._root) / self._total
        return np.asarray(values - self._root * mean[self._code])

    def scaled(self, values: Floats) -> Floats:
        """The same of plain values."""
        return self(values * self._root)

    @property
    def root(self) -> Floats:
        return self._root


def fit_views(
    views: Mapping[str, Any], scales: Mapping[str, float], target: Floats, group: Ints, variance: Floats
) -> dict[str, Floats]:
    """Weights of each view, its scale included: a score is `view @ weight` summed over the views.

    views: name → `[n, k]` dense or sparse; scales: s of each, 0 leaves it out; target, variance: `[n]` y and
    τ² + 1/c. Deterministic.
    """
    within = Within(group, 1 / variance)
    names = [name for name in views if scales.get(name, 0.0) > 0]
    widths = [views[name].shape[1] for name in names]
    cuts = np.cumsum(widths)[:-1]
    operator = _operator([views[name] for name in names], [scales[name] for name in names], within, cuts)
    found = lsmr(
        operator, within.scaled(target), damp=1.0, atol=_TOLERANCE, btol=_TOLERANCE, maxiter=_ITERATIONS
    )[0]
    weights = dict(zip(names, np.split(found, cuts), strict=True))
    return {
        name: weights[name] * scales[name] if name in weights else np.zeros(views[name].shape[1])
        for name in views
    }


def _operator(views: Sequence[Any], scales: Sequence[float], within: Within, cuts: Any) -> LinearOperator:
    rows, columns = views[0].shape[0], sum(view.shape[1] for view in views)

    def forward(w: Floats) -> Floats:
        parts = np.split(w.ravel(), cuts)
        total = sum(
            s * np.asarray(x @ p, dtype=np.float64) for s, x, p in zip(scales, views, parts, strict=True)
        )
        return within.scaled(np.asarray(total))

    def backward(r: Floats) -> Floats:
        inner = within(r.ravel()) * within.root
        return np.concatenate(
            [s * np.asarray(x.T @ inner, dtype=np.float64) for s, x in zip(scales, views, strict=True)]
        )

    return LinearOperator((rows, columns), matvec=forward, rmatvec=backward, dtype=np.float64)
