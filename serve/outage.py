"""While the ledger is down: control for everybody and outcomes, kept on the local disk and replayed after.

Each replica hands over its own part in its own time, so a part may need one that is still to come: an outcome
can be here and its decision with another replica. Such an outcome is tried again.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from qiance.decide.holdout import holdout
from qiance.domain import CONTROL_ACTION, Channel, Decision, Outcome, OutcomeType
from qiance.ledger import Entry, Ledger, LedgerUnavailableError, OutcomeReceipt, Recorded
from qiance.ledger.budgets import MOST_MINOR_UNITS
from serve.answers import Answer, of_another_user
from serve.args import AppArgs
from serve.live import LiveState
from serve.problems import Problem
from serve.slates import Call
from serve.spool import Spool

TRY_S = 0.5  # how often the ledger is tried while something waits
RETRY_S = 60.0  # most between two tries of outcomes that wait for their decision
WAIT = timedelta(hours=24)  # how long they wait, from the first try
DEGRADED = "ledger"
_CONTROL_MASK = np.packbits([True], bitorder="little").tobytes()
_CONTROL_SCORE = np.zeros(1, dtype="<f4").tobytes()
logger = logging.getLogger(__name__)


class Outage:
    """Takes what may be taken without the ledger; a thread hands it over when the ledger is back."""

    def __init__(self, args: AppArgs, ledger: Ledger, spool: Spool) -> None:
        self._args, self._ledger, self._spool = args, ledger, spool
        self._answered: dict[str, tuple[str, Answer]] = {}  # request id → keyed hash of the user, answer
        self._erased = set[str]()  # decisions that are not handed over, as their users were erased
        self._pause_s, self._retry_at = TRY_S, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qiance-spool", daemon=True)
        self._thread.start()

    def decide(self, calls: Sequence[Call], state: LiveState) -> list[Answer | Problem]:
        """Control for every call, on the disk when this returns; raises SpoolFullError.

        A repeated request gets the answer of before while that is known here, another user's is refused.
        """
        answers, entries = list[Answer | Problem](), []
        answered = dict[str, tuple[str, Answer]]()  # by this batch; known to others once it is on the disk
        for call in calls:
            lookup, request_id = self._ledger.lookup(call.user_id), call.request_id
            before = (answered.get(request_id) or self._answered.get(request_id)) if request_id else None
            if before is not None:
                answers.append(before[1] if before[0] == lookup else of_another_user())
                continue
            answer = _control(state)
            entries.append(self._entry(call, lookup, answer, state))
            if request_id:
                answered[request_id] = lookup, answer
            answers.append(answer)
        self._spool.append(entries)
        self._answered.update(answered)
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
        """Replay what was not tried yet; how many entries. Raises LedgerUnavailableError while it is down."""
        self._ledger.versions()  # first, since decisions wait for the spool while it replays
        count = self._spool.replay(self._replay)
        if count:
            self._answered.clear()
            self._erased.clear()
            logger.warning("the ledger is back: %d entries of the spool were handed over", count)
        return count

    def retry(self) -> int:
        """Replay what waits for another replica; how many entries wait no longer. Raises as `hand_over`."""
        return self._spool.retry(self._replay)

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

    def _replay(self, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the ledger does not take yet."""
        made = [e for e in entries if e["kind"] == "decision"]
        if made:
            self._record(made)
        outcomes = [e for e in entries if e["kind"] == "outcome"]
        return self._book(outcomes) if outcomes else []

    def _record(self, made: Sequence[dict[str, Any]]) -> None:
        kept_at = [datetime.fromisoformat(e["kept_at"]) for e in made]
        pseudonyms = self._ledger.pseudonyms_of([e["lookup"] for e in made], kept_at)
        control = self._ledger.put_candidates([CONTROL_ACTION])
        # Who was erased meanwhile leaves nothing, also if he has come back since.
        named = list(zip(made, pseudonyms, strict=True))
        self._erased |= {entry["decision_id"] for entry, name in named if name is None}
        decisions = [self._decision(entry, name, control) for entry, name in named if name is not None]
        there = self._store(decisions)
        # A request that was also answered elsewhere, under another id. The client may tell of either answer,
        # so both are logged; only one can have the name of the request.
        twice = [replace(d, request_id=None) for d in there if d.request_id is not None]
        stored = len(twice) - len(self._store(twice))
        if stored:
            logger.warning(
                "%d decisions are logged without their request_id, which was answered elsewhere too", stored
            )

    def _store(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Those that were not stored, as their decision or request id is logged already."""
        recorded = self._ledger.record_slates([(Entry(decision, None),) for decision in decisions], ())
        return [d for d, what in zip(decisions, recorded, strict=True) if what is not Recorded.STORED]

    def _book(self, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that wait on for their decision."""
        receipt = record_and_settle(self._ledger, [_outcome(e) for e in entries])
        now = datetime.now(UTC)
        waiting, refused = list[dict[str, Any]](), Counter[str]()
        for rejected in receipt.rejected:
            entry = {"tried_at": now.isoformat(), **entries[rejected.index]}
            code = "erased_decision" if entry["decision_id"] in self._erased else rejected.code
            if code == "unknown_decision" and now - datetime.fromisoformat(entry["tried_at"]) < WAIT:
                waiting.append(entry)
            else:
                refused[code] += 1
        if refused:
            logger.warning("outcomes accepted while the ledger was down are left out: %s", dict(refused))
        if new := sum(entry["tried_at"] == now.isoformat() for entry in waiting):
            logger.warning("%d outcomes wait for decisions that are not handed over yet", new)
        return waiting

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
                self._try()
            except LedgerUnavailableError:
                continue
            except Exception as error:  # a thread that dies would keep what waits for ever, unseen
                logger.error("the spool cannot be handed over: %r", error)

    def _try(self) -> None:
        """Hand over what is new; what waits is tried ever less often, and often again after that."""
        now = time.monotonic()
        if not self._spool.is_empty and self.hand_over():
            self._pause_s, self._retry_at = TRY_S, now + TRY_S
        elif now >= self._retry_at and self._spool.has_waiting:
            self._pause_s = min(2.0 * self._pause_s, RETRY_S)
            self._retry_at = now + self._pause_s
            self.retry()


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
