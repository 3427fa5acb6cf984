"""Off-policy estimators: each gives the value and every row's influence on it.

A new estimator is a function `Terms -> RowEstimate` and a line in `ESTIMATORS`; intervals, differences and
clustering follow from the influence. Notation: row i has reward r_i, logged action a_i with propensity p_i;
the policy's probability of it is π_i; the importance weight is w_i = π_i / p_i; the reward model is q, with
q_i = q(x_i, a_i) and q_π,i = Σ_a π(a|x_i) q(x_i, a).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import FloatArray
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.inference import Units
from qiance.evaluate.ope_tuning import RowEstimate, least_error, mean_rows, weight_grid


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What the estimators read, one entry per row.

    reward, weight, propensity: `[n]`, r_i, w_i and p_i.
    logged_model, policy_model: `[n]`, q_i and q_π,i; zeros without a model.
    units: the independent units of the rows.
    parameter: clip, threshold or shrinkage of the estimators that have one; None lets the log choose it.
    """

    reward: FloatArray
    weight: FloatArray
    propensity: FloatArray
    logged_model: FloatArray
    policy_model: FloatArray
    units: Units
    parameter: float | None = None

    @property
    def residual(self) -> FloatArray:
        """`[n]` r_i − q_i."""
        return self.reward - self.logged_model


@dataclass(frozen=True, slots=True)
class Estimator:
    """An entry of `ESTIMATORS`.

    rows: the estimate. needs_model: a reward model is used. needs_overlap: rows with zero total weight are
    refused. interval: by Student-t; the same corrected for skewness; or by bootstrap. centre: the estimator
    whose interval is given, where its own would leave a bias out. tuned: `Terms.parameter` is read.
    """

    rows: Callable[[Terms], RowEstimate]
    needs_model: bool = True
    needs_overlap: bool = True
    interval: Literal["student", "skewed", "bootstrap"] = "student"
    centre: str = ""
    tuned: bool = False


def terms_of(
    log: BanditLog,
    probs: NDArray[Any],
    model: NDArray[Any] | None,
    units: Units,
    parameter: float | None = None,
) -> Terms:
    """Terms of a checked log, policy `[n, n_actions]` and reward model `[n, n_actions]` or None."""
    row = np.arange(len(log))
    weight = probs[row, log.action].astype(np.float64) / log.propensity
    logged = expected = np.zeros(len(log))
    if model is not None:
        logged = model[row, log.action].astype(np.float64)
        expected = np.einsum("na,na->n", probs, model, dtype=np.float64)
    return Terms(log.reward, weight, log.propensity, logged, expected, units, parameter)


def ipw(terms: Terms) -> RowEstimate:
    """Inverse propensity weighting, (1/n) Σ w_i r_i; unbiased when propensities and support are right.

    ψ_i = w_i r_i − V. Source: Horvitz & Thompson, JASA 47 (1952), 663-685.
    """
    return mean_rows(terms.weight * terms.reward)


def clipped_ipw(terms: Terms) -> RowEstimate:
    """IPW with weights clipped at c, (1/n) Σ min(w_i, c) r_i: less variance, and biased to 0.

    Source: Ionides, J. Comput. Graph. Stat. 17 (2008), 295-311.
    """
    return _tuned(
        terms, ipw(terms), lambda clip: mean_rows(np.minimum(terms.weight, clip) * terms.reward), 1.0
    )


def snipw(terms: Terms) -> RowEstimate:
    """Self-normalised IPW, Σ w_i r_i / Σ w_i; stays within the range of the rewards.

    ψ_i = w_i (r_i − V) / (w̄ (1 − h_i)), h_i the share of the total weight that row i's unit carries.
    Source: Swaminathan & Joachims, NeurIPS 28 (2015).
    """
    return _normalised(terms, terms.reward)


def dm(terms: Terms) -> RowEstimate:
    """Direct method, (1/n) Σ q_π,i: as good as the reward model, and no better.

    Source: Beygelzimer & Langford, KDD (2009), 129-138.
    """
    return mean_rows(terms.policy_model)


def dr(terms: Terms) -> RowEstimate:
    """Doubly robust, (1/n) Σ [q_π,i + w_i (r_i − q_i)].

    Unbiased when either propensities or model are right; the model must not have been fitted on the rows that
    it is applied to (fit it out of fold). Source: Dudík, Langford & Li, ICML (2011), 1097-1104.
    """
    return mean_rows(terms.policy_model + terms.weight * terms.residual)


def sndr(terms: Terms) -> RowEstimate:
    """Self-normalised doubly robust: DM plus the weighted mean residual Σ w_i (r_i − q_i) / Σ w_i.

    ψ_i = (q_π,i − mean q_π) + w_i (r_i − q_i − δ) / (w̄ (1 − h_i)), δ the weighted mean residual.
    Source: Thomas & Brunskill, ICML (2016), 2139-2148 (weighted doubly robust, horizon 1).
    """
    return dm(terms) + _normalised(terms, terms.residual)


