"""What an off-policy estimate says, and whether it is enough to go live."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qiance.evaluate.ope_diagnostics import Diagnostics


@dataclass(frozen=True, slots=True)
class Estimate:
    """An off-policy estimate with its two-sided interval at `confidence`.

    value, low, high, std_error: per decision, in the units of the reward; std_error is that of the interval.
    estimator: the one asked for; where it is "auto", `shares` says of which others it was made.
    baseline_value: None for a policy's value; for a difference the estimated value of the baseline, and
    `value` is the policy's value minus it.
    interval: how the interval was made, and `centre` by which estimator, where that is another one;
    "bernstein" and "anytime" are those of ipw.
    parameter: the clip, threshold or shrinkage that was used, where the estimator has one.
    """

    value: float
    low: float
    high: float
    estimator: str
    diagnostics: Diagnostics
    confidence: float
    std_error: float
    baseline_value: float | None = None
    interval: str = "default"
    centre: str = ""
    parameter: float | None = None
    shares: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether a policy may go live, why or why not in one sentence, and the improvement it was judged by."""

    passed: bool
    reason: str
    improvement: Estimate


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
    never logged, and for another estimator than dm, whose value has the model's error.
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
        reason = "dm is no better than its reward model, whose error is in no interval; use sndr or dr"
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
