"""Draws the answers of a batch: who may get what, a choice per position, each with its share of a budget."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.decide.rule import Decided, decide
from qiance.domain import Cap, Decision
from qiance.ledger import Claim, Entry, Identified, Slate
from qiance.ledger.decisions import position_id
from qiance.ledger.schema import to_micros
from serve.args import AppArgs
from serve.leases import LeaseBook
from serve.live import LiveState
from serve.schemas import DecisionRequest
from serve.scoring import Mask, ScoredBatch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_PLENTY = 2**62


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it was found good, and the instant that it is about.

    deadline: seconds of `time.monotonic`, one clock for all processes of a machine; nobody waits after it.
    """

    user_id: str
    surface: str
    at: datetime
    request_id: str | None
    n: int
    candidates: tuple[str, ...] | None
    deadline: float = math.inf

    @classmethod
    def of(cls, request: DecisionRequest, at: datetime, deadline: float = math.inf) -> Call:
        """The call that `request` makes at `at`."""
        candidates = None if request.candidates is None else tuple(request.candidates)
        return cls(request.user_id, request.surface, at, request.request_id, request.n, candidates, deadline)


@dataclass(frozen=True)
class Case:
    """What the answers of a batch are drawn from; U users, A candidates, in the order of `state`.

    held: `[U]` the user is in the holdout. idle: `[U]` nothing but control may be done, for whatever reason.
    columns: `[A]` where in `scored` each candidate is. degraded, decision_ids: per user.
    uniforms: `[U, P]` the number in [0, 1) that each position is drawn with, however often it is drawn.
    """

    calls: Sequence[Call]
    known: list[Identified]
    state: LiveState
    scored: ScoredBatch
    held: Mask
    idle: Mask
    columns: Ints
    degraded: Sequence[tuple[str, ...]]
    decision_ids: Sequence[str]
    uniforms: Floats


