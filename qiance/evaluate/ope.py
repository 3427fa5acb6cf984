"""Off-policy evaluation: what a policy would have earned, from a log that another policy made.

log = BanditLog(action=taken, reward=margin, propensity=p, cluster=pseudonyms)
estimate(log, policy_probs)                      # its value, with an interval
clears_gate(difference(log, new, live), margin=2.0)   # may it go live?
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import fraction
from qiance.evaluate.bandit_log import BanditLog, checked_model, checked_policy
from qiance.evaluate.inference import (
    Units,
    bootstrap_interval,
    influence_freedom,
    normal_interval,
    skewed_interval,
    standard_error,
    student_interval,
)
from qiance.evaluate.ope_diagnostics import Diagnostics, diagnose, worse_of
from qiance.evaluate.ope_estimators import ESTIMATORS, Terms, mrdr_weight, terms_of
from qiance.evaluate.ope_intervals import Range, certain_interval
from qiance.evaluate.ope_models import fit_reward_model
from qiance.evaluate.ope_result import Estimate, GateResult, clears_gate
from qiance.evaluate.ope_tuning import RowEstimate, belief

__all__ = [
    "BanditLog",
    "Diagnostics",
    "Estimate",
    "GateResult",
    "IntervalKind",
    "clears_gate",
    "difference",
    "estimate",
]

IntervalKind = Literal["default", "normal", "bootstrap", "bernstein", "anytime"]
AUTO = "auto"
# These hold for every sample size, and are made from the weights and rewards alone, whatever the estimator.
_CERTAIN = ("bernstein", "anytime")
# Fewer effective units than this cannot tell how well the model scales.
_LEAST_TO_RESCALE = 20.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for beside the data."""

    estimator: str
    confidence: float
    seed: int
    interval: IntervalKind
    span: Range | None
    parameter: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """point: the answer; centre: what the interval is of, by the estimator `by`; shares: of "auto"."""

    point: RowEstimate
    centre: RowEstimate
    by: str
    shares: tuple[tuple[str, float], ...] = ()


def estimate(
    log: BanditLog,
    policy_probs: NDArray[Any],
    reward_model: NDArray[Any] | None = None,
    estimator: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
    *,
    interval: IntervalKind = "default",
    reward_range: Range | None = None,
    parameter: float | None = None,
) -> Estimate:
    """Estimated value per decision of a policy, from a log made by another.

    policy_probs: `[n, n_actions]`, probability of every action in every logged row; rows sum to 1 (±1e-6).
    reward_model: `[n, n_actions]`, expected reward of every action in every row, from a model that was not
        fitted on that row. Where an estimator needs one and none is given, one is fitted out of fold from
        `log.context`, or from the actions alone (`fit_reward_model`).
    estimator: auto, or one of ipw, clipped-ipw, snipw, dm, dr, sndr, greg, switch-dr, dros, mrdr. "auto"
        stands between greg, which is consistent whatever the model is, and dm, by how probable it is that the
        model has no bias (`ope_tuning.belief`).
    seed: of the bootstrap and of the folds.
    interval: "default" is Student-t around the value with the standard error of the per-row influence,
        clustered by `log.cluster`, and degrees of freedom from its kurtosis, so that it widens where few
        units carry the spread; that of ipw is also corrected for skewness; that of dm is a bootstrap over
        units. Estimators that give up some truth for less variance (clipped-ipw, switch-dr, dros, and auto)
        have the interval of one that does not, stretched to hold the value. "normal" and "bootstrap" are the
        plain ones. "bernstein" holds for every sample size, "anytime" also for every moment at which one may
        look; both are for independent rows in the order in which they came, and much wider. They are those of
        ipw, stretched to hold the value.
    reward_range: (least, largest) possible reward, for "bernstein" and "anytime"; not needed for 0 and 1.
    parameter: of clipped-ipw, switch-dr (both a weight) and dros (a squared weight); None: chosen by the log.
    ValueError names the array, row and value that is wrong, and refuses a log in which the policy's actions
    were never taken (no overlap).
    """
    asked = _Asked(_known(estimator), confidence, seed, interval, reward_range, parameter)
    units = _checked(asked, log)
    terms, diagnostics = _prepare("policy_probs", log, policy_probs, reward_model, asked, units)
    return _with_interval(_found(terms, None, asked), terms, None, diagnostics, asked)


