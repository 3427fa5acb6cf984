"""Draws the answers of a batch: who may get what, a choice per position, each with its share of a budget."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from qiance.decide.rule import Decided, decide
from qiance.domain import Cap, Decision
from qiance.ledger import Claim, Entry, Identified, Slate
from qiance.ledger.schema import to_micros
from serve.args import AppArgs
from serve.leases import LeaseBook
from serve.live import LiveState
from serve.schemas import DecisionRequest
from serve.scoring import Mask, ScoredBatch

Ints = NDArray[np.int64]
_PATIENCE = 8  # draws of one position that lost their money to another thread before it is given up
_PLENTY = 2**62


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and the instant that it is about."""

    request: DecisionRequest
    at: datetime


@dataclass(frozen=True)
class Case:
    """What the answers of a batch are drawn from; U users, A candidates, in the order of `state`.

    held: `[U]` the user is in the holdout. idle: `[U]` nothing but control may be done, for whatever reason.
    columns: `[A]` where in `scored` each candidate is. degraded: per user.
    """

    calls: Sequence[Call]
    known: list[Identified]
    state: LiveState
    scored: ScoredBatch
    held: Mask
    idle: Mask
    columns: Ints
    degraded: Sequence[tuple[str, ...]]
    decision_ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.decision_ids.extend(secrets.token_hex(16) for _ in self.calls)

    def channel_of(self, column: int) -> str:
        return self.state.channels[column]


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
        going, position = np.arange(len(rows)), 0
        while len(going):
            self._position(case, wanted, going, mask, contacts, slates)
            position += 1
            going = np.array(
                [
                    n
                    for n in going.tolist()
                    if position < case.calls[rows[n]].request.n
                    and slates[n][-1].decision.chosen != 0
                    and mask[n, 1:].any()
                ],
                dtype=np.int64,
            )
        return [tuple(slate) for slate in slates]

    def control_only(self, case: Case, rows: Sequence[int]) -> list[Slate]:
        """Slates that do nothing, for users whose every other choice was taken from them."""
        wanted = np.array(rows, dtype=np.int64)
        mask = _only_control(len(rows), len(case.state.actions))
        decided = self._decide(case, wanted, mask)
        packed = np.packbits(mask, axis=1, bitorder="little")
        return [
            (Entry(self._decision(case, row, 0, decided, n, mask[n], packed[n]), None),)
            for n, row in enumerate(rows)
        ]

    def _admissible(self, case: Case, wanted: Ints) -> Mask:
        """`[R, A]`: for this audience, in stock, on schedule, a candidate; control always."""
        state = case.state
        at_us = np.array([to_micros(case.calls[row].at) for row in wanted], dtype=np.int64)
        mask = case.scored.admissible[wanted][:, case.columns] & (case.columns >= 0)
        mask &= state.in_schedule(at_us) & ~case.idle[wanted][:, None]
        for n, row in enumerate(wanted.tolist()):
            candidates = case.calls[row].request.candidates
            if candidates is not None:
                mask[n] &= np.isin(state.item_row, state.rows_of(candidates))
        mask[:, 0] = True
        return mask

    def _position(
        self,
        case: Case,
        wanted: Ints,
        going: Ints,
        mask: Mask,
        contacts: Ints,
        slates: list[list[Entry]],
    ) -> None:
        """Choose the next position of every slate in `going`, and take its money."""
        for attempt in range(_PATIENCE + 1):
            # Looked up before the draw: what a budget cannot pay is no choice, or propensities were wrong.
            allowed = mask[going] & self._affordable(case.state) & self._uncapped(case.state, contacts[going])
            if attempt == _PATIENCE:
                allowed = _only_control(len(going), mask.shape[1])
            decided = self._decide(case, wanted[going], allowed)
            packed = np.packbits(allowed, axis=1, bitorder="little")
            lost = []
            for n, (row, column) in enumerate(zip(going.tolist(), decided.choice.tolist(), strict=True)):
                user = int(wanted[row])
                claim, paid = self._take(case, user, column)
                if not paid:
                    lost.append(row)
                    continue
                decision = self._decision(case, user, len(slates[row]), decided, n, allowed[n], packed[n])
                slates[row].append(Entry(decision, claim))
                mask[row, column] = column == 0
                contacts[row] += self._counts(case.channel_of(column))
            # Another thread took the money after we looked: drawn again, from what can be paid now.
            going = np.array(lost, dtype=np.int64)
            if not lost:
                return

    def _decide(self, case: Case, users: Ints, allowed: Mask) -> Decided:
        scored, columns = case.scored, np.maximum(case.columns, 0)
        uniforms = (np.frombuffer(os.urandom(8 * len(users)), dtype="<u8") >> 11) * 2.0**-53
        return decide(
            scored.value[users][:, columns],
            scored.cost[users][:, columns],
            allowed,
            case.state.versions.shadow_price,
            self._args.epsilon,
            uniforms=uniforms,
        )

    def _affordable(self, state: LiveState) -> Mask:
        """`[A]` whether its budget can pay each action now."""
        left = [self._leases.ensure(name, state.needed[name]) for name in state.budgets]
        return np.asarray(state.liability <= np.array([*left, _PLENTY])[state.budget_of])

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

    def _take(self, case: Case, user: int, column: int) -> tuple[Claim | None, bool]:
        """What the action sets aside, None if it costs nothing; and whether that could be had."""
        amount = int(case.state.liability[column])
        if amount == 0:
            return None, True
        action, expires = case.state.actions[column], case.calls[user].at + self._window
        budget = case.state.strategies[action.strategy_id].brief_id
        claim = self._leases.take(budget, amount, action.contact_cost, expires)
        return claim, claim is not None

    def _decision(
        self,
        case: Case,
        user: int,
        position: int,
        decided: Decided,
        n: int,
        allowed: Mask,
        packed: NDArray[np.uint8],
    ) -> Decision:
        request, state, column = case.calls[user].request, case.state, int(decided.choice[n])
        name = case.decision_ids[user]
        return Decision(
            decision_id=f"{name}.{position}" if position else name,
            tenant_id=self._args.tenant,
            request_id=None if position else request.request_id,
            pseudonym=case.known[user].pseudonym,
            surface=request.surface,
            decided_at=case.calls[user].at,
            candidates=state.action_ids,
            candidate_set=state.candidate_set,
            admissible=packed.tobytes(),
            scores=decided.score[n][allowed].tobytes(),
            chosen=column,
            propensity=float(decided.propensity[n]),
            uniform=float(decided.uniforms[n]),
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


def _only_control(rows: int, actions: int) -> Mask:
    mask = np.zeros((rows, actions), dtype=np.bool_)
    mask[:, 0] = True
    return mask


def _counts(cap: Cap, channel: str) -> int:
    return int(channel != "none" and cap.channel in (None, channel))
