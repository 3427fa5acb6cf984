"""What the routes about policies take and give."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from qiance.evaluate.gate import CampaignVerdict
from qiance.evaluate.ope_result import Estimate
from qiance.launch import Evaluation
from serve.schemas import IntervalOut, Strict

PolicyVersion = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class EvaluatePolicyRequest(Strict):
    """Judge a policy of the workspace by the log."""

    policy_version: PolicyVersion


class PromotePolicyRequest(Strict):
    """Make a policy live. With `override` it goes live whatever the gate says, and `reason` says why."""

    override: bool = Field(False, strict=True)
    reason: str = Field("", max_length=500, description="Needed for an override; goes to the audit log")


class DiagnosticsOut(BaseModel):
    """What the log holds about both policies: the worse of the two in each."""

    effective_sample_size: float
    overlap: float = Field(description="Share of decisions whose action the policy could have taken")
    mean_weight: float = Field(description="About 1 where the propensities are right")
    max_weight: float
    unsupported_mass: float = Field(description="Probability on actions that were never logged")
    warnings: list[str] = Field(description="What is wrong, and what to do about it")


class CampaignOut(BaseModel):
    """What the gate says of one campaign: of the decisions in which its actions could be chosen."""

    campaign: str
    decisions: int
    margin: float = Field(description="By how much the lower bound must exceed 0, minor units")
    improvement: IntervalOut | None
    passed: bool
    reason: str


class EvaluatePolicyResponse(BaseModel):
    """A policy against the live one; per decision, minor units of margin."""

    policy_version: str
    live_version: str
    opens: bool
    reason: str
    value: float | None
    live_value: float | None
    improvement: IntervalOut | None
    confidence: float | None
    estimator: str | None
    campaigns: list[CampaignOut]
    diagnostics: DiagnosticsOut | None
    decisions: int
    users: int
    since: datetime | None
    until: datetime | None
    left_out: dict[str, int]
    spend: float | None
    live_spend: float | None
    notes: list[str]


class PromotePolicyResponse(BaseModel):
    """A policy that is live now."""

    policy_version: str
    overridden: bool
    evaluation: EvaluatePolicyResponse | None


def evaluation_out(found: Evaluation) -> EvaluatePolicyResponse:
    """Domain → HTTP."""
    verdict, gain = found.verdict, found.improvement
    return EvaluatePolicyResponse(
        policy_version=verdict.policy,
        live_version=verdict.live,
        opens=verdict.passed,
        reason=verdict.reason,
        value=found.value,
        live_value=found.live_value,
        improvement=_interval(gain),
        confidence=None if gain is None else gain.confidence,
        estimator=None if gain is None else gain.estimator,
        campaigns=[_campaign(one) for one in verdict.campaigns],
        diagnostics=None if gain is None else _diagnostics(gain),
        decisions=found.decisions,
        users=found.users,
        since=found.since,
        until=found.until,
        left_out=dict(found.left_out),
        spend=found.spend,
        live_spend=found.live_spend,
        notes=list(found.notes),
    )


def _interval(found: Estimate | None) -> IntervalOut | None:
    return None if found is None else IntervalOut(value=found.value, low=found.low, high=found.high)


def _campaign(one: CampaignVerdict) -> CampaignOut:
    return CampaignOut(
        campaign=one.campaign,
        decisions=one.decisions,
        margin=one.margin,
        improvement=_interval(one.improvement),
        passed=one.passed,
        reason=one.reason,
    )


def _diagnostics(found: Estimate) -> DiagnosticsOut:
    health = found.diagnostics
    return DiagnosticsOut(
        effective_sample_size=health.effective_sample_size,
        overlap=health.overlap,
        mean_weight=health.mean_weight,
        max_weight=health.max_weight,
        unsupported_mass=health.unsupported_mass,
        warnings=list(health.warnings),
    )
