"""Calibration: predicted probabilities moved to what was seen, overall and by segment.

Beta calibration maps p to σ(a · ln p − b · ln(1 − p) + c) with a, b ≥ 0, so that order is kept; a = b = 1,
c = 0 leaves p as it is. Source: Kull, Silva Filho and Flach (2017), Beta calibration. A segment adds an
offset of its own to c, drawn to 0 by a normal prior whose variance is estimated from the segments themselves,
so that a small one does not learn its own noise (empirical Bayes: Morris, 1983).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy.special import expit

Floats = NDArray[np.float64]
_EDGE = 1e-7  # predictions are kept this far from 0 and 1: their logarithms are features here
_TURNS = 8  # after which the offsets move by less than 1e-3
_STEP = 2.0  # a Newton step is no further: far off, the parabola says little
# Precision of normal priors around a = b = 1, c = 0. They matter for some hundred events and are nothing
# beside some ten thousand: a small set does not pay with noise for a correction that it cannot show.
_PRECISION = np.array([20.0, 20.0, 10.0])
_MIN_EVENTS = 20  # of the rarer outcome, below which nothing is corrected


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A fitted correction. offsets: segment → what it adds to c; others add nothing."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0
    offsets: Mapping[str, float] = field(default_factory=dict)

    def apply(self, p: ArrayLike, segments: ArrayLike | None = None) -> Floats:
        """Corrected probabilities, in the shape of p: `[n]`, or `[n, ...]` with `[n]` segments."""
        chances = np.asarray(p, dtype=np.float64)
        score = _score(chances, self.a, self.b, self.c)
        if segments is not None and self.offsets:
            own = self._offsets_of(np.asarray(segments).astype(np.str_))
            score = score + own.reshape(own.shape + (1,) * (chances.ndim - 1))
        return np.asarray(expit(score))

    def _offsets_of(self, segments: NDArray[np.str_]) -> Floats:
        found, inverse = np.unique(segments, return_inverse=True)
        return np.array([self.offsets.get(str(name), 0.0) for name in found])[inverse.ravel()]

    def to_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "c": self.c, "offsets": dict(self.offsets)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibrator:
        offsets = {str(name): float(value) for name, value in data["offsets"].items()}
        return cls(float(data["a"]), float(data["b"]), float(data["c"]), offsets)


def fit_calibrator(y: ArrayLike, p: ArrayLike, segments: ArrayLike | None = None) -> Calibrator:
    """Fit on outcomes y `[n]` (0 or 1) and predictions p `[n]` of rows that the model has not seen.

    segments: `[n]` names; None corrects all rows alike. With fewer than 20 rows of either outcome p is left
    as it is. Raises ValueError for shapes that do not fit.
    """
    labels, chances = np.asarray(y, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if labels.shape != chances.shape or labels.ndim != 1:
        raise ValueError(f"p: has shape {chances.shape} where y has {labels.shape}")
    if min(labels.sum(), (1 - labels).sum()) < _MIN_EVENTS:
        return Calibrator()
    if segments is None:
        return Calibrator(*_fit_beta(labels, chances, np.zeros_like(labels)))
    names = np.asarray(segments).astype(np.str_)
    if names.shape != labels.shape:
        raise ValueError(f"segments: has shape {names.shape} where y has {labels.shape}")
    return _by_segment(labels, chances, names)


def cross_calibrate(
    y: ArrayLike,
    draws: ArrayLike,
    folds: ArrayLike,
    segments: ArrayLike | None = None,
    among: ArrayLike | None = None,
) -> Floats:
    """Draws `[n, H]` of rows the model has not seen, each fold corrected by what the other folds say.

    folds: `[n]` whole numbers; the rows of a user belong in one. The calibrator is fitted on the mean over
    the draws and applied to each. among: `[n]` rows that may be fitted on, all by default.
    """
    labels, chances = np.asarray(y, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    fold, corrected = np.asarray(folds), np.empty(chances.shape)
    known = np.ones(fold.shape, dtype=np.bool_) if among is None else np.asarray(among, dtype=np.bool_)
    names = None if segments is None else np.asarray(segments).astype(np.str_)
    for number in np.unique(fold):
        held, others = fold == number, (fold != number) & known
        own = None if names is None else names[others]
        calibrator = fit_calibrator(labels[others], chances[others].mean(axis=1), own)
        corrected[held] = calibrator.apply(chances[held], None if names is None else names[held])
    return corrected


def _by_segment(y: Floats, p: Floats, segments: NDArray[np.str_]) -> Calibrator:
    """The curve given the offsets, the offsets given the curve, in turn."""
    names, inverse = np.unique(segments, return_inverse=True)
    place = inverse.ravel()
    offsets = np.zeros(len(names))
    for _ in range(_TURNS):
        a, b, c = _fit_beta(y, p, offsets[place])
        offsets = _next_offsets(y, expit(_score(p, a, b, c) + offsets[place]), offsets, place)
    return Calibrator(a, b, c, {str(n): float(v) for n, v in zip(names, offsets, strict=True)})


def _fit_beta(y: Floats, p: Floats, offset: Floats) -> tuple[float, float, float]:
    """The mode within a, b ≥ 0 given the offsets: the problem is convex, so any start finds it."""
    cut = np.clip(p, _EDGE, 1 - _EDGE)
    inputs = np.stack([np.log(cut), -np.log1p(-cut), np.ones_like(cut)])

    def loss(weights: Floats) -> tuple[float, Floats]:
        score = weights @ inputs + offset
        away = weights - start
        value = np.sum(np.logaddexp(0.0, score) - y * score) + 0.5 * _PRECISION @ away**2
        return float(value) / y.size, (inputs @ (expit(score) - y) + _PRECISION * away) / y.size

    start, bounds = np.array([1.0, 1.0, 0.0]), [(0.0, None), (0.0, None), (None, None)]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    a, b, c = (float(value) for value in found.x)
    return a, b, c


def _next_offsets(y: Floats, p: Floats, offsets: Floats, place: NDArray[np.intp]) -> Floats:
    """`[S]` one Newton step per segment from `offsets`, shrunk to 0 by τ² / (τ² + its variance).

    The step Σ(y − p) / Σp(1 − p) has variance 1 / Σp(1 − p); τ², the variance between segments, is estimated
    by moments (DerSimonian and Laird, 1986).
    """
    information = np.maximum(np.bincount(place, p * (1 - p)), 1e-12)
    step = np.clip(np.bincount(place, y - p) / information, -_STEP, _STEP)
    own = offsets + step
    spread = _between(own, information)
    return np.asarray(own * spread / (spread + 1 / information))


def _between(own: Floats, information: Floats) -> float:
    """DerSimonian and Laird's estimate of the variance between segments."""
    total = information.sum()
    if len(own) < 2:
        return 0.0
    mean = float((information * own).sum() / total)
    beyond = float((information * (own - mean) ** 2).sum()) - (len(own) - 1)
    return max(0.0, float(beyond / (total - float((information**2).sum()) / total)))


def _score(p: Floats, a: float, b: float, c: float) -> Floats:
    cut = np.clip(p, _EDGE, 1 - _EDGE)
    return np.asarray(a * np.log(cut) - b * np.log1p(-cut) + c)
