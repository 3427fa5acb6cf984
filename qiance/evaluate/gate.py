"""The launch gate: a policy may go live if it is shown to be better in every campaign that it covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import BoolArray, fraction, mask_matrix
from qiance.evaluate.bandit_log import BanditLog, checked_model, checked_policy
from qiance.evaluate.ope import difference
from qiance.evaluate.ope_estimators import ESTIMATORS
from qiance.evaluate.ope_result import Estimate, clears_gate

Floats = NDArray[Any]


@dataclass(frozen=True, slots=True)
class GateRule:
    """What a policy has to show.

    margin: by how much it must beat the live policy, in units of the reward per decision; margins: the same
        of single campaigns, by their id. Below 0 a policy may be worse by as much.
    confidence: of the two-sided interval whose lower bound must exceed the margin.
    estimator: see `qiance.evaluate.ope.estimate`; `dm` never passes.
    """

    margin: float = 0.0
    margins: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    confidence: float = 0.95
    estimator: str = "auto"

    def __post_init__(self) -> None:
        fraction("confidence", self.confidence, open_ends=True)
        if self.estimator not in ("auto", *ESTIMATORS):
            raise ValueError(f"estimator: {self.estimator!r} is not one of auto, {', '.join(ESTIMATORS)}")
        for name, value in (("margin", self.margin), *((f"margins.{k}", v) for k, v in self.margins.items())):
            if not np.isfinite(value):
                raise ValueError(f"{name}: {value} is not finite")

    def margin_of(self, campaign: str) -> float:
        """The margin that a campaign asks for."""
        return self.margins.get(campaign, self.margin)


@dataclass(frozen=True, slots=True)
class CampaignVerdict:
    """What the gate says of one campaign; improvement: per decision of it, None without an estimate."""

    campaign: str
    decisions: int
    margin: float
    passed: bool
    reason: str
    improvement: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether `policy` may take the place of `live`, and why or why not in one sentence.

    improvement: over all decisions of the log, whatever the campaign; None where there is no estimate.
    """

    policy: str
    live: str
    passed: bool
    reason: str
    improvement: Estimate | None
    campaigns: tuple[CampaignVerdict, ...]

    def told(self) -> dict[str, Any]:
        """The verdict as plain JSON, for an audit log."""
        return {
            "policy": self.policy,
            "live": self.live,
            "passed": self.passed,
            "reason": self.reason,
            "campaigns": [
                {
                    "campaign": one.campaign,
                    "decisions": one.decisions,
                    "margin": one.margin,
                    "passed": one.passed,
                    "reason": one.reason,
                    "low": None if one.improvement is None else one.improvement.low,
                }
                for one in self.campaigns
            ],
        }


def judge(
    log: BanditLog,
    policy_probs: Floats,
    live_probs: Floats,
    reward_model: Floats | None,
    campaigns: Mapping[str, BoolArray],
    rule: GateRule | None = None,
    *,
    policy: str = "",
    live: str = "",
    seed: int = 0,
) -> Verdict:
    """Judges a policy by a log; arrays as for `qiance.evaluate.ope.difference`.

    campaigns: id → `[n]` bool, the decisions of the campaign: those in which one of its actions could have
        been chosen, whatever was. That does not hang on the choice, so each is a fair sample of its own.

    The improvement of a campaign is over its decisions, with all of their rewards; it must clear the
    campaign's margin by `clears_gate`. All campaigns must: then no correction for their number is needed
    (intersection-union test: Berger, Technometrics 24 (1982), 295-300). Without a campaign nothing passes.
    ValueError for arrays that cannot be right; a log that cannot tell is a closed gate.
    """
    chosen = rule or GateRule()
    _check(log, policy_probs, live_probs, reward_model)
    arrays = (policy_probs, live_probs, reward_model)
    overall, _ = _improvement(log, arrays, chosen, seed)
    found = []
    for name, rows in campaigns.items():
        inside = mask_matrix(f"campaigns.{name}", rows, (len(log),))
        found.append(_campaign(name, inside, log, arrays, chosen, seed))
    closed = [f"campaign {one.campaign}: {one.reason}" for one in found if not one.passed]
    if not found:
        closed = ["no campaign is covered: nothing is live that the policy could choose from"]
    reason = "; ".join(closed or [f"campaign {one.campaign}: {one.reason}" for one in found])
    return Verdict(policy, live, not closed, reason, overall, tuple(found))


def _check(log: BanditLog, policy_probs: Floats, live_probs: Floats, reward_model: Floats | None) -> None:
    probs = checked_policy("policy_probs", policy_probs, log)
    if checked_policy("live_probs", live_probs, log).shape != probs.shape:
        raise ValueError(
            f"live_probs: has shape {np.shape(live_probs)}; must be {probs.shape}, as policy_probs"
        )
    if reward_model is not None:
        checked_model(reward_model, probs.shape)


def _improvement(
    log: BanditLog, arrays: tuple[Floats, Floats, Floats | None], rule: GateRule, seed: int
) -> tuple[Estimate | None, str]:
    """The improvement, or why there is none: no overlap, or one user alone."""
    probs, live, model = arrays
    try:
        return difference(log, probs, live, model, rule.estimator, rule.confidence, seed), ""
    except ValueError as error:
        return None, str(error)


def _campaign(
    name: str,
    inside: BoolArray,
    log: BanditLog,
    arrays: tuple[Floats, Floats, Floats | None],
    rule: GateRule,
    seed: int,
) -> CampaignVerdict:
    count, margin = int(inside.sum()), rule.margin_of(name)
    if count == 0:
        none = "no logged decision had a choice with its actions; let the live policy explore them first"
        return CampaignVerdict(name, 0, margin, False, none)
    if count < len(log):
        log = _rows(log, inside)
        probs, live, model = arrays
        arrays = probs[inside], live[inside], None if model is None else model[inside]
    found, problem = _improvement(log, arrays, rule, seed)
    if found is None:
        return CampaignVerdict(name, count, margin, False, problem)
    gate = clears_gate(found, margin)
    return CampaignVerdict(name, count, margin, gate.passed, gate.reason, found)


def _rows(log: BanditLog, inside: BoolArray) -> BanditLog:
    def part(values: Any) -> Any:
        return None if values is None else values[inside]

    return BanditLog(
        log.action[inside],
        log.reward[inside],
        log.propensity[inside],
        part(log.context),
        part(log.position),
        part(log.cluster),
    )
