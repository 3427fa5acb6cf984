"""Off-policy evaluation: what a policy would have earned, from a log that another policy made.

log = BanditLog(action=taken, reward=margin, propensity=p, cluster=pseudonyms)
estimate(log, policy_probs)                      # its value, with an interval
clears_gate(difference(log, new, live), margin=2.0)   # may it go live?
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import fraction
from qiance.evaluate.bandit_log import BanditLog, checked_model, checked_policy
from qiance.evaluate.inference import (
    Units,
    bootstrap_interval,
    influence_freedom,
    skewed_interval,
    standard_error,
    student_interval,
)
from qiance.evaluate.ope_diagnostics import Diagnostics, diagnose, worse_of
from qiance.evaluate.ope_estimators import ESTIMATORS, RowEstimate, Terms, resolve, terms_of

__all__ = [
    "BanditLog",
    "Diagnostics",
    "Estimate",
    "GateResult",
    "clears_gate",
    "difference",
    "estimate",
]


@dataclass(frozen=True, slots=True)
class Estimate:
    """An off-policy estimate with its two-sided interval at `confidence`.

    value, low, high, std_error: per decision, in the units of the reward.
    estimator: the one used (never "auto").
    baseline_value: None for a policy's value; for a difference the estimated value of the baseline, and
    `value` is the policy's value minus it.
    """

    value: float
    low: float
    high: float
    estimator: str
    diagnostics: Diagnostics
    confidence: float
    std_error: float
    baseline_value: float | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether a policy may go live, why or why not in one sentence, and the improvement it was judged by."""

    passed: bool
    reason: str
    improvement: Estimate


