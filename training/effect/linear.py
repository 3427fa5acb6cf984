"""Linear regression by least squares, with its formula written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.prediction import mse

Floats = NDArray[np.float64]


def linear_prediction(coefficients: ArrayLike, features: ArrayLike, intercept: float = 0.0) -> float | Floats:
    """intercept + Σ coefficient · feature.

    coefficients `[d]`; features `[d]` gives one number, `[n, d]` gives `[n]`.
    Worked example: 0.1 + 0.05·100 + 0.02·5 − 0.01·30 = 4.9.
    """
    weights = np.asarray(coefficients, dtype=np.float64)
    values = np.asarray(features, dtype=np.float64)
    if weights.ndim != 1 or values.shape[-1:] != weights.shape:
        raise ValueError(f"features: shape {values.shape} does not fit {weights.shape} coefficients")
    result = intercept + values @ weights
    return float(result) if np.ndim(result) == 0 else result


@dataclass(frozen=True, slots=True)
class LinearFit:
    """A fitted regression.

    coefficients: name → change of the label per unit of the feature, in the feature's own units.
    importance: name → |coefficient| · standard deviation of the feature.
    mse, rmse: on the rows it was fitted on.
    """

    label: str
    intercept: float
    coefficients: Mapping[str, float]
    importance: Mapping[str, float]
    mse: float
    rmse: float

    def predict(self, features: Floats) -> Floats:
        """Expected label `[n]` of features `[n, d]`, columns in the order of the coefficients."""
        return np.asarray(linear_prediction(list(self.coefficients.values()), features, self.intercept))

    def formula(self, terms: int = 8) -> str:
        """`label = intercept + coefficient·feature + …`, the most important terms first."""
        ranked = sorted(self.coefficients, key=lambda name: -self.importance[name])
        parts = [_term(self.coefficients[name], name) for name in ranked[:terms]]
        rest = f" + … ({len(ranked) - terms} more terms)" if len(ranked) > terms else ""
        return f"{self.label} = {self.intercept:.4g}{''.join(parts)}{rest}"


def fit_linear(label: str, names: tuple[str, ...], features: Floats, target: Floats) -> LinearFit:
    """Least squares with intercept: min Σ (y − b₀ − Σ bⱼxⱼ)².

    features `[n, d]` in their own units, target `[n]`. Columns are standardised for the solution and
    the coefficients scaled back; of dependent columns the solution of least norm is taken.
    """
    if features.shape != (target.size, len(names)):
        raise ValueError(
            f"features: shape {features.shape} does not fit {target.size} rows × {len(names)} names"
        )
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.where(std > 1e-12, std, 1.0)
    solution, *_ = np.linalg.lstsq((features - mean) / scale, target - target.mean(), rcond=None)
    weights = solution / scale
    intercept = float(target.mean() - mean @ weights)
    error = mse(target, intercept + features @ weights)
    return LinearFit(
        label,
        intercept,
        dict(zip(names, weights.tolist(), strict=True)),
        dict(zip(names, np.abs(solution).tolist(), strict=True)),
        error,
        float(np.sqrt(error)),
    )


def _term(coefficient: float, name: str) -> str:
    return f" {'-' if coefficient < 0 else '+'} {abs(coefficient):.4g}·{name}"
