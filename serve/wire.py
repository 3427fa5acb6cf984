"""What goes between a gateway and the process that decides for it: MessagePack over a socket pair.

A question is `[number, kind, what]`, its answer `[number, reply, error]`. Plain values only: nothing that is
read can run anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgpack

from qiance.domain import Outcome, OutcomeType
from qiance.ledger.schema import from_micros, to_micros
from serve.answers import Written
from serve.problems import Problem
from serve.slates import Call
from serve.spool import SpoolFullError

Kind = Literal["decide", "keep"]
READY = "ready"


def pack(message: Any) -> bytes:
    """The bytes of one message; it needs no frame, since its end is known from its parts."""
    packed: bytes = msgpack.packb(message)
    return packed


def unpacker() -> msgpack.Unpacker:
    """Takes bytes as they arrive (`feed`), and iterates over the messages that are whole."""
    return msgpack.Unpacker(use_list=False, max_buffer_size=0)


def from_calls(calls: Sequence[Call]) -> list[Any]:
    """Calls as plain values; a deadline is good in every process of this machine."""
    return [
        (c.user_id, c.surface, to_micros(c.at), c.request_id, c.n, c.candidates, c.deadline) for c in calls
    ]


def to_calls(values: Sequence[Any]) -> list[Call]:
    """The inverse of `from_calls`."""
    return [Call(user, surface, from_micros(at), *rest) for user, surface, at, *rest in values]


def from_replies(replies: Sequence[Written | Problem]) -> list[Any]:
    """Replies as plain values: of an answer three, of a problem four."""
    return [
        (r.status_code, str(r.detail), r.errors, r.retry_after)
        if isinstance(r, Problem)
        else (r.body, r.holdout, r.degraded)
        for r in replies
    ]


def to_replies(values: Sequence[Any]) -> list[Written | Problem]:
    """The inverse of `from_replies`."""
    return [Written(*value) if len(value) == 3 else _problem(*value) for value in values]


def _problem(status: int, detail: str, errors: Sequence[dict[str, str]], retry_after: int | None) -> Problem:
    return Problem(status, detail, list(errors), retry_after)


def from_outcomes(outcomes: Sequence[Outcome]) -> list[Any]:
    """Outcomes as plain values."""
    return [(o.event_id, o.decision_id, o.type.value, to_micros(o.occurred_at), o.value) for o in outcomes]


def to_outcomes(values: Sequence[Any]) -> list[Outcome]:
    """The inverse of `from_outcomes`."""
    return [
        Outcome(event, decision, OutcomeType(kind), from_micros(at), value)
        for event, decision, kind, at, value in values
    ]


def from_error(error: Exception) -> tuple[str, str]:
    """Which error, and what it says."""
    return type(error).__name__, str(error)


def to_error(value: tuple[str, str]) -> Exception:
    """The error that the desk's users know, or one that names it."""
    name, said = value
    return SpoolFullError(said) if name == SpoolFullError.__name__ else RuntimeError(f"{name}: {said}")