def estimate(
    log: BanditLog,
    policy_probs: NDArray[Any],
    reward_model: NDArray[Any] | None = None,
    estimator: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimated value per decision of a policy, from a log made by another.

    policy_probs: `[n, n_actions]`, probability of every action in every logged row; rows sum to 1 (±1e-6).
    reward_model: `[n, n_actions]`, expected reward of every action in every row, from a model that was not
        fitted on that row; needed by dm, dr, sndr.
    estimator: ipw, snipw, dm, dr, sndr; "auto" is sndr with a reward model and snipw without.
    seed: of the bootstrap (dm only).

    The interval is Student-t around the value with the standard error of the per-row influence, clustered by
    `log.cluster`, and degrees of freedom from its kurtosis, so that it widens where few units carry the
    spread; that of ipw is also corrected for skewness; that of dm is a bootstrap over units.
    ValueError names the array, row and value that is wrong, and refuses a log in which the policy's actions
    were never taken (no overlap).
    """
    fraction("confidence", confidence, open_ends=True)
    units = log.units()
    name = resolve(estimator, reward_model is not None)
    terms, diagnostics = _prepare("policy_probs", log, policy_probs, reward_model, name, units)
    return _with_interval(name, ESTIMATORS[name].rows(terms), units, diagnostics, confidence, seed)


def difference(
    log: BanditLog,
    policy_probs: NDArray[Any],
    baseline_probs: NDArray[Any],
    reward_model: NDArray[Any] | None = None,
    estimator: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Improvement of a policy over a baseline (the live policy) on the same log.

    Arguments as for `estimate`; baseline_probs: `[n, n_actions]`. Both are estimated from the same rows, so
    the interval is that of the per-row difference of their influences, which is narrower than two separate
    intervals wherever the policies agree. Diagnostics are the worse of the two, field by field.
    """
    fraction("confidence", confidence, open_ends=True)
    units = log.units()
    name = resolve(estimator, reward_model is not None)
    terms, of_policy = _prepare("policy_probs", log, policy_probs, reward_model, name, units)
    base_terms, of_baseline = _prepare("baseline_probs", log, baseline_probs, reward_model, name, units)
    if np.shape(policy_probs) != np.shape(baseline_probs):
        raise ValueError(
            f"baseline_probs: has shape {np.shape(baseline_probs)}; must be {np.shape(policy_probs)}, "
            "as policy_probs"
        )
    policy, baseline = ESTIMATORS[name].rows(terms), ESTIMATORS[name].rows(base_terms)
    gain = RowEstimate(policy.value - baseline.value, policy.influence - baseline.influence)
    found = _with_interval(name, gain, units, worse_of(of_policy, of_baseline), confidence, seed)
    return replace(found, baseline_value=baseline.value)


def clears_gate(
    improvement: Estimate,
    margin: float = 0.0,
    min_effective_sample_size: float = 30.0,
    max_unsupported_mass: float = 0.05,
) -> GateResult:
    """Whether the improvement is shown well enough to go live.

    improvement: from `difference`. margin: in the units of the reward, per decision; the lower bound must be
    greater. The interval cannot see its own blind spots, so the gate also asks for enough effective decisions
    (identical rewards in a handful of rows give an interval without width), for little probability on actions
    never logged, and for another estimator than dm, whose interval leaves the model's error out.
    """
    if improvement.baseline_value is None:
        raise ValueError(
            "improvement: is a policy's value; pass the result of difference(log, policy, baseline)"
        )
    if not np.isfinite(margin):
        raise ValueError(f"margin: {margin} is not finite")
    health = improvement.diagnostics
    reason = ""
    if improvement.estimator == "dm":
        reason = "the interval of dm leaves out the error of the reward model; use sndr or dr"
    elif health.effective_sample_size < min_effective_sample_size:
        size = health.effective_sample_size
        reason = (
            f"effective sample size {size:.1f} is under {min_effective_sample_size:g}; log more decisions"
        )
    elif health.unsupported_mass > max_unsupported_mass:
        mass = health.unsupported_mass
        reason = (
            f"{mass:.1%} of the probability is on actions never logged (at most {max_unsupported_mass:.1%})"
        )
    elif not improvement.low > margin:
        reason = f"lower bound of the improvement {improvement.low:.6g} does not exceed the margin {margin:g}"
    if reason:
        return GateResult(False, reason, improvement)
    found = f"lower bound of the improvement {improvement.low:.6g} exceeds the margin {margin:g}"
    return GateResult(True, found, improvement)


def _prepare(
    array: str,
    log: BanditLog,
    policy_probs: NDArray[Any],
    reward_model: NDArray[Any] | None,
    name: str,
    units: Units,
) -> tuple[Terms, Diagnostics]:
    probs = checked_policy(array, policy_probs, log)
    model = None if reward_model is None else checked_model(reward_model, probs.shape)
    terms = terms_of(log, probs, model, units)
    if ESTIMATORS[name].needs_overlap and not terms.weight.any():
        raise ValueError(
            f"{array}: no overlap: the policy gives probability 0 to the logged action in every row (row 0: "
            f"action {log.action[0]}), so the log says nothing about it; log its actions by exploration, "
            "or use estimator='dm' with a reward model"
        )
    return terms, diagnose(log, probs, terms.weight, units)


def _with_interval(
    name: str, rows: RowEstimate, units: Units, diagnostics: Diagnostics, confidence: float, seed: int
) -> Estimate:
    kind = ESTIMATORS[name].interval
    if kind == "bootstrap":
        error, low, high = bootstrap_interval(rows.value + rows.influence, units, confidence, seed)
        note = "the interval of dm covers the sampling of users, not the error of the reward model"
    else:
        error = standard_error(rows.influence, units)
        freedom = influence_freedom(rows.influence, units)
        if kind == "skewed":
            low, high = skewed_interval(rows.value, rows.influence, units, freedom, confidence)
        else:
            low, high = student_interval(rows.value, error, freedom, confidence)
        note = ""
        if error == 0.0:
            note = (
                "the rewards that carry weight do not vary, so the interval has no width: do not rely on it"
            )
    if note:
        diagnostics = replace(diagnostics, warnings=(*diagnostics.warnings, note))
    return Estimate(rows.value, low, high, name, diagnostics, confidence, error)