def greg(terms: Terms) -> RowEstimate:
    """Generalised regression estimator: SNDR with the reward model rescaled by weighted least squares.

        V = r̄ + b (mean q_π − q̄),  b = Σ w_i (q_i − q̄) r_i / Σ w_i (q_i − q̄)²

    r̄ and q̄ being means weighted by w. A model of the wrong scale or level costs nothing (a useless one has
    b ≈ 0, which is SNIPW; a right one b ≈ 1, which is SNDR), and V is consistent whatever the model is.
    ψ_i = b (q_π,i − mean q_π) + g_i (r_i − r̄ − b (q_i − q̄)) / (1 − h_i), with the weights g_i that V gives to
    the rewards and the leverage h_i of the row's unit in the regression.
    Source: Särndal, Swensson & Wretman, Model Assisted Survey Sampling (1992), ch. 6; Kang & Schafer,
    Statist. Sci. 22 (2007), 523-539 (regression with inverse-propensity weights).
    """
    w, q = terms.weight, terms.logged_model
    total = float(w.sum())
    reward, level = float(w @ terms.reward) / total, float(w @ q) / total
    centred = q - level
    spread = float(w @ np.square(centred)) / total
    # A model that is constant where it counts has no slope to fit.
    flat = spread <= 1e-20 * max(level**2, 1e-300)
    slope = 0.0 if flat else float(w @ (centred * terms.reward)) / total / spread
    direct = dm(terms)
    gap = direct.value - level
    pull = np.zeros_like(q) if flat else centred / spread
    leverage = w / total * (1 + pull * centred)
    left = 1 - _share_of_units(terms.units, leverage)
    fitted = reward + slope * centred
    influence = w * (1 + pull * gap) / (total / w.size) * (terms.reward - fitted) / left
    return RowEstimate(reward + slope * gap, slope * direct.influence + influence)


def switch_dr(terms: Terms) -> RowEstimate:
    """Switch-DR, (1/n) Σ [q_π,i + w_i (r_i − q_i) 1(w_i ≤ τ)]: the model alone where weights are large.

    Source: Wang, Agarwal & Dudík, ICML (2017), 3589-3597.
    """

    def rows(threshold: float) -> RowEstimate:
        kept = np.where(terms.weight <= threshold, terms.weight, 0.0)
        return mean_rows(terms.policy_model + kept * terms.residual)

    return _tuned(terms, dr(terms), rows, 1.0)


def dros(terms: Terms) -> RowEstimate:
    """DR with optimistic shrinkage: weights λ w_i / (w_i² + λ); λ = 0 is DM, λ = ∞ is DR.

    Source: Su, Dimakopoulou, Krishnamurthy & Dudík, ICML (2020), 9167-9176.
    """

    def rows(scale: float) -> RowEstimate:
        kept = np.divide(scale * terms.weight, np.square(terms.weight) + scale) if scale else 0.0
        return mean_rows(terms.policy_model + kept * terms.residual)

    return _tuned(terms, dr(terms), rows, 2.0)


def mrdr(terms: Terms) -> RowEstimate:
    """More robust doubly robust: DR whose model q' = α + β q is fitted to make the estimate vary little.

    Least squares with weights π_i (1 − p_i) / p_i², the variance that an error of the model adds where the
    policy is deterministic. Source: Farajtabar, Chow & Ghavamzadeh, ICML (2018), 1447-1456.
    """
    weight = mrdr_weight(terms.weight, terms.propensity)
    if not weight.any():
        return dr(terms)
    root = np.sqrt(weight / weight.mean())
    design = np.column_stack([np.ones_like(root), terms.logged_model])
    (level, slope), *_ = np.linalg.lstsq(design * root[:, None], terms.reward * root, rcond=None)
    residual = terms.reward - level - slope * terms.logged_model
    return mean_rows(level + slope * terms.policy_model + terms.weight * residual)


def mrdr_weight(weight: FloatArray, propensity: FloatArray) -> FloatArray:
    """`[n]` π_i (1 − p_i) / p_i², written in the importance weight."""
    return weight * (1 - propensity) / propensity


def _normalised(terms: Terms, outcome: FloatArray) -> RowEstimate:
    """Weighted mean of `outcome` with its leave-one-unit-out influence.

    Dividing by 1 − h_i gives the exact change when the unit is left out (the jackknife, or HC3): where few
    units carry the weight, the plain influence would understate the spread.
    """
    total = float(terms.weight.sum())
    value = float(terms.weight @ outcome) / total
    left = 1 - _share_of_units(terms.units, terms.weight / total)
    return RowEstimate(value, terms.weight * (outcome - value) / (total / terms.weight.size * left))


def _share_of_units(units: Units, share: FloatArray) -> FloatArray:
    """`[n]` the total of `share` in each row's unit; refused where one unit alone decides the estimate."""
    of_unit = units.spread(units.total(share))
    if float(of_unit.max()) > 1 - 1e-9:
        unit = "row" if units.codes is None else "cluster"
        raise ValueError(
            f"policy_probs: too little overlap: one {unit} (row {int(of_unit.argmax())}) carries all of the "
            "weight, so no interval can be given; evaluate a policy closer to the logged one, or log more "
            "exploration"
        )
    return of_unit


def _tuned(
    terms: Terms, unbiased: RowEstimate, rows: Callable[[float], RowEstimate], power: float
) -> RowEstimate:
    """`rows` at `terms.parameter`, or at that of least estimated error among quantiles of w^power."""
    if terms.parameter is not None:
        return rows(terms.parameter).at(terms.parameter)
    grid = weight_grid(terms.weight) ** power
    return least_error(unbiased.at(float("inf")), [rows(one).at(one) for one in grid.tolist()], terms.units)


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        # Products of weights and rewards ≥ 0 have a long right tail that normalising and residuals cut off.
        "ipw": Estimator(ipw, needs_model=False, interval="skewed"),
        "clipped-ipw": Estimator(clipped_ipw, needs_model=False, interval="skewed", centre="ipw", tuned=True),
        "snipw": Estimator(snipw, needs_model=False),
        "dm": Estimator(dm, needs_overlap=False, interval="bootstrap"),
        "dr": Estimator(dr),
        "sndr": Estimator(sndr),
        "greg": Estimator(greg),
        "switch-dr": Estimator(switch_dr, centre="dr", tuned=True),
        "dros": Estimator(dros, centre="dr", tuned=True),
        "mrdr": Estimator(mrdr),
    }
)
