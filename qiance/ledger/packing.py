"""Decisions as database rows and back, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qiance.domain import Decision
from qiance.ledger.database import checked, text_problem


def to_row(decision: Decision) -> dict[str, Any]:
    """The row of `decision`; scores are kept as float32, costs and probabilities as float64."""
    _check(decision)
    return {
        "tenant_id": decision.tenant_id,
        "decision_id": decision.decision_id,
        "request_id": decision.request_id,
        "pseudonym": decision.pseudonym,
        "surface": decision.surface,
        "decided_at": decision.decided_at,
        "candidates": json.dumps(decision.candidates, ensure_ascii=False, separators=(",", ":")),
        "scores": _pack(decision.scores, "<f4"),
        "costs": _pack(decision.costs, "<f8"),
        "probabilities": _pack(decision.probabilities, "<f8"),
        "chosen": decision.chosen,
        "action_id": decision.action_id,
        "propensity": float(decision.propensity),
        "holdout": decision.holdout,
        "model_version": decision.model_version,
        "policy_version": decision.policy_version,
        "degraded": json.dumps(decision.degraded, ensure_ascii=False),
        "snapshot": decision.snapshot,
        "uniform": float(decision.uniform),
    }


def from_row(row: Any) -> Decision:
    """The decision kept in `row` (a row of the `decisions` table)."""
    return Decision(
        decision_id=row.decision_id,
        tenant_id=row.tenant_id,
        request_id=row.request_id,
        pseudonym=row.pseudonym,
        surface=row.surface,
        decided_at=row.decided_at,
        candidates=tuple(json.loads(row.candidates)),
        scores=_unpack(row.scores, "<f4"),
        costs=_unpack(row.costs, "<f8"),
        probabilities=_unpack(row.probabilities, "<f8"),
        chosen=row.chosen,
        holdout=row.holdout,
        model_version=row.model_version,
        policy_version=row.policy_version,
        degraded=tuple(json.loads(row.degraded)),
        snapshot=row.snapshot,
        uniform=row.uniform,
    )


def _pack(values: Sequence[float], dtype: str) -> bytes:
    return np.asarray(values, dtype=dtype).tobytes()


def _unpack(packed: bytes, dtype: str) -> tuple[float, ...]:
    return tuple(np.frombuffer(packed, dtype=dtype).tolist())


def _check(decision: Decision) -> None:
    """Refuses a decision that could not be replayed."""
    for field in ("decision_id", "pseudonym", "surface", "model_version", "policy_version"):
        checked(f"decision.{field}", getattr(decision, field))
    if decision.request_id is not None:
        checked("decision.request_id", decision.request_id)
    if decision.snapshot:
        checked("decision.snapshot", decision.snapshot)
    width = len(decision.candidates)
    for field in ("scores", "costs", "probabilities"):
        if len(getattr(decision, field)) != width:
            raise ValueError(
                f"decision.{field}: {len(getattr(decision, field))} entries for {width} candidates; "
                "give one per candidate"
            )
    if not 0 <= decision.chosen < width:
        raise ValueError(f"decision.chosen: {decision.chosen} is not an index into {width} candidates")
    _check_numbers(decision)
    for candidate in decision.candidates:
        if (problem := text_problem(candidate)) is not None:
            raise ValueError(f"decision.candidates: {problem}")


def _check_numbers(decision: Decision) -> None:
    if any(math.isnan(score) for score in decision.scores):
        raise ValueError("decision.scores: NaN has no order, so the choice could not be replayed")
    if not all(0.0 <= probability <= 1.0 for probability in decision.probabilities):
        raise ValueError("decision.probabilities: every entry must be in [0, 1]")
    if not decision.propensity > 0.0:
        raise ValueError("decision.propensity: 0, yet this action was chosen; log the probability it had")
    if not all(math.isfinite(cost) for cost in decision.costs) or not math.isfinite(decision.uniform):
        raise ValueError("decision.costs, decision.uniform: every entry must be finite")
    if decision.decided_at.tzinfo is None:
        raise ValueError("decision.decided_at: has no time zone; pass one in UTC")
