"""Off-policy estimators: each gives the value and every row's influence on it.

A new estimator is a function `Terms -> RowEstimate` and a line in `ESTIMATORS`; intervals, differences and
clustering follow from the influence. Notation: row i has reward r_i, logged action a_i with propensity p_i;
the policy's probability of it is π_i; the importance weight is w_i = π_i / p_i; the reward model is q.
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


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What the estimators read, one entry per row.

    reward, weight: `[n]`, r_i and w_i.
    logged_model, policy_model: `[n]`, q(x_i, a_i) and Σ_a π(a|x_i) q(x_i, a); zeros without a model.
    units: the independent units of the rows.
    """

    reward: FloatArray
    weight: FloatArray
    logged_model: FloatArray
    policy_model: FloatArray
    units: Units


@dataclass(frozen=True, slots=True, eq=False)
class RowEstimate:
    """An estimate and its per-row influence ψ `[n]`, which has mean about 0: value's error ≈ mean(ψ)."""

    value: float
    influence: FloatArray


@dataclass(frozen=True, slots=True)
class Estimator:
    """An entry of `ESTIMATORS`.

    rows: the estimate. needs_model: `reward_model` is required. needs_overlap: rows with zero total weight
    are refused. interval: from the influence by Student-t; the same corrected for skewness; or by bootstrap
    of value + ψ over units.
    """

    rows: Callable[[Terms], RowEstimate]
    needs_model: bool
    needs_overlap: bool
    interval: Literal["student", "skewed", "bootstrap"] = "student"


def terms_of(log: BanditLog, probs: NDArray[Any], model: NDArray[Any] | None, units: Units) -> Terms:
    """Terms of a checked log, policy `[n, n_actions]` and reward model `[n, n_actions]` or None."""
    row = np.arange(len(log))
    weight = probs[row, log.action].astype(np.float64) / log.propensity
    if model is None:
        zeros = np.zeros(len(log))
        return Terms(log.reward, weight, zeros, zeros, units)
    logged = model[row, log.action].astype(np.float64)
    expected = np.einsum("na,na->n", probs, model, dtype=np.float64)
    return Terms(log.reward, weight, logged, expected, units)


def ipw(terms: Terms) -> RowEstimate:
    """Inverse propensity weighting, (1/n) Σ w_i r_i; unbiased when propensities and support are right.

    ψ_i = w_i r_i − V. Source: Horvitz & Thompson, JASA 47 (1952), 663-685.
    """
    return _mean(terms.weight * terms.reward)


def snipw(terms: Terms) -> RowEstimate:
    """Self-normalised IPW, Σ w_i r_i / Σ w_i; stays within the range of the rewards.

    ψ_i = w_i (r_i − V) / (w̄ (1 − h_i)), h_i the share of the total weight that row i's unit carries.
    Source: Swaminathan & Joachims, NeurIPS 28 (2015).
    """
    return _normalised(terms, terms.reward)


def dm(terms: Terms) -> RowEstimate:
    """Direct method, (1/n) Σ_i Σ_a π(a|x_i) q(x_i, a): as good as the reward model, and no better.

    Source: Beygelzimer & Langford, KDD (2009), 129-138.
    """
    return _mean(terms.policy_model)


def dr(terms: Terms) -> RowEstimate:
    """Doubly robust, (1/n) Σ [Σ_a π(a|x_i) q(x_i, a) + w_i (r_i − q(x_i, a_i))].

    Unbiased when either propensities or model are right; the model must not have been fitted on the rows that
    it is applied to (fit it out of fold). Source: Dudík, Langford & Li, ICML (2011), 1097-1104.
    """
    return _mean(terms.policy_model + terms.weight * (terms.reward - terms.logged_model))


def sndr(terms: Terms) -> RowEstimate:
    """Self-normalised doubly robust: DM plus the weighted mean residual Σ w_i (r_i − q_i) / Σ w_i.

    ψ_i = (q_π,i − mean q_π) + w_i (r_i − q_i − δ) / (w̄ (1 − h_i)), δ the weighted mean residual.
    Source: Thomas & Brunskill, ICML (2016), 2139-2148 (weighted doubly robust, horizon 1).
    """
    direct = _mean(terms.policy_model)
    residual = _normalised(terms, terms.reward - terms.logged_model)
    return RowEstimate(direct.value + residual.value, direct.influence + residual.influence)


def _mean(rows: FloatArray) -> RowEstimate:
    value = float(rows.mean())
    return RowEstimate(value, rows - value)


def _normalised(terms: Terms, outcome: FloatArray) -> RowEstimate:
    """Weighted mean of `outcome` with its leave-one-unit-out influence.

    Dividing by 1 − h_i gives the exact change when the unit is left out (the jackknife, or HC3): where few
    units carry the weight, the plain influence would understate the spread.
    """
    total = float(terms.weight.sum())
    value = float(terms.weight @ outcome) / total
    share = terms.units.spread(terms.units.total(terms.weight)) / total
    if float(share.max()) > 1 - 1e-9:
        unit = "row" if terms.units.codes is None else "cluster"
        raise ValueError(
            f"policy_probs: too little overlap: one {unit} (row {int(share.argmax())}) carries all of the "
            "weight, so no interval can be given; evaluate a policy closer to the logged one, or log more "
            "exploration"
        )
    influence = terms.weight * (outcome - value) / (total / terms.weight.size * (1 - share))
    return RowEstimate(value, influence)


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        # Products of weights and rewards ≥ 0 have a long right tail that normalising and residuals cut off.
        "ipw": Estimator(ipw, needs_model=False, needs_overlap=True, interval="skewed"),
        "snipw": Estimator(snipw, needs_model=False, needs_overlap=True),
        "dm": Estimator(dm, needs_model=True, needs_overlap=False, interval="bootstrap"),
        "dr": Estimator(dr, needs_model=True, needs_overlap=True),
        "sndr": Estimator(sndr, needs_model=True, needs_overlap=True),
    }
)


def resolve(name: str, has_model: bool) -> str:
    """The estimator that `name` stands for; "auto" is sndr with a reward model and snipw without.

    Self-normalised forms, because they lose least where weights are heavy, at a bias of order 1/n.
    ValueError for an unknown name or a missing reward model.
    """
    if name == "auto":
        return "sndr" if has_model else "snipw"
    if name not in ESTIMATORS:
        raise ValueError(
            f"estimator: {name!r} is not known; choose one of {', '.join([*ESTIMATORS, 'auto'])}"
        )
    if ESTIMATORS[name].needs_model and not has_model:
        raise ValueError(f"estimator: {name!r} needs reward_model [n, n_actions]; pass it, or choose snipw")
    return name