class Drawer:
    """Draws slates; what they take from the leases must be settled by who records them."""

    def __init__(self, args: AppArgs, leases: LeaseBook) -> None:
        self._args, self._leases = args, leases
        self._window = timedelta(hours=args.outcome_window_hours)

    def draw(self, case: Case, rows: Sequence[int]) -> list[Slate]:
        """One slate per user number in `rows`: ends early with control, or when nothing else is left.

        Raises LedgerUnavailableError when money cannot be leased.
        """
        wanted = np.array(rows, dtype=np.int64)
        mask = self._admissible(case, wanted)
        contacts = np.array([case.known[row].contacts[1:] for row in rows], dtype=np.int64)
        contacts = contacts.reshape(len(rows), len(self._args.caps))
        slates: list[list[Entry]] = [[] for _ in rows]
        try:
            self._fill(case, wanted, mask, contacts, slates)
        except BaseException:  # what was taken until then would be lost to everybody
            for claim in (entry.claim for slate in slates for entry in slate if entry.claim is not None):
                self._leases.give_back(claim)
            raise
        return [tuple(slate) for slate in slates]

    def _fill(self, case: Case, wanted: Ints, mask: Mask, contacts: Ints, slates: list[list[Entry]]) -> None:
        """Position after position, while a slate goes on."""
        going, position = np.arange(len(wanted)), 0
        while len(going):
            self._position(case, position, wanted, going, mask, contacts, slates)
            position += 1
            going = np.array(
                [
                    n
                    for n in going.tolist()
                    if position < case.calls[wanted[n]].n
                    and slates[n][-1].decision.chosen != 0
                    and mask[n, 1:].any()
                ],
                dtype=np.int64,
            )

    def control_only(self, case: Case, rows: Sequence[int]) -> list[Slate]:
        """Slates that do nothing, for users whose every other choice was taken from them."""
        mask = _only_control(len(rows), len(case.state.actions))
        drawn = _Drawn.of(self._decide(case, np.array(rows, dtype=np.int64), 0, mask), mask)
        return [(Entry(self._decision(case, row, 0, drawn, n), None),) for n, row in enumerate(rows)]

    def _admissible(self, case: Case, wanted: Ints) -> Mask:
        """`[R, A]`: for this audience, in stock, on schedule, a candidate; control always."""
        state = case.state
        at_us = np.array([to_micros(case.calls[row].at) for row in wanted], dtype=np.int64)
        mask = case.scored.admissible[wanted][:, case.columns] & (case.columns >= 0)
        mask &= state.in_schedule(at_us) & ~case.idle[wanted][:, None]
        for n, row in enumerate(wanted.tolist()):
            candidates = case.calls[row].candidates
            if candidates is not None:
                mask[n] &= np.isin(state.item_row, state.rows_of(candidates))
        mask[:, 0] = True
        return mask

    def _position(
        self,
        case: Case,
        position: int,
        wanted: Ints,
        going: Ints,
        mask: Mask,
        contacts: Ints,
        slates: list[list[Entry]],
    ) -> None:
        """Choose the next position of every slate in `going`, and take its money.

        What a budget cannot pay is no choice, or propensities were wrong: so it is looked up before each
        draw, and nobody else takes money in between. All are drawn at once; whoever finds less money at his
        turn than was assumed is drawn again with the same number, so that the draw decides nothing twice.
        """
        users = wanted[going]
        open_ = mask[going] & self._uncapped(case.state, contacts[going])
        with self._leases.alone():
            left = self._left(case.state)
            allowed = open_ & _pays(case.state, left)
            drawn = _Drawn.of(self._decide(case, users, position, allowed), allowed)
            for n, (row, user) in enumerate(zip(going.tolist(), users.tolist(), strict=True)):
                one, place = drawn, n
                if (now := self._left(case.state)) != left:
                    again = open_[n : n + 1] & _pays(case.state, now)
                    one, place = _Drawn.of(self._decide(case, users[n : n + 1], position, again), again), 0
                column = int(one.decided.choice[place])
                claim = self._take(case, user, column)
                decision = self._decision(case, user, position, one, place)
                slates[row].append(Entry(decision, claim))
                mask[row, column] = column == 0
                contacts[row] += self._counts(case.state.channels[column])

    def _decide(self, case: Case, users: Ints, position: int, allowed: Mask) -> Decided:
        scored, columns = case.scored, np.maximum(case.columns, 0)
        return decide(
            scored.value[users][:, columns],
            scored.cost[users][:, columns],
            allowed,
            case.state.versions.shadow_price,
            self._args.epsilon,
            uniforms=case.uniforms[users, position],
        )

    def _left(self, state: LiveState) -> tuple[int, ...]:
        """Per budget what one action may cost now; more than any costs counts as that."""
        return tuple(min(self._leases.ensure(name, most), most) for name, most in state.needed.items())

    def _uncapped(self, state: LiveState, contacts: Ints) -> Mask:
        """`[R, A]` whether one contact more stays within every cap."""
        allowed = np.ones((len(contacts), len(state.actions)), dtype=np.bool_)
        for k, cap in enumerate(self._args.caps):
            full = contacts[:, k] >= cap.contacts
            if full.any():
                allowed &= ~(full[:, None] & state.reach(cap.channel))
        return allowed

    def _counts(self, channel: str) -> Ints:
        """`[K]` 1 for each cap that a contact over `channel` counts towards."""
        return np.array([_counts(cap, channel) for cap in self._args.caps], dtype=np.int64)

    def _take(self, case: Case, user: int, column: int) -> Claim | None:
        """What the action sets aside; None if it costs nothing."""
        amount = int(case.state.liability[column])
        if amount == 0:
            return None
        action, expires = case.state.actions[column], case.calls[user].at + self._window
        budget = case.state.strategies[action.strategy_id].brief_id
        claim = self._leases.take(budget, amount, action.contact_cost, expires)
        assert claim is not None, "only what can be paid is drawn, and nobody took from it since"
        return claim

    def _decision(self, case: Case, user: int, position: int, drawn: _Drawn, place: int) -> Decision:
        call, state, decided = case.calls[user], case.state, drawn.decided
        name, column = case.decision_ids[user], int(decided.choice[place])
        return Decision(
            decision_id=position_id(name, position),
            tenant_id=self._args.tenant,
            request_id=None if position else call.request_id,
            pseudonym=case.known[user].pseudonym,
            surface=call.surface,
            decided_at=call.at,
            candidates=state.action_ids,
            candidate_set=state.candidate_set,
            admissible=drawn.packed[place].tobytes(),
            scores=decided.score[place][drawn.allowed[place]].tobytes(),
            chosen=column,
            propensity=float(decided.propensity[place]),
            uniform=float(decided.uniforms[place]),
            epsilon=self._args.epsilon,
            shadow_price=state.versions.shadow_price,
            channel=state.channels[column],
            holdout=bool(case.held[user]),
            model_version=case.scored.model_version,
            policy_version=state.versions.policy,
            degraded=case.degraded[user],
            serial=state.versions.serial,
            items=case.scored.items,
            user_row=case.scored.user_rows[user],
        )


@dataclass(frozen=True)
class _Drawn:
    """Choices with the masks `[n, A]` that they were made under, also as bits."""

    decided: Decided
    allowed: Mask
    packed: NDArray[np.uint8]

    @classmethod
    def of(cls, decided: Decided, allowed: Mask) -> _Drawn:
        return cls(decided, allowed, np.packbits(allowed, axis=1, bitorder="little"))


def _pays(state: LiveState, left: Sequence[int]) -> Mask:
    """`[A]` whether its budget has what each action may cost; `left` is in the order of `state.budgets`."""
    return np.asarray(state.liability <= np.array([*left, _PLENTY])[state.budget_of])


def uniforms(users: int, positions: int) -> Floats:
    """`[users, positions]` numbers in [0, 1) with 53 random bits, from the system's source."""
    bits = np.frombuffer(os.urandom(8 * users * positions), dtype="<u8") >> np.uint64(11)
    return (bits.astype(np.float64) * 2.0**-53).reshape(users, positions)


def _only_control(rows: int, actions: int) -> Mask:
    mask = np.zeros((rows, actions), dtype=np.bool_)
    mask[:, 0] = True
    return mask


def _counts(cap: Cap, channel: str) -> int:
    return int(channel != "none" and cap.channel in (None, channel))