def difference(
    log: BanditLog,
    policy_probs: NDArray[Any],
    baseline_probs: NDArray[Any],
    reward_model: NDArray[Any] | None = None,
    estimator: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
    *,
    interval: IntervalKind = "default",
    reward_range: Range | None = None,
    parameter: float | None = None,
) -> Estimate:
    """Improvement of a policy over a baseline (the live policy) on the same log.

    Arguments as for `estimate`; baseline_probs: `[n, n_actions]`. Both are estimated from the same rows, so
    the interval is that of the per-row difference of their influences, which is narrower than two separate
    intervals wherever the policies agree. Diagnostics are the worse of the two, field by field. "anytime" is
    here that of `ope_sequence.difference_sequence`, for which rows need not be independent.
    """
    asked = _Asked(_known(estimator), confidence, seed, interval, reward_range, parameter)
    units = _checked(asked, log)
    terms, of_policy = _prepare("policy_probs", log, policy_probs, reward_model, asked, units)
    base, of_baseline = _prepare("baseline_probs", log, baseline_probs, reward_model, asked, units)
    if np.shape(policy_probs) != np.shape(baseline_probs):
        raise ValueError(
            f"baseline_probs: has shape {np.shape(baseline_probs)}; must be {np.shape(policy_probs)}, "
            "as policy_probs"
        )
    found = _found(terms, base, asked)
    judged = _with_interval(found, terms, base, worse_of(of_policy, of_baseline), asked)
    return replace(judged, baseline_value=_baseline_value(base, asked, found.shares))


def _known(name: str) -> str:
    if name not in (AUTO, *ESTIMATORS):
        raise ValueError(f"estimator: {name!r} is not known; choose one of {', '.join([AUTO, *ESTIMATORS])}")
    return name


def _checked(asked: _Asked, log: BanditLog) -> Units:
    fraction("confidence", asked.confidence, open_ends=True)
    if asked.interval not in get_args(IntervalKind):
        raise ValueError(
            f"interval: {asked.interval!r} is not known; choose one of {', '.join(get_args(IntervalKind))}"
        )
    if asked.parameter is not None:
        if asked.estimator == AUTO or not ESTIMATORS[asked.estimator].tuned:
            tuned = ", ".join(name for name, one in ESTIMATORS.items() if one.tuned)
            raise ValueError(f"parameter: {asked.estimator} has none; only {tuned} have one")
        if not asked.parameter >= 0:
            raise ValueError(f"parameter: {asked.parameter} is not a number ≥ 0")
    return log.units()


def _prepare(
    array: str,
    log: BanditLog,
    policy_probs: NDArray[Any],
    reward_model: NDArray[Any] | None,
    asked: _Asked,
    units: Units,
) -> tuple[Terms, Diagnostics]:
    """Terms and diagnostics of one policy; the reward model is fitted here where none is given."""
    probs = checked_policy(array, policy_probs, log)
    model = None if reward_model is None else checked_model(reward_model, probs.shape)
    plain = terms_of(log, probs, None, units, asked.parameter)
    needs_model = asked.estimator == AUTO or ESTIMATORS[asked.estimator].needs_model
    needs_overlap = asked.estimator == AUTO or ESTIMATORS[asked.estimator].needs_overlap
    if needs_overlap and not plain.weight.any():
        raise ValueError(
            f"{array}: no overlap: the policy gives probability 0 to the logged action in every row (row 0: "
            f"action {log.action[0]}), so the log says nothing about it; log its actions by exploration, "
            "or use estimator='dm' with a reward model"
        )
    if model is None and needs_model:
        weight = mrdr_weight(plain.weight, log.propensity) if asked.estimator == "mrdr" else None
        model = fit_reward_model(log, probs.shape[1], weight, seed=asked.seed)
    terms = plain if model is None else terms_of(log, probs, model, units, asked.parameter)
    return terms, diagnose(log, probs, terms.weight, units)


