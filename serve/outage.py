"""While the ledger is down: control for everybody and outcomes, kept on the local disk and replayed after."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from qiance.decide.holdout import holdout
from qiance.domain import CONTROL_ACTION, Channel, Decision, Outcome, OutcomeType
from qiance.ledger import Entry, Ledger, LedgerUnavailableError, OutcomeReceipt
from qiance.ledger.budgets import MOST_MINOR_UNITS
from serve.answers import Answer
from serve.args import AppArgs
from serve.live import LiveState
from serve.slates import Call
from serve.spool import Spool

TRY_S = 0.5  # how often the ledger is tried while something waits
DEGRADED = "ledger"
_CONTROL_MASK = np.packbits([True], bitorder="little").tobytes()
_CONTROL_SCORE = np.zeros(1, dtype="<f4").tobytes()
logger = logging.getLogger(__name__)


class Outage:
    """Takes what may be taken without the ledger; a thread hands it over when the ledger is back."""

    def __init__(self, args: AppArgs, ledger: Ledger, spool: Spool) -> None:
        self._args, self._ledger, self._spool = args, ledger, spool
        self._answered: dict[str, tuple[str, Answer]] = {}  # request id → keyed hash of the user, answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qiance-spool", daemon=True)
        self._thread.start()

    def decide(self, calls: Sequence[Call], state: LiveState) -> list[Answer]:
        """Control for every call, on the disk when this returns; raises SpoolFullError.

        A repeated request gets the answer of before while that is known here.
        """
        answers, entries = [], []
        answered = dict(self._answered)
        for call in calls:
            lookup, request_id = self._ledger.lookup(call.user_id), call.request_id
            before = answered.get(request_id) if request_id else None
            answer = before[1] if before is not None and before[0] == lookup else _control(state)
            if before is None or before[1] is not answer:
                entries.append(self._entry(call, lookup, answer, state))
            if request_id:
                answered.setdefault(request_id, (lookup, answer))
            answers.append(answer)
        self._spool.append(entries)
        self._answered = answered
        return answers

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes, on the disk when this returns; raises SpoolFullError."""
        self._spool.append(
            [
                {
                    "kind": "outcome",
                    "event_id": o.event_id,
                    "decision_id": o.decision_id,
                    "type": o.type.value,
                    "occurred_at": o.occurred_at.isoformat(),
                    "value": o.value,
                }
                for o in outcomes
            ]
        )

    def hand_over(self) -> int:
        """Replay what waits; how many entries. Raises LedgerUnavailableError while the ledger is down."""
        count = self._spool.replay(self._replay)
        if count:
            self._answered.clear()
            logger.warning("the ledger is back: %d entries of the spool were handed over", count)
        return count

    def close(self) -> None:
        """Stop the thread; what waits stays on the disk for whoever starts next."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        self._spool.close()

    def _entry(self, call: Call, lookup: str, answer: Answer, state: LiveState) -> dict[str, Any]:
        return {
            "kind": "decision",
            "decision_id": answer.decision_id,
            "request_id": call.request_id,
            "lookup": lookup,
            "surface": call.surface,
            "at": call.at.isoformat(),
            "kept_at": datetime.now(UTC).isoformat(),
            "model_version": state.versions.model,
            "policy_version": state.versions.policy,
            "serial": state.versions.serial,
        }

    def _replay(self, entries: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        made = [e for e in entries if e["kind"] == "decision"]
        kept_at = [datetime.fromisoformat(e["kept_at"]) for e in made]
        pseudonyms = self._ledger.pseudonyms_of([e["lookup"] for e in made], kept_at)
        control = self._ledger.put_candidates([CONTROL_ACTION])
        # Who was erased meanwhile leaves nothing, also if he has come back since.
        decisions = [
            self._decision(entry, name, control)
            for entry, name in zip(made, pseudonyms, strict=True)
            if name is not None
        ]
        if decisions:
            self._ledger.record_slates([(Entry(decision, None),) for decision in decisions], ())
        outcomes = [_outcome(e) for e in entries if e["kind"] == "outcome"]
        if outcomes:
            record_and_settle(self._ledger, outcomes)
        return ()

    def _decision(self, entry: dict[str, Any], pseudonym: str, control: str) -> Decision:
        args = self._args
        return Decision(
            decision_id=entry["decision_id"],
            tenant_id=args.tenant,
            request_id=entry["request_id"],
            pseudonym=pseudonym,
            surface=entry["surface"],
            decided_at=datetime.fromisoformat(entry["at"]),
            candidates=(CONTROL_ACTION.action_id,),
            candidate_set=control,
            admissible=_CONTROL_MASK,
            scores=_CONTROL_SCORE,
            chosen=0,
            propensity=1.0,
            uniform=0.0,
            epsilon=args.epsilon,
            shadow_price=0.0,
            channel=Channel.NONE.value,
            holdout=bool(holdout([pseudonym], args.tenant, args.holdout)[0]),
            model_version=entry["model_version"],
            policy_version=entry["policy_version"],
            degraded=(DEGRADED,),
            serial=entry["serial"],
        )

    def _run(self) -> None:
        while not self._stop.wait(TRY_S):
            try:
                if not self._spool.is_empty:
                    self.hand_over()
            except LedgerUnavailableError:
                continue
            except Exception as error:  # a thread that dies would keep what waits for ever, unseen
                logger.error("the spool cannot be handed over: %r", error)


def record_and_settle(ledger: Ledger, outcomes: Sequence[Outcome]) -> OutcomeReceipt:
    """Store outcomes, then book what conversions used: the whole reservation, for the offer holds once.

    The ledger's receipt.
    """
    receipt = ledger.record_outcomes(outcomes)
    rejected = {r.index for r in receipt.rejected}
    converted = [
        o.decision_id
        for n, o in enumerate(outcomes)
        if o.type is OutcomeType.CONVERSION and n not in rejected
    ]
    held = ledger.holding(converted) if converted else set()
    if held:
        ledger.settle_many(dict.fromkeys(held, MOST_MINOR_UNITS))
    return receipt


def _control(state: LiveState) -> Answer:
    versions = state.versions
    return Answer(
        secrets.token_hex(16),
        ((CONTROL_ACTION, 1.0, None),),
        versions.model,
        versions.policy,
        (DEGRADED,),
        False,
    )


def _outcome(entry: dict[str, Any]) -> Outcome:
    at = datetime.fromisoformat(entry["occurred_at"])
    return Outcome(entry["event_id"], entry["decision_id"], OutcomeType(entry["type"]), at, entry["value"])
