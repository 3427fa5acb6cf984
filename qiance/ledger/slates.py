"""Recording decisions: a batch of answers in one transaction, with their claims and under the caps.

The usual batch has no repeated request and no lease that ran out, so it is written without looking first. If
a row that was in the way or a lease that admitted less tells otherwise, nothing is kept and the batch is
written again, looking first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, select

from qiance.domain import Cap, Decision
from qiance.ledger.asking import counting, locking, packed
from qiance.ledger.budgets import OPEN, check_amount
from qiance.ledger.database import checked, cursor_of, native
from qiance.ledger.decisions import Decisions, position_id
from qiance.ledger.folding import Folding
from qiance.ledger.leases import Leases
from qiance.ledger.marks import PSEUDONYM
from qiance.ledger.packing import Row, check_scores, to_row
from qiance.ledger.records import Assumed, Claim, LedgerUnavailableError, Recorded, Slate
from qiance.ledger.schema import decisions, reservations, to_micros

_MOST_ATTEMPTS = 20  # each but the first means that another replica logged one of our requests meanwhile
_INSERTS = {
    table.name: f"INSERT INTO {table.name} ({', '.join(names)}) "  # noqa: S608
    f"VALUES ({', '.join(f':{name}' for name in names)}) ON CONFLICT DO NOTHING"
    for table in (decisions, reservations)
    for names in [[column.name for column in table.columns]]
}
_TAKE = (
    "UPDATE leases SET used = used + :more WHERE tenant_id = :tenant AND lease_id = :lease "
    "AND budget_id = :budget AND used + :more <= amount AND expires_at > :now"
)
_KNOWN = select(decisions.c.request_id, decisions.c.decision_id).where(
    decisions.c.tenant_id == bindparam("tenant"),
    decisions.c.decision_id.in_(bindparam("ids", expanding=True))
    | decisions.c.request_id.in_(bindparam("requests", expanding=True)),
)


class _OtherwiseError(Exception):
    """The batch cannot be written as it was assumed."""


@dataclass(slots=True)
class _Seen:
    """What the admission of a batch goes by.

    decisions, requests: ids that are logged, or admitted so far. left: lease → what it still admits, None
    where nobody looked. contacts: place of the slate → contacts per cap. fresh: pseudonym → the contacts
    admitted so far.
    """

    decisions: set[str] = field(default_factory=set)
    requests: set[str] = field(default_factory=set)
    left: dict[str, int] | None = None
    contacts: dict[int, Sequence[int]] = field(default_factory=dict)
    fresh: dict[str, list[Decision]] = field(default_factory=lambda: defaultdict(list))

    def repeats(self, slate: Slate) -> bool:
        return slate[0].decision.request_id in self.requests or any(
            entry.decision.decision_id in self.decisions for entry in slate
        )

    def take(self, slate: Slate) -> bool:
        """Whether the leases admit all claims of the slate, which are then taken."""
        if self.left is None:
            return True
        wanted = Counter[str]()
        for entry in slate:
            if entry.claim is not None:
                wanted[entry.claim.lease_id] += entry.claim.amount
        if any(amount > self.left[lease_id] for lease_id, amount in wanted.items()):
            return False
        for lease_id, amount in wanted.items():
            self.left[lease_id] -= amount
        return True

    def note(self, slate: Slate) -> None:
        self.decisions.update(entry.decision.decision_id for entry in slate)
        if (request := slate[0].decision.request_id) is not None:
            self.requests.add(request)


class Slates(Folding, Leases, Decisions):
    """Recording slates."""

    def record_slates(
        self, slates: Sequence[Slate], caps: Sequence[Cap] = (), assumed: Sequence[Assumed] | None = None
    ) -> list[Recorded]:
        """Logs a batch of answers in one transaction; what became of each, in order. Durable on return.

        assumed: what each slate was drawn on. One for which a cap became tighter since is refused whatever
        it chose: were only those refused that contact the user, control would be logged too often.
        Slates are taken in order, each seeing the earlier. A slate whose user was erased while it was made is
        stored and at once folded into the totals. Raises ValueError for a slate that could not be replayed
        (nothing of the batch is stored then), LedgerUnavailableError if the database does not answer.
        """
        if not slates:
            return []
        rows = [self._slate_rows(slate) for slate in slates]
        check_scores([entry.decision for slate in slates for entry in slate])
        for attempt in range(_MOST_ATTEMPTS):
            try:
                with self.write() as connection:
                    return self._record(connection, slates, rows, tuple(caps), assumed, look=attempt > 0)
            except _OtherwiseError:
                continue
        raise LedgerUnavailableError("ledger: other replicas keep logging the same requests; try again")

    def _record(
        self,
        connection: Connection,
        slates: Sequence[Slate],
        rows: Sequence[Sequence[Row]],
        caps: tuple[Cap, ...],
        assumed: Sequence[Assumed] | None,
        *,
        look: bool,
    ) -> list[Recorded]:
        # First, since it takes the lock that an erasure and other decisions of the same users wait for.
        erased = self._lock_users(connection, slates)
        seen = self._look(connection, slates) if look else _Seen()
        if caps:
            seen.contacts = self._count_contacts(connection, slates, caps, chosen_only=assumed is None)
        told: Sequence[Assumed | None] = [None] * len(slates) if assumed is None else assumed
        results = [
            self._admit(place, slate, caps, seen, drawn_on)
            for place, (slate, drawn_on) in enumerate(zip(slates, told, strict=True))
        ]
        stored = [place for place, result in enumerate(results) if result is Recorded.STORED]
        if stored:
            claims = {
                entry.decision.decision_id: entry.claim
                for place in stored
                for entry in slates[place]
                if entry.claim is not None
            }
            cursor = cursor_of(connection)
            self._write_all(cursor, _TAKE, self._taken(claims))
            fresh = [row for place in stored for row in rows[place]]
            # In one order, so that two writers with the same requests wait instead of deadlocking.
            fresh.sort(key=lambda row: (row["request_id"] or "", row["decision_id"]))
            self._write_all(cursor, _INSERTS["decisions"], fresh)
            self._write_all(cursor, _INSERTS["reservations"], [self._held_row(*c) for c in claims.items()])
            if erased:
                late = [row["decision_id"] for row in fresh if row["pseudonym"] in erased]
                self._fold(connection, late)
        return results

    def _lock_users(self, connection: Connection, slates: Sequence[Slate]) -> set[str]:
        """Those of the users who were erased since they were looked up."""
        names = {slate[0].decision.pseudonym for slate in slates}
        asking = {"tenant": self.tenant, "rows": packed([[name] for name in names])}
        cursor = cursor_of(connection)
        cursor.execute(locking(self.dialect), asking)
        present = {row[0] for row in cursor.fetchall()}
        missing = names - present
        return self._marked(connection, PSEUDONYM, missing) if missing else set()

    def _look(self, connection: Connection, slates: Sequence[Slate]) -> _Seen:
        """Which of the ids are logged, and what the leases still admit."""
        entries = [entry for slate in slates for entry in slate]
        ids = sorted(entry.decision.decision_id for entry in entries)
        requests = sorted(name for e in entries if (name := e.decision.request_id) is not None)
        known = connection.execute(_KNOWN, {"tenant": self.tenant, "ids": ids, "requests": requests}).all()
        claims = [entry.claim for entry in entries if entry.claim is not None]
        return _Seen(
            decisions={row.decision_id for row in known},
            requests={row.request_id for row in known if row.request_id is not None},
            left=self._left(connection, claims),
        )

    def _left(self, connection: Connection, claims: Sequence[Claim]) -> dict[str, int]:
        """lease → what it still admits; −1, so that not even 0 fits, once its term is over."""
        wanted = {claim.lease_id: claim.budget_id for claim in claims}
        now, left = self._system_now(), dict.fromkeys(wanted, -1)
        for lease_id, row in self._lock_leases(connection, sorted(wanted)).items():
            if row.budget_id != wanted[lease_id]:
                raise ValueError(
                    f"claim.budget_id: {wanted[lease_id]!r}, but the lease is of {row.budget_id!r}"
                )
            left[lease_id] = row.amount - row.used if row.expires_at > now else -1
        return left

    def _count_contacts(
        self, connection: Connection, slates: Sequence[Slate], caps: tuple[Cap, ...], *, chosen_only: bool
    ) -> dict[int, Sequence[int]]:
        """Place of each slate → contacts per cap, in its `days` before and after.

        chosen_only: of those alone that contact their user; else also of those that might have.
        """
        rows = [
            [place, slate[0].decision.pseudonym, to_micros(slate[0].decision.decided_at)]
            for place, slate in enumerate(slates)
            if any(entry.decision.chosen for entry in slate)
            or (not chosen_only and _had_a_choice(slate[0].decision))
        ]
        if not rows:
            return {}
        cursor = cursor_of(connection)
        cursor.execute(counting(self.dialect, caps), {"tenant": self.tenant, "rows": packed(rows)})
        return {row[0]: row[1:] for row in cursor.fetchall()}

    def _admit(
        self, place: int, slate: Slate, caps: Sequence[Cap], seen: _Seen, assumed: Assumed | None
    ) -> Recorded:
        """What becomes of the slate, given those before it; notes what it adds."""
        if seen.repeats(slate):
            return Recorded.DUPLICATE
        first, contacts = slate[0].decision, [entry.decision for entry in slate if entry.decision.chosen]
        earlier = seen.fresh[first.pseudonym]
        made = earlier + contacts
        counts = list(zip(caps, seen.contacts.get(place, ()), strict=False))
        if assumed is not None and _had_a_choice(first):
            now = [n + _within(cap, earlier, first) for cap, n in counts]
            if any(
                _tighter(*three, assumed.positions) for three in zip(caps, assumed.contacts, now, strict=True)
            ):
                return Recorded.OVER_CAP
        if any(n + _within(cap, made, first) > cap.contacts for cap, n in counts):
            return Recorded.OVER_CAP
        if not seen.take(slate):
            return Recorded.OVER_BUDGET
        seen.note(slate)
        earlier += contacts
        return Recorded.STORED

    def _taken(self, claims: Mapping[str, Claim]) -> list[Row]:
        """What is claimed of each lease; `budgets.reserved` holds it before and after."""
        wanted = Counter[tuple[str, str]]()
        for claim in claims.values():
            wanted[claim.lease_id, claim.budget_id] += claim.amount
        now = to_micros(self._system_now())
        return [
            {"tenant": self.tenant, "lease": lease_id, "budget": budget_id, "more": amount, "now": now}
            for (lease_id, budget_id), amount in sorted(wanted.items())  # one order of locks for everybody
        ]

    def _held_row(self, decision_id: str, claim: Claim) -> Row:
        return {
            "tenant_id": self.tenant,
            "decision_id": decision_id,
            "budget_id": claim.budget_id,
            "amount": claim.amount,
            "certain": claim.certain,
            "settled": 0,
            "state": OPEN,
            "expires_at": to_micros(claim.expires_at),
        }

    def _write_all(self, cursor: Any, sql: str, rows: Sequence[Row]) -> None:
        """Writes every row, or says that one could not be."""
        if len(rows) == 1:
            cursor.execute(native(self.dialect, sql), rows[0])
        elif rows:
            cursor.executemany(native(self.dialect, sql), rows)
        if rows and cursor.rowcount != len(rows):
            raise _OtherwiseError

    def _slate_rows(self, slate: Slate) -> list[Row]:
        """The rows of a slate; ValueError for one that could not be replayed or read as one answer."""
        if not slate:
            raise ValueError("slate: has no positions; an answer has at least one")
        first = slate[0].decision
        for place, entry in enumerate(slate):
            decision = entry.decision
            if decision.tenant_id != self.tenant:
                raise ValueError(
                    f"decision.tenant_id: {decision.tenant_id!r} is not this ledger's tenant {self.tenant!r}"
                )
            if decision.decision_id != position_id(first.decision_id, place):
                raise ValueError(
                    f"decision.decision_id: {decision.decision_id!r} is not position {place} of "
                    f"{first.decision_id!r}"
                )
            if place and (decision.request_id is not None or decision.pseudonym != first.pseudonym):
                raise ValueError(
                    "slate: only its first position has the request_id, and all have one pseudonym"
                )
            self._check_set(decision)
            if entry.claim is not None:
                _check_claim(entry.claim)
        return [to_row(entry.decision) for entry in slate]

    def _check_set(self, decision: Decision) -> None:
        kept = self._kept.get(decision.candidate_set)
        if kept is None:
            with self.read() as connection:
                kept = self._sets(connection, [decision.candidate_set])[decision.candidate_set]
        if kept.ids is decision.candidates:
            return
        if kept.ids != decision.candidates:
            raise ValueError(f"decision.candidates: are not those of the set {decision.candidate_set!r}")
        # One tuple stands for thousands of decisions: the next are known without looking at each id.
        kept.ids = decision.candidates


def _had_a_choice(decision: Decision) -> bool:
    """Whether anything but control could have been drawn: more than one score of four bytes."""
    return len(decision.scores) > 4


def _tighter(cap: Cap, before: int, now: int, positions: int) -> bool:
    """Whether the cap leaves fewer of `positions` open than it did."""
    left = [min(max(cap.contacts - contacts, 0), positions) for contacts in (before, now)]
    return left[1] < left[0]


def _within(cap: Cap, made: Sequence[Decision], around: Decision) -> int:
    """How many of `made`, contacts of one user, the cap counts together with `around`."""
    days = timedelta(days=cap.days)
    return sum(
        abs(decision.decided_at - around.decided_at) <= days and cap.channel in (None, decision.channel)
        for decision in made
    )


def _check_claim(claim: Claim) -> None:
    checked("claim.lease_id", claim.lease_id)
    checked("claim.budget_id", claim.budget_id)
    check_amount("claim.amount", claim.amount)
    check_amount("claim.certain", claim.certain)
    if claim.certain > claim.amount:
        raise ValueError(f"claim.certain: {claim.certain} is more than the amount {claim.amount}")
    if claim.expires_at.tzinfo is None:
        raise ValueError("claim.expires_at: has no time zone; pass one in UTC")
