"""Requests and answers of `POST /v1/effects`."""

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from qiance.artifacts.explain import Explanation
from serve.effects import Effects
from serve.schemas import EffectOut, Identifier, Strict, effect_out


class EffectsRequest(Strict):
    """Predict effects of live actions for users, or for a segment (`all`, or a strategy's audience)."""

    user_ids: list[Identifier] | None = Field(None, min_length=1, max_length=1_000)
    segment: Identifier | None = None
    actions: list[Identifier] = Field(min_length=1, max_length=200)


class ContributionOut(BaseModel):
    """What one feature adds to the incremental margin, minor units; the value as the model read it."""

    feature: str
    value: str | float | None
    effect: float


class ExplanationOut(BaseModel):
    """Why an incremental margin: prediction = baseline + effects + additivity error, minor units."""

    method: Literal["shap", "lime"]
    of: Literal["uplift"] = "uplift"
    prediction: float
    baseline: float = Field(description="What other users and other live actions give on average")
    contributions: list[ContributionOut]
    additivity_error: float


class PairEffect(BaseModel):
    """Predicted effect of one action for one user, or for a whole segment (user_id is null)."""

    user_id: str | None
    action_id: str
    effect: EffectOut
    explanation: ExplanationOut | None = None


class EffectsResponse(BaseModel):
    """One effect per pair, users in the outer loop."""

    effects: list[PairEffect]
    model_version: str
    degraded: list[str]


def effects_out(body: EffectsRequest, found: Effects) -> EffectsResponse:
    """Domain → HTTP."""
    users: list[str | None] = list(body.user_ids) if body.user_ids is not None else [None]
    reasons: list[list[Explanation | None]] = [[None] * len(body.actions) for _ in users]
    if found.reasons:
        reasons = [list(row) for row in found.reasons]
    return EffectsResponse(
        effects=[
            PairEffect(
                user_id=user,
                action_id=action,
                effect=effect_out(effect),
                explanation=_explanation_out(reason),
            )
            for user, row, why in zip(users, found.table, reasons, strict=True)
            for action, effect, reason in zip(body.actions, row, why, strict=True)
        ],
        model_version=found.model_version,
        degraded=list(found.degraded),
    )


def _explanation_out(found: Explanation | None) -> ExplanationOut | None:
    return None if found is None else ExplanationOut.model_validate(asdict(found))
