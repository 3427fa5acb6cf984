"""Off-policy evaluation of lists: L items shown at once, in slots from the top.

What is assumed of the user decides which weights are enough. Notation: in row i, slot l shows an item that
the logging policy put there with p_il and the policy with π_il; w_il = π_il / p_il; r_il is the reward of the
slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from numpy.typing import ArrayLike

from qiance.evaluate.arrays import fraction
from qiance.evaluate.ope_overlap import Words
from qiance.evaluate.ope_result import Estimate
from qiance.evaluate.ope_trajectory import (
    StepEstimator,
    Steps,
    TrajectoryLog,
    doubly_robust,
    judged,
    looked_up,
    per_decision,
    steps_of,
    weighted,
    whole,
)
from qiance.evaluate.ope_tuning import RowEstimate, mean_rows

SlateLog = TrajectoryLog
"""`reward`, `propensity` `[n, L]`, from the top slot; `length`: slots shown."""


def independent(steps: Steps) -> RowEstimate:
    """IIPS, (1/n) Σ_i Σ_l w_il r_il: the user looks at each slot by itself. p and π are those of the slot
    alone.

    Source: Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay & Wen, KDD (2018), 1685-1694.
    """
    return mean_rows((steps.ratio * steps.reward).sum(axis=1))


def pseudo_inverse(steps: Steps) -> RowEstimate:
    """Pseudo-inverse, (1/n) Σ_i (1 + Σ_l (w_il − 1)) Σ_l r_il: the list's reward is a sum over its slots'
    items.

    This is the closed form for a logging policy that fills the slots independently of each other; only the
    whole list's reward is needed. Source: Swaminathan et al., NeurIPS (2017), 3632-3642; Vlassis,
    Chandrashekar, Amat & Kallus, NeurIPS (2021), eq. 3.
    """
    factor = 1 + (steps.ratio - 1).sum(axis=1)
    return mean_rows(factor * steps.reward.sum(axis=1))


SLATE: Mapping[str, StepEstimator] = MappingProxyType(
    {
        "sips": StepEstimator(whole),
        "iips": StepEstimator(independent, overlap="each"),
        "rips": StepEstimator(per_decision),
        "snrips": StepEstimator(weighted),
        "pi": StepEstimator(pseudo_inverse, overlap="each"),
        "cascade-dr": StepEstimator(doubly_robust, needs_model=True),
    }
)
"""sips for users of whom nothing is assumed, rips, snrips and cascade-dr for those who read from the top,
iips for those who look at each slot by itself, pi for a sum."""


def estimate_slates(
    log: SlateLog,
    policy_probs: ArrayLike,
    logged_model: ArrayLike | None = None,
    policy_model: ArrayLike | None = None,
    estimator: str = "rips",
    confidence: float = 0.95,
) -> Estimate:
    """Estimated reward per list of a policy, summed over the slots.

    log: `propensity` and policy_probs, `[n, L]`, are of the item in the slot: for iips and pi of the slot by
        itself, else given the items above it.
    logged_model, policy_model: `[n, L]` expected rewards of the slot and those below it, for the item shown
        and as the policy would fill the slot, both given what is above; needed by cascade-dr.
    estimator: sips, iips, rips (reward interaction: McInerney et al., KDD 2020, 1779-1788), snrips (the same,
        self-normalised), pi, cascade-dr (Kiyohara et al., WSDM 2022, 487-497).

    Interval and errors as `estimate_trajectories`. A slot without overlap is refused: iips and pi need it in
    each slot by itself, the others given the slots above. Diagnostics are of the weights that are used.
    """
    found = looked_up(SLATE, estimator)
    fraction("confidence", confidence, open_ends=True)
    if found.needs_model and (logged_model is None or policy_model is None):
        raise ValueError(f"estimator: {estimator!r} needs logged_model and policy_model [n, L]")
    words = Words("lists", "slot")
    steps = steps_of(log, policy_probs, logged_model, policy_model, 1.0, found, words)
    weight = steps.ratio.mean(axis=1) if found.overlap == "each" else steps.weight[:, -1]
    return judged(found.rows(steps), estimator, weight, log.units(), confidence)
