"""Decisions as database rows and back, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from qiance.domain import CONTROL, Channel, Decision
from qiance.ledger.database import checked
from qiance.ledger.schema import ID_LENGTH, to_micros

Row = dict[str, Any]
MOST_SERIAL = 2**63 - 1
_NAMES = ("decision_id", "pseudonym", "surface", "model_version", "policy_version")
_TEXTS = tuple(f"decision.{name}" for name in _NAMES)
_texts_of = attrgetter(*_NAMES)
_CHANNELS = frozenset(channel.value for channel in Channel)
_NOTHING = "[]"


def to_row(decision: Decision) -> Row:
    """The row of `decision`, as the driver takes it: time in microseconds since the epoch.

    Called for every decision on its way to the client: nothing here goes through the candidates one by one.
    The scores are looked at by `check_scores`, for all decisions at once.
    """
    _check_texts(decision)
    _check_kinds(decision)
    _check_choice(decision)
    _check_numbers(decision)
    return {
        "tenant_id": decision.tenant_id,
        "decision_id": decision.decision_id,
        "request_id": decision.request_id,
        "pseudonym": decision.pseudonym,
        "surface": decision.surface,
        "decided_at": to_micros(decision.decided_at),
        "candidate_set": decision.candidate_set,
        "admissible": decision.admissible,
        "scores": decision.scores,
        "chosen": int(decision.chosen),
        "action_id": decision.action_id,
        "channel": str(decision.channel),
        "propensity": float(decision.propensity),
        "uniform": float(decision.uniform),
        "epsilon": float(decision.epsilon),
        "shadow_price": float(decision.shadow_price),
        "holdout": bool(decision.holdout),
        "model_version": decision.model_version,
        "policy_version": decision.policy_version,
        "degraded": json.dumps(decision.degraded, ensure_ascii=False) if decision.degraded else _NOTHING,
        "serial": int(decision.serial),
        "items": decision.items,
        "user_row": decision.user_row,
    }


def from_row(row: Any, candidates: tuple[str, ...]) -> Decision:
    """The decision kept in `row` (a row of the `decisions` table); candidates: the ids of its set."""
    return Decision(
        decision_id=row.decision_id,
        tenant_id=row.tenant_id,
        request_id=row.request_id,
        pseudonym=row.pseudonym,
        surface=row.surface,
        decided_at=row.decided_at,
        candidates=candidates,
        candidate_set=row.candidate_set,
        admissible=bytes(row.admissible),
        scores=bytes(row.scores),
        chosen=row.chosen,
        propensity=row.propensity,
        uniform=row.uniform,
        epsilon=row.epsilon,
        shadow_price=row.shadow_price,
        channel=row.channel,
        holdout=row.holdout,
        model_version=row.model_version,
        policy_version=row.policy_version,
        degraded=tuple(json.loads(row.degraded)) if row.degraded != _NOTHING else (),
        serial=row.serial,
        items=row.items,
        user_row=bytes(row.user_row),
    )


def check_scores(decisions: Sequence[Decision]) -> None:
    """Refuses scores that have no order: a choice among them could not be replayed."""
    if np.isfinite(np.frombuffer(b"".join(d.scores for d in decisions), dtype="<f4")).all():
        return
    wrong = next(d for d in decisions if not np.isfinite(d.admissible_scores()).all())
    raise ValueError(
        f"decision.scores: NaN or infinite in {wrong.decision_id!r}, so the choice could not be replayed"
    )


def _check_texts(decision: Decision) -> None:
    texts = (*_texts_of(decision), decision.request_id or "-", decision.items or "-")
    if decision.request_id != "" and _are_plain(texts):
        return
    if decision.request_id is not None:
        checked("decision.request_id", decision.request_id)
    if decision.items:
        checked("decision.items", decision.items)
    for field, value in zip(_TEXTS, _texts_of(decision), strict=True):
        checked(field, value)


def _check_kinds(decision: Decision) -> None:
    if decision.channel not in _CHANNELS:
        raise ValueError(f"decision.channel: {decision.channel!r} is not one of {', '.join(Channel)}")
    for field in ("admissible", "scores", "user_row"):
        if not isinstance(getattr(decision, field), bytes):
            raise ValueError(f"decision.{field}: {type(getattr(decision, field)).__name__} is not bytes")


def _are_plain(texts: Sequence[str]) -> bool:
    """Whether all are short and ASCII, as nearly always; seen at once, which takes a tenth of the time."""
    try:
        joined = "".join(texts)
    except TypeError:
        return False
    return joined.isascii() and "\x00" not in joined and all(texts) and len(max(texts, key=len)) <= ID_LENGTH


def _check_choice(decision: Decision) -> None:
    """Refuses a choice that does not follow from what is logged with it."""
    width, mask = len(decision.candidates), int.from_bytes(decision.admissible, "little")
    if len(decision.admissible) != (width + 7) // 8 or mask >> width:
        raise ValueError(f"decision.admissible: {len(decision.admissible)} bytes do not hold {width} bits")
    if not mask & 1:
        raise ValueError("decision.admissible: column 0 is control, always admissible")
    if not 0 <= decision.chosen < width:
        raise ValueError(f"decision.chosen: {decision.chosen} is not an index into {width} candidates")
    if not mask >> decision.chosen & 1:
        raise ValueError(f"decision.chosen: candidate {decision.chosen} is not admissible")
    if len(decision.scores) != 4 * mask.bit_count():
        raise ValueError(
            f"decision.scores: {len(decision.scores)} bytes for {mask.bit_count()} admissible candidates; "
            "give a float32 for each"
        )
    if (decision.action_id == CONTROL) != (decision.channel == Channel.NONE):
        raise ValueError(f"decision.channel: {decision.channel!r} does not fit {decision.action_id!r}")


def _check_numbers(decision: Decision) -> None:
    """Refuses numbers from which the choice could not be replayed."""
    if not 0.0 < decision.propensity <= 1.0:
        raise ValueError(
            f"decision.propensity: {decision.propensity} is outside (0, 1]; log the probability that this "
            "action had"
        )
    if not 0.0 <= decision.uniform < 1.0:
        raise ValueError(f"decision.uniform: {decision.uniform} is outside [0, 1)")
    if not 0.0 <= decision.epsilon <= 1.0:
        raise ValueError(f"decision.epsilon: {decision.epsilon} is outside [0, 1]")
    if not 0.0 <= decision.shadow_price < math.inf:
        raise ValueError(f"decision.shadow_price: {decision.shadow_price} is outside [0, infinity)")
    if decision.decided_at.tzinfo is None:
        raise ValueError("decision.decided_at: has no time zone; pass one in UTC")
    if not 0 <= decision.serial <= MOST_SERIAL:
        raise ValueError(f"decision.serial: {decision.serial} is outside [0, 2**63)")
