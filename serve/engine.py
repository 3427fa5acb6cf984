"""The engine of decisions: a batch of requests in, durable answers out. The same in serving and offline."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np

from qiance.decide.holdout import holdout
from qiance.domain import Action, Cap, Decision, Effect, Purpose
from qiance.ledger import (
    NO_VERSION,
    Asker,
    Assumed,
    Claim,
    Identified,
    Ledger,
    LedgerUnavailableError,
    Recorded,
    Slate,
    new_decision_id,
)
from serve.answers import Answer, of_another_user
from serve.args import AppArgs
from serve.leases import LeaseBook
from serve.live import LiveState, Watcher
from serve.means import Means
from serve.outage import Outage
from serve.problems import Problem
from serve.scoring import NoModelError, ScoredBatch, Scorer, ScoreRequest
from serve.slates import Call, Case, Drawer, Ints, uniforms
from serve.spool import SpoolFullError

CONTACT_WINDOW = Cap(0, 7.0)  # counted for the model: contacts of the last seven days
DOWN_S = 1.0  # how long a ledger that did not answer is left alone
REST = 2.0  # the same as a multiple of the time that was lost in waiting for it, where that is more
RETRY_AFTER_S = 2
WARM_S = 30.0
NOBODY = "nobody"
_ATTEMPTS = 3  # of a slate that the ledger refuses before it does nothing
logger = logging.getLogger(__name__)


Result = Answer | Problem


class NotReadyError(RuntimeError):
    """The predictor made no pass in the time that it was given; the message says why."""


class Engine:
    """Decides, takes budget and logs, before anything is answered; safe to use from several threads."""

    def __init__(
        self,
        args: AppArgs,
        ledger: Ledger,
        watcher: Watcher,
        scorer: Scorer,
        leases: LeaseBook,
        outage: Outage,
    ) -> None:
        self._args, self._ledger, self._watcher, self._scorer = args, ledger, watcher, scorer
        self._leases, self._outage = leases, outage
        self._drawer = Drawer(args, leases)
        self._means = Means(watcher.catalogue, args.min_margin)
        self._placed: tuple[tuple[str, str], Ints] | None = None
        self._windows = (CONTACT_WINDOW, *args.caps)
        self._down_until = 0.0

    def decide(self, calls: Sequence[Call]) -> list[Result]:
        """One answer per call, each durable; a Problem for what the client must mend or try again."""
        if not calls:
            return []
        asked_at = time.monotonic()
        if asked_at < self._down_until:
            return self._without_ledger(calls)
        try:
            return self._decide(calls)
        except LedgerUnavailableError as error:
            now = time.monotonic()
            self._down_until = now + max(DOWN_S, REST * (now - asked_at))
            logger.warning("control only, since the ledger does not answer: %s", error)
            return self._without_ledger(calls)

    def warm_up(self, patience_s: float = WARM_S) -> None:
        """Open this thread's connections and score once, deciding nothing; nothing to do without a model.

        A predictor elsewhere may not be up yet: it is tried again for `patience_s`, then NotReadyError.
        """
        self._ledger.versions()
        deadline, waits = time.monotonic() + patience_s, False
        while True:
            try:
                scored = self._scorer.score([ScoreRequest(NOBODY, 0, self._args.now(), False)])
                scored.effects([0], [scored.value.shape[1] - 1])
                return
            except NoModelError:
                return
            except Exception as error:
                if time.monotonic() > deadline:
                    raise NotReadyError(f"predictor: no pass within {patience_s:g} s ({error!r})") from error
                if not waits:
                    logger.warning("waits for the predictor, %g s at most: %r", patience_s, error)
                waits = True
                time.sleep(0.2)

    def _decide(self, calls: Sequence[Call]) -> list[Result]:
        if self._args.clock == "request":
            self._ledger.advance_clock(max(call.at for call in calls))
        known = self._identify(calls)
        results = [self._repeated(who) if who.stored else None for who in known]
        fresh = [n for n, result in enumerate(results) if result is None]
        if fresh:
            case = self._case([calls[n] for n in fresh], [known[n] for n in fresh])
            for n, answer in zip(fresh, self._answers(case), strict=True):
                results[n] = answer
        return [result for result in results if result is not None]

    def _identify(self, calls: Sequence[Call]) -> list[Identified]:
        askers = [Asker(call.user_id, call.request_id, call.at) for call in calls]
        return self._ledger.identify(askers, self._windows)

    def _case(self, calls: list[Call], known: list[Identified]) -> Case:
        state = self._watcher.state
        scored, told = self._score(calls, known, state)
        held = holdout([who.pseudonym for who in known], self._args.tenant, self._args.holdout)
        idle = held | bool({"no_policy", "killed"} & set(told))
        degraded = [(*told, *of_user) for of_user in scored.degraded]
        return Case(
            calls,
            known,
            state,
            scored,
            held,
            idle,
            self._columns(state, scored),
            degraded,
            [new_decision_id() for _ in calls],
            uniforms(len(calls), max(call.n for call in calls)),
        )

    def _score(
        self, calls: Sequence[Call], known: Sequence[Identified], state: LiveState
    ) -> tuple[ScoredBatch, tuple[str, ...]]:
        """Scores from the predictor, or the strategies' mean effects when it does not answer in time."""
        if state.versions.policy == NO_VERSION or state.versions.killed:
            return self._means.score(state, len(calls)), ("killed" if state.versions.killed else "no_policy",)
        requests = [
            ScoreRequest(call.user_id, who.contacts[0], call.at, self._agrees(who), call.deadline)
            for call, who in zip(calls, known, strict=True)
        ]
        try:
            scored = self._scorer.score(requests)
            if not (np.isfinite(scored.value).all() and np.isfinite(scored.cost).all()):
                raise ValueError(f"model {scored.model_version} predicts values that are not finite")
        except Exception as error:  # whatever part of the predictor failed, the ladder's next step serves
            logger.warning("decided by the strategies' means: %r", error)
            return self._means.score(state, len(calls)), ("predictor",)
        return scored, ()

    def _agrees(self, who: Identified) -> bool:
        said = who.purposes.get(Purpose.PERSONALISATION)
        return Purpose.PERSONALISATION in self._args.unrecorded if said is None else said

    def _columns(self, state: LiveState, scored: ScoredBatch) -> Ints:
        """`[A]` column of `scored` for each live action, −1 where the predictor does not know it yet."""
        if scored.candidate_set == state.candidate_set:
            return np.arange(len(state.actions))
        sets, placed = (state.candidate_set, scored.candidate_set), self._placed
        if placed is None or placed[0] != sets:  # the same for every batch until one of the two moves on
            ids = [action.action_id for action in self._ledger.candidates(scored.candidate_set)]
            place = {action_id: column for column, action_id in enumerate(ids)}
            columns = np.array([place.get(action_id, -1) for action_id in state.action_ids], dtype=np.int64)
            placed = self._placed = sets, columns
        return placed[1]

    def _answers(self, case: Case) -> list[Result]:
        """Draw and record every slate; what the ledger refuses is drawn again from what is left."""
        results: list[Result | None] = [None] * len(case.calls)
        open_ = list(range(len(case.calls)))
        for attempt in range(_ATTEMPTS + 1):
            last = attempt == _ATTEMPTS
            slates = self._drawer.control_only(case, open_) if last else self._drawer.draw(case, open_)
            recorded = self._record(slates, [self._assumed(case, row) for row in open_])
            stored = [n for n, outcome in enumerate(recorded) if outcome is Recorded.STORED]
            done = [open_[n] for n in stored]
            for row, answer in zip(done, _answers(case, done, [slates[n] for n in stored]), strict=True):
                results[row] = answer
            left = [
                row for row, outcome in zip(open_, recorded, strict=True) if outcome is not Recorded.STORED
            ]
            open_ = self._look_again(case, left, results)
            if not open_:
                break
        return [result if result is not None else _lost() for result in results]

    def _look_again(self, case: Case, rows: Sequence[int], results: list[Result | None]) -> list[int]:
        """What is known by now of the users in `rows`; whose request was answered meanwhile is done."""
        if not rows:
            return []
        left = []
        for row, who in zip(rows, self._identify([case.calls[row] for row in rows]), strict=True):
            case.known[row] = who
            if who.stored:
                results[row] = self._repeated(who)
            else:
                left.append(row)
        return left

    def _assumed(self, case: Case, row: int) -> Assumed:
        return Assumed(case.calls[row].n, case.known[row].contacts[1:])

    def _record(self, slates: Sequence[Slate], assumed: Sequence[Assumed]) -> list[Recorded]:
        try:
            recorded = self._ledger.record_slates(slates, self._args.caps, assumed)
        except BaseException:
            for claim in (claim for slate in slates for claim in _claims(slate)):
                self._leases.give_back(claim)
            raise
        for slate, outcome in zip(slates, recorded, strict=True):
            for claim in _claims(slate):
                if outcome is Recorded.STORED:
                    self._leases.done(claim)
                else:
                    self._leases.give_back(claim)
                    if outcome is Recorded.OVER_BUDGET:
                        self._leases.lost(claim.lease_id)
        return recorded

    def _repeated(self, who: Identified) -> Result:
        """The answer given before, also where its strategies are no longer live; to its own user alone."""
        if who.stored[0].pseudonym != who.pseudonym:
            return of_another_user()
        picks = []
        for decision in who.stored:
            picks.append((self._action(decision), decision.propensity, None))
        first = who.stored[0]
        return Answer(
            first.decision_id,
            tuple(picks),
            first.model_version,
            first.policy_version,
            (*first.degraded, "repeated"),
            first.holdout,
        )

    def _action(self, decision: Decision) -> Action:
        state = self._watcher.state
        if decision.candidate_set == state.candidate_set:
            return state.actions[decision.chosen]
        return self._ledger.candidates(decision.candidate_set)[decision.chosen]

    def _without_ledger(self, calls: Sequence[Call]) -> list[Result]:
        """Nothing is spent: control for everybody, kept on the local disk until the ledger is back."""
        try:
            return list(self._outage.decide(calls, self._watcher.state))
        except SpoolFullError as error:
            logger.error("%s", error)
            detail = "ledger: does not answer, and what can be kept here is full; try again"
            return [Problem(503, detail, retry_after=RETRY_AFTER_S) for _ in calls]


def _answers(case: Case, rows: Sequence[int], slates: Sequence[Slate]) -> list[Answer]:
    """What the clients of `rows` are told; the effects of all of it are worked out at once."""
    of_row = [row for row, slate in zip(rows, slates, strict=True) for _ in slate]
    chosen = [entry.decision.chosen for slate in slates for entry in slate]
    effects = iter(case.scored.effects(of_row, case.columns[chosen].tolist()))
    return [_answer(case.state, slate, effects) for slate in slates]


def _answer(state: LiveState, slate: Slate, effects: Iterator[Effect | None]) -> Answer:
    picks = tuple((state.actions[e.decision.chosen], e.decision.propensity, next(effects)) for e in slate)
    first = slate[0].decision
    return Answer(
        first.decision_id, picks, first.model_version, first.policy_version, first.degraded, first.holdout
    )


def _claims(slate: Slate) -> list[Claim]:
    return [entry.claim for entry in slate if entry.claim is not None]


def _lost() -> Problem:
    return Problem(
        503, "decision: the ledger refused it again and again; try again", retry_after=RETRY_AFTER_S
    )