def _found(terms: Terms, base: Terms | None, asked: _Asked) -> _Found:
    """The estimate of a policy, or of its improvement over a baseline."""

    def rows(name: str) -> RowEstimate:
        found = ESTIMATORS[name].rows(terms)
        return found if base is None else found - ESTIMATORS[name].rows(base)

    certain = "ipw" if asked.interval in _CERTAIN else ""
    if asked.estimator != AUTO:
        point, by = rows(asked.estimator), certain or ESTIMATORS[asked.estimator].centre
        return _Found(point, rows(by) if by else point, by or asked.estimator)
    enough = min(_effective(one) for one in (terms, base or terms)) >= _LEAST_TO_RESCALE
    by = "greg" if enough else "sndr"
    unbiased, direct = rows(by), rows("dm")
    share = belief(unbiased, direct, terms.units)
    shares = ((by, 1 - share), ("dm", share))
    value = unbiased.value + share * (direct.value - unbiased.value)
    centre = rows(certain) if certain else unbiased
    return _Found(RowEstimate(value, unbiased.influence), centre, certain or by, shares)


def _baseline_value(base: Terms, asked: _Asked, shares: tuple[tuple[str, float], ...]) -> float:
    """The baseline's own value, by the shares that its difference was taken with."""
    if not shares:
        return ESTIMATORS[asked.estimator].rows(base).value
    return sum(share * ESTIMATORS[name].rows(base).value for name, share in shares)


def _effective(terms: Terms) -> float:
    """Kish's effective number of units."""
    totals = terms.units.total(terms.weight)
    return float(totals.sum()) ** 2 / float(np.square(totals).sum())


def _with_interval(
    found: _Found, terms: Terms, base: Terms | None, diagnostics: Diagnostics, asked: _Asked
) -> Estimate:
    error, low, high = _interval(found, terms, base, asked)
    notes = _notes(found, error, asked)
    if notes:
        diagnostics = replace(diagnostics, warnings=(*diagnostics.warnings, *notes))
    value = found.point.value
    if found.shares:
        # The unbiased interval outranks the model: "auto" does not leave it.
        value = min(max(value, low), high)
    return Estimate(
        value=value,
        low=min(low, value),
        high=max(high, value),
        estimator=asked.estimator,
        diagnostics=diagnostics,
        confidence=asked.confidence,
        std_error=error,
        interval=asked.interval,
        centre="" if found.by == asked.estimator else found.by,
        parameter=found.point.parameter,
        shares=found.shares,
    )


def _interval(found: _Found, terms: Terms, base: Terms | None, asked: _Asked) -> tuple[float, float, float]:
    """(standard error, low, high) around the centre."""
    centre, kind, units = found.centre, asked.interval, terms.units
    error = standard_error(centre.influence, units)
    if kind in _CERTAIN:
        weights = (terms.weight, None if base is None else base.weight)
        span, confidence = asked.span, asked.confidence
        return error, *certain_interval(kind, *weights, terms.reward, units, span, confidence)
    if kind == "normal":
        return error, *normal_interval(centre.value, error, asked.confidence)
    how = ESTIMATORS[found.by].interval
    if kind == "bootstrap" or how == "bootstrap":
        return bootstrap_interval(centre.value + centre.influence, units, asked.confidence, asked.seed)
    freedom = influence_freedom(centre.influence, units)
    if how == "skewed":
        return error, *skewed_interval(centre.value, centre.influence, units, freedom, asked.confidence)
    return error, *student_interval(centre.value, error, freedom, asked.confidence)


def _notes(found: _Found, error: float, asked: _Asked) -> list[str]:
    if asked.interval in _CERTAIN:
        of_model = "the interval is that of ipw; the value is that of dm, with the error of the reward model"
        return [of_model] if asked.estimator == "dm" else []
    if asked.estimator == "dm":
        return ["the interval of dm covers the sampling of users, not the error of the reward model"]
    if error == 0.0:
        return ["the rewards that carry weight do not vary, so the interval has no width: do not rely on it"]
    return []
