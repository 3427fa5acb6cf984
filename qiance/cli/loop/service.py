"""The real service during a run: started from the Serve YAML, asked over HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from qiance.artifacts.proposer import load_proposer
from qiance.artifacts.recommend import load_recommender
from qiance.cli.loop.live import ServiceError
from qiance.cli.predict import trained_model
from qiance.cli.stages import Stage
from qiance.cli.words import guard_of
from qiance.domain import Catalogue, Strategy, StrategyState
from qiance.guard.gate import move_strategy
from qiance.ledger import Ledger
from qiance.settings import Settings
from qiance.strategy.propose_learned import check_proposer
from qiance.strategy.timing import check_country
from qiance.workspace import Workspace

POLL_S = 0.5
BRIEF_TIMEOUT_S = 600.0


def app_args(workspace: Workspace, settings: Settings, clock: str) -> dict[str, Any]:
    """Arguments of the application for this workspace."""
    serve = settings.serve
    return {
        "workspace": str(workspace.root),
        "ledger_url": settings.ledger_url(workspace.root),
        "key_file": str(settings.key_file(workspace.root)),
        "tenant": settings.tenant,
        "currency": settings.currency,
        "clock": clock,
        "holdout": serve.holdout,
        "epsilon": serve.epsilon,
        "outcome_window_hours": serve.outcome_window_hours,
        "max_n": serve.max_n,
        "max_candidates": serve.max_candidates,
        "max_body_bytes": serve.max_body_bytes,
        "request_timeout_s": serve.request_timeout_s,
        "topology": serve.topology,
        "frequency_caps": [cap.model_dump() for cap in serve.frequency_caps],
        "batching": {
            "max_batch": serve.max_batch,
            "max_waiting": serve.max_waiting,
            "target_ms": serve.target_ms,
        },
        "leases": {"term_s": serve.lease_term_s},
        "gate": {
            **settings.gate.model_dump(exclude={"largest"}),
            "margin_rate": 1.0 - settings.data.cost_fraction,
        },
        "replay_days": serve.replay_days,
        "min_margin": settings.budget.min_margin,
        "guard_rules": _absolute(settings.guard.rules),
        "seed": settings.seed,
        "unrecorded_consent": settings.privacy.unrecorded_consent,
        "features": {"wait_ms": settings.features.wait_ms, "refresh_s": settings.features.refresh_s},
        "briefs": {
            "proposer": _trained(settings.briefs.proposer),
            "recommender": _trained(settings.briefs.recommender),
            "country": settings.briefs.country,
        },
        "llm": {
            "enabled": settings.llm.enabled,
            "model": settings.llm.model,
            "adapter": _absolute(settings.llm.adapter),
            "endpoint": settings.llm.endpoint,
            "endpoint_key_file": _absolute(settings.llm.endpoint_key_file),
            "cache_dir": str(Path(settings.llm.cache_dir).resolve()),
            "samples": settings.llm.samples,
            "max_seconds": settings.llm.max_seconds,
            "max_waiting": settings.llm.max_waiting,
        },
    }


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _trained(path: Path | None) -> str | None:
    """The artifact at `path`, or the one that the training which wrote the folder made."""
    return None if path is None else str(trained_model(path).resolve())


def check_briefs(settings: Settings) -> None:
    """What briefs are to be answered by, read before hours are spent; ArtifactError or ValueError."""
    check_country(settings.briefs.country)
    if settings.briefs.proposer is not None:
        check_proposer(load_proposer(trained_model(settings.briefs.proposer)))
    if settings.briefs.recommender is not None:
        load_recommender(trained_model(settings.briefs.recommender))


def brief_body(settings: Settings, starts: datetime, ends: datetime, n: int = 8) -> dict[str, Any]:
    """The default brief: more margin within the budget, in English."""
    return {
        "objective": "margin",
        "budget": {"amount": settings.budget.amount, "currency": settings.currency},
        "channels": ["email", "display", "mailer"],
        "languages": ["en"],
        "starts": starts.isoformat(),
        "ends": ends.isoformat(),
        "constraints": {
            "max_depth": settings.budget.max_depth,
            "min_margin": settings.budget.min_margin,
        },
        "n": n,
    }


def send_brief(url: str, body: Mapping[str, Any], stage: Stage) -> tuple[str, str]:
    """Post the brief and wait for its end; its id and closing message."""
    with httpx.Client(base_url=url, timeout=30.0) as client:
        answer = client.post("/v1/briefs", json=dict(body))
        if answer.is_error:
            raise ServiceError(f"/v1/briefs: {answer.status_code} {answer.text[:500]}")
        brief_id = str(answer.json()["brief_id"])
        deadline = time.monotonic() + BRIEF_TIMEOUT_S
        while time.monotonic() < deadline:
            state = client.get(f"/v1/briefs/{brief_id}").raise_for_status().json()
            stage.tell(state["progress"], state["message"])
            if state["state"] == "done":
                return brief_id, str(state["message"])
            if state["state"] in ("failed", "cancelled"):
                raise ServiceError(f"brief {brief_id} {state['state']}: {state['message']}")
            time.sleep(POLL_S)
    raise ServiceError(f"brief {brief_id} was not done within {BRIEF_TIMEOUT_S:.0f} s")


def approve(
    ledger: Ledger, brief_id: str, by: str, settings: Settings, catalogue: Catalogue, stage: Stage
) -> list[Strategy]:
    """Approve and start every strategy of the brief whose words pass the lint; the audit log has who and why.

    ServiceError if none passes.
    """
    guard = guard_of(settings)
    for strategy in ledger.strategies(brief_id=brief_id):
        name = strategy.strategy_id
        try:
            move_strategy(
                ledger, guard, catalogue, name, StrategyState.APPROVED, by, "the run approves its own"
            )
        except ValueError as blocked:
            stage.note(f"{name} stays a draft: {blocked}")
            continue
        move_strategy(ledger, guard, catalogue, name, StrategyState.LIVE, by, "the run starts its own")
    found = ledger.strategies(StrategyState.LIVE, brief_id)
    if not found:
        raise ServiceError(f"brief {brief_id}: the lint passes no strategy; see `qiance creatives list`")
    return found
