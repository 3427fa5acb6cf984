"""A/B comparison: the measured effect of a treatment (a policy) over a control (a holdout)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from qiance.domain import Interval
from qiance.evaluate.arrays import FloatArray, finite_vector, fraction
from qiance.evaluate.inference import Units, cluster_codes, standard_error, student_interval, units_of

# A sample ratio this unlikely under the planned split means that the assignment or the logging is broken
# (Fabijan et al., KDD 2019, 2156-2164).
SAMPLE_RATIO_THRESHOLD = 0.001
_EXACT_BELOW = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of two means with its two-sided interval at `confidence`.

    effect, low, high: treated − control, in the units of the values; adjusted where covariates were given.
    relative: effect as a fraction of the control mean, by the delta method; None where the control mean is
        not clearly different from 0, for then the fraction means nothing.
    p_value: two-sided, of no effect.
    n_treated, n_control: rows; units_treated, units_control: independent units (clusters).
    mean_treated, mean_control: adjusted means where covariates were given.
    variance_reduction: share of the effect's variance that CUPED removed; None without covariates.
    """

    effect: float
    low: float
    high: float
    relative: Interval | None
    p_value: float
    confidence: float
    n_treated: int
    n_control: int
    units_treated: int
    units_control: int
    mean_treated: float
    mean_control: float
    variance_reduction: float | None = None


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether the split of units is the planned one: `ok` when p_value ≥ 0.001."""

    p_value: float
    ok: bool
    observed_share: float
    expected_share: float


@dataclass(frozen=True, slots=True, eq=False)
class _Arm:
    values: FloatArray
    units: Units

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def influence(self) -> FloatArray:
        return self.values - self.mean

    def variance(self) -> float:
        return standard_error(self.influence, self.units) ** 2


def compare(
    treated: ArrayLike,
    control: ArrayLike,
    confidence: float = 0.95,
    covariate_treated: ArrayLike | None = None,
    covariate_control: ArrayLike | None = None,
    cluster_treated: ArrayLike | None = None,
    cluster_control: ArrayLike | None = None,
) -> Comparison:
    """Welch comparison of two groups, with optional CUPED adjustment and clustered errors.

    treated, control: `[n_t]`, `[n_c]` outcomes. covariate_*: a value known before treatment, same shape
    (spend of the weeks before); outcomes become y − θ (x − x̄) with θ the within-group slope of y on x, which
    leaves the effect unbiased and narrows its interval. cluster_*: ids of the independent units, same shape;
    a unit found in both groups is counted once, with its covariance.

    Sources: Welch, Biometrika 34 (1947), 28-35; Deng, Xu, Kohavi & Walker, WSDM (2013), 123-132.
    ValueError names the array and row of a bad value; each group needs two units.
    """
    fraction("confidence", confidence, open_ends=True)
    arms = (
        _arm("treated", treated, cluster_treated),
        _arm("control", control, cluster_control),
    )
    if (cluster_treated is None) != (cluster_control is None):
        raise ValueError("cluster: give cluster_treated and cluster_control, or neither")
    shared = None
    if cluster_treated is not None and cluster_control is not None:
        shared = _shared_units(cluster_treated, cluster_control, arms)
    plain = _effect_moments(arms, shared)
    if covariate_treated is None and covariate_control is None:
        return _comparison(arms, plain, confidence, None)
    if covariate_treated is None or covariate_control is None:
        raise ValueError("covariate: give covariate_treated and covariate_control, or neither")
    arms = _cuped(arms, covariate_treated, covariate_control)
    moments = _effect_moments(arms, shared)
    reduction = 1 - moments[0] / plain[0] if plain[0] > 0 else 0.0
    return _comparison(arms, moments, confidence, reduction)


def sample_ratio(n_treated: int, n_control: int, expected_share: float = 0.5) -> SampleRatio:
    """Test that `n_treated` of all units fits the planned share of treatment.

    Exact binomial under 10,000 units, chi-square with one degree of freedom from there on.
    """
    fraction("expected_share", expected_share, open_ends=True)
    for name, count in (("n_treated", n_treated), ("n_control", n_control)):
        if count < 0 or count != int(count):
            raise ValueError(f"{name}: {count} is not a count")
    total = n_treated + n_control
    if total == 0:
        raise ValueError("n_treated: no units in either group; nothing can be tested")
    if total < _EXACT_BELOW:
        p_value = float(stats.binomtest(n_treated, total, expected_share).pvalue)
    else:
        expected = [total * expected_share, total * (1 - expected_share)]
        p_value = float(stats.chisquare([n_treated, n_control], expected).pvalue)
    return SampleRatio(p_value, p_value >= SAMPLE_RATIO_THRESHOLD, n_treated / total, expected_share)


def mean_interval(values: ArrayLike, confidence: float = 0.95, cluster: ArrayLike | None = None) -> Interval:
    """Mean of `values` `[n]` with its Student-t interval, clustered by `cluster` `[n]` where given."""
    fraction("confidence", confidence, open_ends=True)
    arm = _arm("values", values, cluster)
    error = standard_error(arm.influence, arm.units)
    low, high = student_interval(arm.mean, error, arm.units.count - 1, confidence)
    return Interval(arm.mean, low, high)


def _arm(name: str, values: ArrayLike, cluster: ArrayLike | None) -> _Arm:
    array = finite_vector(name, values)
    arm = _Arm(array, units_of(f"cluster of {name}", cluster, array.size))
    if arm.units.count < 2:
        raise ValueError(f"{name}: has {arm.units.count} independent unit; at least 2 are needed")
    return arm


def _shared_units(treated: ArrayLike, control: ArrayLike, arms: tuple[_Arm, _Arm]) -> Units | None:
    """Units over the rows of both groups when a unit is in both, else None."""
    both = np.concatenate([np.asarray(treated), np.asarray(control)])
    units = Units(*cluster_codes("cluster", both, both.size))
    return units if units.count < arms[0].units.count + arms[1].units.count else None


def _cuped(arms: tuple[_Arm, _Arm], treated: ArrayLike, control: ArrayLike) -> tuple[_Arm, _Arm]:
    x = (
        finite_vector("covariate_treated", treated, arms[0].values.size),
        finite_vector("covariate_control", control, arms[1].values.size),
    )
    centred = np.concatenate([part - part.mean() for part in x])
    spread = float(centred @ centred)
    outcome = np.concatenate([arm.influence for arm in arms])
    slope = float(centred @ outcome) / spread if spread > 0 else 0.0
    middle = float(np.concatenate(x).mean())
    adjusted = [
        _Arm(arm.values - slope * (part - middle), arm.units) for arm, part in zip(arms, x, strict=True)
    ]
    return adjusted[0], adjusted[1]


def _effect_moments(arms: tuple[_Arm, _Arm], shared: Units | None) -> tuple[float, float, float]:
    """(variance of the effect, degrees of freedom, covariance of the two means)."""
    variances = [arm.variance() for arm in arms]
    total = sum(variances)
    if shared is not None:
        sizes = [arm.values.size for arm in arms]
        rows = sum(sizes)
        # Each group's mean as a mean over the rows of both: ψ is scaled by rows/size, and is 0 in the other.
        parts = [rows / size * arm.influence for arm, size in zip(arms, sizes, strict=True)]
        joint = standard_error(np.concatenate([parts[0], -parts[1]]), shared) ** 2
        return joint, shared.count - 1.0, (total - joint) / 2
    freedom = [arm.units.count - 1 for arm in arms]
    if total == 0:
        return 0.0, float(sum(freedom)), 0.0
    welch = total**2 / sum(v**2 / df for v, df in zip(variances, freedom, strict=True))
    return total, welch, 0.0


def _comparison(
    arms: tuple[_Arm, _Arm], moments: tuple[float, float, float], confidence: float, reduction: float | None
) -> Comparison:
    treated, control = arms
    variance, freedom, covariance = moments
    effect, error = treated.mean - control.mean, float(np.sqrt(variance))
    low, high = student_interval(effect, error, freedom, confidence)
    if error > 0:
        p_value = float(2 * stats.t.sf(abs(effect) / error, max(freedom, 1.0)))
    else:
        p_value = 1.0 if effect == 0 else 0.0
    return Comparison(
        effect=effect,
        low=low,
        high=high,
        relative=_relative(arms, freedom, covariance, confidence),
        p_value=p_value,
        confidence=confidence,
        n_treated=treated.values.size,
        n_control=control.values.size,
        units_treated=treated.units.count,
        units_control=control.units.count,
        mean_treated=treated.mean,
        mean_control=control.mean,
        variance_reduction=reduction,
    )


def _relative(
    arms: tuple[_Arm, _Arm], freedom: float, covariance: float, confidence: float
) -> Interval | None:
    """treated/control − 1; var ≈ (v_t + R² v_c − 2 R cov) / m_c² with R = m_t/m_c (delta method)."""
    treated, control = arms
    base, spread = control.mean, control.variance()
    low, high = student_interval(base, float(np.sqrt(spread)), control.units.count - 1, confidence)
    if low <= 0 <= high:
        return None
    ratio = treated.mean / base
    variance = (treated.variance() + ratio**2 * spread - 2 * ratio * covariance) / base**2
    bounds = student_interval(ratio - 1, float(np.sqrt(max(variance, 0.0))), freedom, confidence)
    return Interval(ratio - 1, *bounds)
