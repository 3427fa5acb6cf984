"""Policies as the workspace keeps them: plans, by their version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from qiance.artifacts.manifest import ArtifactError, Manifest, load_manifest, write_artifact
from qiance.decide.plan import KIND, PLAN_FILE, Plan
from qiance.features.columns import EFFECT_SCHEMA
from qiance.workspace import Workspace

_VERSION = re.compile(r"[0-9a-f]{16}")


class UnknownPolicyError(ValueError):
    """The workspace has no policy of that version."""


def read_plan(workspace: Workspace, version: str) -> Plan:
    """The policy of `version`, its files checked; UnknownPolicyError where there is none."""
    path = workspace.artifacts / f"{KIND}-{version}"
    if not _VERSION.fullmatch(version) or not path.is_dir():
        raise UnknownPolicyError(
            f"policy version {version[:40]!r} is not in the workspace; see `qiance policies list`"
        )
    load_manifest(path)
    return Plan.load(path)


def plans(workspace: Workspace) -> Iterator[tuple[Manifest, Plan]]:
    """Every policy of the workspace, the newest first; one that is damaged is left out."""
    found = []
    for path in workspace.artifacts.glob(f"{KIND}-*"):
        try:
            found.append((load_manifest(path), Plan.load(path)))
        except (ArtifactError, ValueError, KeyError, TypeError):
            continue
    yield from sorted(found, key=lambda pair: (pair[0].created_at, pair[0].version), reverse=True)


def derive_plan(
    workspace: Workspace,
    base: Plan,
    *,
    shadow_price: float | None = None,
    effect_model: str | None = None,
    starts: datetime | None = None,
    horizon_days: int | None = None,
) -> str:
    """Writes a policy like `base` but for what is given; its version. ValueError for what makes none."""
    given = {
        "shadow_price": shadow_price,
        "effect_model": effect_model,
        "starts": starts,
        "horizon_days": horizon_days,
    }
    plan = replace(base, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if not 0 <= plan.shadow_price < float("inf"):
        raise ValueError(f"shadow_price: {plan.shadow_price} is outside [0, infinity)")
    if plan.horizon_days < 1:
        raise ValueError(f"horizon_days: {plan.horizon_days} is less than 1 day")
    workspace.artifact("effect-model", plan.effect_model)
    return write_plan(workspace, plan, {})


def write_plan(workspace: Workspace, plan: Plan, metrics: Mapping[str, float]) -> str:
    """Keeps a policy in the workspace; its version. metrics: kept beside its price."""
    artifact = write_artifact(
        workspace.artifacts,
        KIND,
        {PLAN_FILE: plan.save},
        metrics={**metrics, "shadow_price": plan.shadow_price},
        parents=(plan.effect_model, plan.pacing),
        feature_service=EFFECT_SCHEMA.service,
        schema_hash=EFFECT_SCHEMA.hash,
        data_fingerprint=plan.budget_id,
    )
    return artifact.version
