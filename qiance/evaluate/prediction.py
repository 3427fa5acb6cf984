"""How good predictions are: proper scores, ranking, calibration.

Labels y are 0 or 1 unless said otherwise; p are predicted probabilities; both have shape [n].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

# Probabilities are kept this far from 0 and 1 in logarithms, so that one confident mistake costs
# 34.5 nats, not infinity.
EPSILON = 1e-15


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One bin of a calibration table.

    n: rows in the bin. predicted: mean probability. observed: share of ones.
    low, high: 95 % Wilson score interval of the share.
    """

    n: int
    predicted: float
    observed: float
    low: float
    high: float


def log_loss(y: ArrayLike, p: ArrayLike) -> float:
    """Mean negative log likelihood in nats.

    −(1/n) Σ [y ln p + (1 − y) ln(1 − p)], p cut to [1e-15, 1 − 1e-15].
    Source: Good (1952), Rational decisions.
    """
    labels, chances = binary(y, p)
    cut = np.clip(chances, EPSILON, 1 - EPSILON)
    return float(-np.mean(labels * np.log(cut) + (1 - labels) * np.log1p(-cut)))


def normalised_entropy(y: ArrayLike, p: ArrayLike) -> float:
    """Log loss divided by the entropy of the base rate: 1 is no better than predicting the mean.

    log_loss(y, p) / −[r ln r + (1 − r) ln(1 − r)], r = mean of y.
    Source: He et al. (2014), Practical lessons from predicting clicks on ads at Facebook.
    Raises ValueError when y has one class only: the base rate has no entropy.
    """
    labels, chances = binary(y, p)
    rate = float(labels.mean())
    if rate in (0.0, 1.0):
        raise ValueError(f"y: all {labels.size} labels are {rate:g}; normalised entropy needs both classes")
    return log_loss(labels, chances) / log_loss(labels, np.full(labels.size, rate))


def auc(y: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: P(score of a one > score of a zero) + ½ P(equal).

    (R₁ − n₁(n₁ + 1)/2) / (n₁ n₀), R₁ = sum of the mid-ranks of the ones.
    Source: Mann and Whitney (1947); Hanley and McNeil (1982).
    Raises ValueError when y has one class only.
    """
    labels, scores = _pair(y, score)
    _check_labels(labels)
    ones = float(labels.sum())
    zeros = labels.size - ones
    if ones == 0 or zeros == 0:
        raise ValueError(f"y: all {labels.size} labels are {labels[0]:g}; AUC needs both classes")
    ranks = stats.rankdata(scores)
    return float((ranks[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def mse(y: ArrayLike, prediction: ArrayLike) -> float:
    """Mean squared error (1/n) Σ (y − ŷ)², in squared units of y; y may be any number."""
    labels, values = _pair(y, prediction)
    return float(np.mean((labels - values) ** 2))


def rmse(y: ArrayLike, prediction: ArrayLike) -> float:
    """Root of the mean squared error, in units of y."""
    return float(np.sqrt(mse(y, prediction)))


def calibration_table(y: ArrayLike, p: ArrayLike, bins: int = 10) -> list[CalibrationRow]:
    """Rows sorted by p and cut into `bins` parts of nearly equal size; equal p stay together.

    Fewer rows of the table come back where p has fewer distinct values. The interval of each share
    is Wilson's. Sources: Hosmer and Lemeshow (1980) for the bins, Wilson (1927) for the interval.
    """
    labels, chances = binary(y, p)
    if bins < 1:
        raise ValueError(f"bins: {bins} is not positive")
    place = equal_mass_bins(chances, bins)
    return [_row(labels[place == b], chances[place == b]) for b in np.unique(place)]


def equal_mass_bins(p: Floats, bins: int) -> NDArray[np.intp]:
    """`[n]` bin of each value: sorted and cut into parts of nearly equal size, equal values together."""
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf"))
    return np.searchsorted(edges, p, side="left")


def ece(y: ArrayLike, p: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: Σ (n_b / n) |observed_b − predicted_b| over the calibration table.

    Source: Naeini, Cooper and Hauskrecht (2015); equal-mass bins as in Nguyen and O'Connor (2015).
    """
    table = calibration_table(y, p, bins)
    total = sum(row.n for row in table)
    return sum(row.n * abs(row.observed - row.predicted) for row in table) / total


def ece_if_calibrated(p: ArrayLike, bins: int = 10, draws: int = 50, seed: int = 0) -> float:
    """The `ece` that a perfectly calibrated model with these probabilities would show on n rows.

    Mean over `draws` label sets y ~ Bernoulli(p): an ECE near this figure is sampling noise.
    Source: Roelofs et al. (2022), Mitigating bias in calibration error estimation.
    """
    return float(np.mean(_eces_if_calibrated(p, bins, draws, seed)))


def ece_floor(p: ArrayLike, bins: int = 10, draws: int = 200, seed: int = 0) -> float:
    """95th percentile of the `ece` of a perfectly calibrated model: one above it shows a fault.

    Parametric bootstrap over `draws` label sets y ~ Bernoulli(p).
    """
    return float(np.quantile(_eces_if_calibrated(p, bins, draws, seed), 0.95))


def _eces_if_calibrated(p: ArrayLike, bins: int, draws: int, seed: int) -> list[float]:
    chances = _numbers("p", p)
    random = np.random.default_rng(seed)
    simulated = (random.random(chances.size) < chances for _ in range(draws))
    return [ece(labels, chances, bins) for labels in simulated]


def _row(labels: Floats, chances: Floats) -> CalibrationRow:
    n, rate = labels.size, float(labels.mean())
    z = float(stats.norm.ppf(0.975))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return CalibrationRow(n, float(chances.mean()), rate, min(low, rate), max(high, rate))


def _pair(y: ArrayLike, p: ArrayLike) -> tuple[Floats, Floats]:
    labels, values = _numbers("y", y), _numbers("p", p)
    if labels.shape != values.shape:
        raise ValueError(f"p: has {values.size} values where y has {labels.size}")
    if not labels.size:
        raise ValueError("y: is empty; at least one row is needed")
    return labels, values


def _numbers(name: str, values: Any) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: has shape {array.shape} where [n] is expected")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name}: value {array[bad[0]]} at row {bad[0]} is not finite")
    return array


def _check_labels(labels: Floats) -> None:
    bad = np.flatnonzero((labels != 0) & (labels != 1))
    if bad.size:
        raise ValueError(f"y: label {labels[bad[0]]:g} at row {bad[0]} is neither 0 nor 1")


def binary(y: ArrayLike, p: ArrayLike) -> tuple[Floats, Floats]:
    """Labels and probabilities as arrays `[n]`; ValueError naming the row that is neither."""
    labels, chances = _pair(y, p)
    _check_labels(labels)
    bad = np.flatnonzero((chances < 0) | (chances > 1))
    if bad.size:
        raise ValueError(f"p: {chances[bad[0]]:g} at row {bad[0]} is outside [0, 1]; clip it first")
    return labels, chances
