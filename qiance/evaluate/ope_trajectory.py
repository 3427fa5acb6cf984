"""Off-policy evaluation of sequential policies: n logged trajectories of at most T steps.

Notation: trajectory i has rewards r_it, propensities p_it of the logged actions and the policy's
probabilities π_it of them; ρ_it = Π_{s ≤ t} π_is / p_is is the weight up to step t, ρ_i,−1 = 1; γ is the
discount; the value model says q_it = Q(s_it, a_it) and v_it = Σ_a π(a|s_it) Q(s_it, a). Where actions are
numbers, densities take the place of probabilities: only their ratio counts, see `ope_densities`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import FloatArray, IndexArray, finite_matrix, fraction, index_vector, refuse_where
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.inference import Units, influence_freedom, standard_error, student_interval, units_of
from qiance.evaluate.ope_diagnostics import diagnose
from qiance.evaluate.ope_overlap import Words, refuse_gap
from qiance.evaluate.ope_result import Estimate
from qiance.evaluate.ope_tuning import RowEstimate, mean_rows

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryLog:
    """n logged trajectories.

    reward, propensity: `[n, T]`; propensity in (0, 1], of each action taken, given all that came before it.
    length: `[n]` steps of each trajectory, from 1; None: all have T. What lies beyond is not read.
    cluster: `[n]` ids of the independent units, None where trajectories are independent.
    Raises ValueError naming the array, the row and the value.
    """

    reward: FloatArray
    propensity: FloatArray
    length: IndexArray | None = None
    cluster: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        shape = np.shape(self.reward)
        if self.length is not None and len(shape) == 2:
            length = index_vector("length", self.length, shape[0])
            refuse_where("length", length, (length < 1) | (length > shape[1]), f"must be in 1 … {shape[1]}")
            set_field(self, "length", length)
            set_field(self, "reward", self._filled(self.reward, 0.0))
            set_field(self, "propensity", self._filled(self.propensity, 1.0))
        set_field(self, "reward", finite_matrix("reward", self.reward).astype(np.float64))
        propensity = finite_matrix("propensity", self.propensity, self.reward.shape).astype(np.float64)
        must = "must be in (0, 1]: the probability with which the logged action was chosen"
        refuse_where("propensity", propensity, (propensity <= 0) | (propensity > 1), must)
        set_field(self, "propensity", propensity)
        self.units()

    def _filled(self, values: ArrayLike, rest: float) -> FloatArray:
        """`values` with `rest` beyond the end of each trajectory."""
        array = np.asarray(values, dtype=np.float64)
        return array if self.length is None else np.where(self.inside(array.shape[1]), array, rest)

    def inside(self, steps: int) -> NDArray[np.bool_]:
        """`[n, steps]` whether the trajectory still ran."""
        length = np.full(len(self.reward), steps) if self.length is None else self.length
        return np.asarray(np.arange(steps) < length[:, None])

    def units(self) -> Units:
        """The independent units: clusters where given, else trajectories."""
        return units_of("cluster", self.cluster, len(self.reward))

    def checked(self, name: str, values: ArrayLike, rest: float) -> FloatArray:
        """`values` as finite `[n, T]`, `rest` beyond the end of each trajectory."""
        if np.ndim(values) == 2 and np.shape(values) == self.reward.shape:
            values = self._filled(values, rest)
        return finite_matrix(name, values, self.reward.shape).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """What the sequential estimators read, all `[n, T]`.

    reward: γ^t r_it. ratio: π_it / p_it. weight: ρ_it. before: ρ_i,t−1. logged_model, policy_model: γ^t q_it
    and γ^t v_it.
    """

    reward: FloatArray
    ratio: FloatArray
    weight: FloatArray
    before: FloatArray
    logged_model: FloatArray
    policy_model: FloatArray


def whole(steps: Steps) -> RowEstimate:
    """Importance sampling of whole trajectories, (1/n) Σ_i ρ_iT Σ_t γ^t r_it.

    Source: Precup, Sutton & Singh, ICML (2000), 759-766.
    """
    return mean_rows(steps.weight[:, -1] * steps.reward.sum(axis=1))


def per_decision(steps: Steps) -> RowEstimate:
    """Per-decision importance sampling, (1/n) Σ_i Σ_t γ^t ρ_it r_it: a reward has the weights up to it only.

    Source: Precup, Sutton & Singh, ICML (2000), 759-766.
    """
    return mean_rows((steps.weight * steps.reward).sum(axis=1))


def weighted(steps: Steps) -> RowEstimate:
    """Step-wise weighted importance sampling, Σ_t γ^t Σ_i ρ_it r_it / Σ_i ρ_it.

    Consistent, and within the range of the rewards at every step; its influence is the jackknife's.
    Source: Precup, Sutton & Singh, ICML (2000), 759-766; Thomas, dissertation (2015).
    """
    return _normalised(steps.weight, steps.reward)


def doubly_robust(steps: Steps) -> RowEstimate:
    """Doubly robust, (1/n) Σ_i Σ_t γ^t [ρ_i,t−1 v_it + ρ_it (r_it − q_it)]: V_t = v_t + ρ_t (r_t + γ V_t+1 −
    q_t).

    The value model must not have been fitted on the trajectory. Source: Jiang & Li, ICML (2016), 652-661.
    """
    gap = steps.reward - steps.logged_model
    return mean_rows((steps.before * steps.policy_model + steps.weight * gap).sum(axis=1))


def weighted_doubly_robust(steps: Steps) -> RowEstimate:
    """The same with weights normalised at every step. Source: Thomas & Brunskill, ICML (2016), 2139-2148."""
    gap = _normalised(steps.weight, steps.reward - steps.logged_model)
    return gap + _normalised(steps.before, steps.policy_model)


def direct(steps: Steps) -> RowEstimate:
    """Direct method, (1/n) Σ_i v_i0; with `fitted_q` it is fitted Q evaluation (Le, Voloshin & Yue, 2019)."""
    return mean_rows(steps.policy_model[:, 0])


@dataclass(frozen=True, slots=True)
class StepEstimator:
    """An entry of `SEQUENTIAL` or `SLATE`.

    rows: the estimate. needs_model: the value model is used. overlap: what the log must hold, or it is
    refused: at every step some trajectory with weight up to it; in each by itself, whatever came before; or
    none. The doubly robust need it too: without, they would be the model alone under an interval that leaves
    the model's error out.
    """

    rows: Callable[[Steps], RowEstimate]
    needs_model: bool = False
    overlap: Literal["along", "each", "none"] = "along"


SEQUENTIAL: Mapping[str, StepEstimator] = MappingProxyType(
    {
        "is": StepEstimator(whole),
        "pdis": StepEstimator(per_decision),
        "wpdis": StepEstimator(weighted),
        "dm": StepEstimator(direct, needs_model=True, overlap="none"),
        "dr": StepEstimator(doubly_robust, needs_model=True),
        "wdr": StepEstimator(weighted_doubly_robust, needs_model=True),
    }
)


def estimate_trajectories(
    log: TrajectoryLog,
    policy_probs: ArrayLike,
    logged_model: ArrayLike | None = None,
    policy_model: ArrayLike | None = None,
    estimator: str = "wpdis",
    discount: float = 1.0,
    confidence: float = 0.95,
) -> Estimate:
    """Estimated return per trajectory of a policy, Σ_t γ^t r_t.

    policy_probs: `[n, T]` the policy's probability of each logged action, in [0, 1].
    logged_model, policy_model: `[n, T]` q and v of a value model (`fitted_q`); needed by dm, dr, wdr.
    estimator: is, pdis, wpdis, dm, dr, wdr. discount: γ in [0, 1].

    The interval is Student-t with the standard error of the per-trajectory influence, clustered by
    `log.cluster`; that of dm leaves out the error of the model. Diagnostics are of the whole trajectories'
    weights: long trajectories leave few that count. ValueError names the array, row and value that is wrong,
    and refuses a log without overlap at some step (`ope_overlap.refuse_gap`), which dm alone does not need.
    """
    fraction("confidence", confidence, open_ends=True)
    steps, rows = _estimated(log, policy_probs, logged_model, policy_model, estimator, discount)
    return judged(rows, estimator, steps.weight[:, -1], log.units(), confidence)


def trajectory_improvement(
    log: TrajectoryLog,
    policy_probs: ArrayLike,
    logged_model: ArrayLike | None = None,
    policy_model: ArrayLike | None = None,
    estimator: str = "dr",
    discount: float = 1.0,
    confidence: float = 0.95,
) -> Estimate:
    """What a policy returns more per trajectory than the one that was logged; for `clears_gate`.

    Arguments as of `estimate_trajectories`. The logged policy's value is the mean return of the same
    trajectories, so that the luck which both had cancels: rows are paired.
    """
    fraction("confidence", confidence, open_ends=True)
    steps, rows = _estimated(log, policy_probs, logged_model, policy_model, estimator, discount)
    logged = mean_rows(steps.reward.sum(axis=1))
    found = judged(rows - logged, estimator, steps.weight[:, -1], log.units(), confidence)
    return replace(found, baseline_value=logged.value)


def _estimated(
    log: TrajectoryLog,
    policy_probs: ArrayLike,
    logged_model: ArrayLike | None,
    policy_model: ArrayLike | None,
    estimator: str,
    discount: float,
) -> tuple[Steps, RowEstimate]:
    found = looked_up(SEQUENTIAL, estimator)
    fraction("discount", discount)
    if found.needs_model and (logged_model is None or policy_model is None):
        raise ValueError(f"estimator: {estimator!r} needs logged_model and policy_model [n, T]; see fitted_q")
    words = Words(model_only="dm" if found.needs_model else "")
    steps = steps_of(log, policy_probs, logged_model, policy_model, discount, found, words)
    return steps, found.rows(steps)


def steps_of(
    log: TrajectoryLog,
    policy_probs: ArrayLike,
    logged_model: ArrayLike | None,
    policy_model: ArrayLike | None,
    discount: float,
    asked: StepEstimator,
    words: Words,
) -> Steps:
    """Checked arrays, cumulated and discounted; refused where they lack the overlap that is asked for."""
    probs = log.checked("policy_probs", policy_probs, 1.0)
    refuse_where("policy_probs", probs, (probs < 0) | (probs > 1), "must be in [0, 1], a probability")
    ratio = probs / log.propensity
    weight = np.asarray(np.cumprod(ratio, axis=1), dtype=np.float64)
    before = np.hstack([np.ones((len(weight), 1)), weight[:, :-1]])
    inside = log.inside(ratio.shape[1])
    if asked.overlap == "along":
        refuse_gap(probs, before, weight, inside, words)
    elif asked.overlap == "each":
        refuse_gap(probs, np.ones_like(ratio), ratio, inside, words)
    factor = discount ** np.arange(weight.shape[1])
    zeros = np.zeros_like(weight)
    logged = zeros if logged_model is None else log.checked("logged_model", logged_model, 0.0)
    policy = zeros if policy_model is None else log.checked("policy_model", policy_model, 0.0)
    return Steps(factor * log.reward, ratio, weight, before, factor * logged, factor * policy)


def judged(rows: RowEstimate, name: str, weight: FloatArray, units: Units, confidence: float) -> Estimate:
    """An estimate with its interval and the diagnostics of `weight` `[n]`."""
    error = standard_error(rows.influence, units)
    freedom = influence_freedom(rows.influence, units)
    low, high = student_interval(rows.value, error, freedom, confidence)
    # One action that everybody takes: support is judged where actions are known, which is not here.
    log = BanditLog(np.zeros(len(weight), np.int64), np.zeros(len(weight)), np.ones(len(weight)))
    health = diagnose(log, np.ones((len(weight), 1)), weight, units)
    if name == "dm":
        note = "the interval of dm covers the sampling of trajectories, not the error of the value model"
        health = replace(health, warnings=(*health.warnings, note))
    return Estimate(rows.value, low, high, name, health, confidence, error)


def looked_up(table: Mapping[str, _T], name: str) -> _T:
    if name not in table:
        raise ValueError(f"estimator: {name!r} is not known; choose one of {', '.join(table)}")
    return table[name]


def _normalised(weight: FloatArray, outcome: FloatArray) -> RowEstimate:
    """Σ_t of weighted means, with the leave-one-out influence of each (see `ope_estimators`)."""
    total = weight.sum(axis=0)
    mean = (weight * outcome).sum(axis=0) / total
    share = weight / total
    if float(share.max()) > 1 - 1e-9:
        row, step = (int(i) for i in np.unravel_index(int(share.argmax()), share.shape))
        raise ValueError(
            f"policy_probs: too little overlap: trajectory {row} carries all of the weight at step {step}, "
            "so no interval can be given; evaluate a policy closer to the logged one, or shorten the horizon"
        )
    influence = (share * len(weight) * (outcome - mean) / (1 - share)).sum(axis=1)
    return RowEstimate(float(mean.sum()), influence)
