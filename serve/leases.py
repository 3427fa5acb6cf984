"""What one replica may spend: slices of each budget, leased from the ledger ahead of need.

A decision takes money from a slice in memory, so that replicas do not queue for one row of the ledger. The
slice was set aside when it was leased, so a cap is never passed; a dead replica's slice goes back after its
term. The commit of a decision checks its lease once more.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from qiance.ledger import Claim, Lease, Ledger, LedgerUnavailableError

logger = logging.getLogger(__name__)
SHARE = 8  # a slice is at most this part of what the budget has left
DRY_S = 0.25  # how long a budget that had nothing left is not asked again
DOWN_S = 1.0  # how long a ledger that could not end a slice is not asked to end another: each may wait
RECLAIM_S = 1.0  # how often at most what dead replicas had is looked for, where a budget has nothing left


@dataclass(slots=True, eq=False)
class _Slice:
    """A lease in use. left: minor units not taken. pending: takes whose commit is under way.

    renewed_at: when its term began, by the book's clock.
    """

    lease: Lease
    left: int
    renewed_at: float
    pending: int = 0
    used_at: float = 0.0


class LeaseBook:
    """The slices of one replica; safe to use from several threads.

    holder: names the replica in the ledger. term_s: a slice that is not renewed for so long goes back.
    """

    def __init__(
        self, ledger: Ledger, holder: str, term_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger, self._holder, self._term_s, self._clock = ledger, holder, term_s, clock
        self._current: dict[str, _Slice] = {}
        self._all: dict[str, _Slice] = {}
        self._dry_until: dict[str, float] = {}
        self._reclaimed_at = self._down_until = -math.inf
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qiance-leases", daemon=True)
        self._thread.start()

    def alone(self) -> AbstractContextManager[bool]:
        """A context in which no other thread of this replica takes money."""
        return self._lock

    def ensure(self, budget_id: str, amount: int) -> int:
        """Minor units that one action may cost now; a new slice is leased when `amount` is not there.

        0 where the budget is used up or was never opened. Raises LedgerUnavailableError.
        """
        with self._lock:
            current = self._current.get(budget_id)
            left = current.left if current else 0
            if left >= amount or self._dry_until.get(budget_id, 0.0) > self._clock():
                return left
            if current:
                self._retire(current)  # its rest may be what a new slice of `amount` lacks
            fresh = self._lease(budget_id, amount)
            if fresh is None or fresh.left < amount:
                self._dry_until[budget_id] = self._clock() + DRY_S
            if fresh is None:
                return 0
            self._current[budget_id] = self._all[fresh.lease.lease_id] = fresh
            return fresh.left

    def take(self, budget_id: str, amount: int, certain: int, expires_at: datetime) -> Claim | None:
        """`amount` out of the slice, None where it holds less; follow with `done` or `give_back`."""
        with self._lock:
            current = self._current.get(budget_id)
            if current is None or current.left < amount:
                return None
            current.left -= amount
            current.pending += 1
            current.used_at = self._clock()
            return Claim(current.lease.lease_id, budget_id, amount, certain, expires_at)

    def done(self, claim: Claim) -> None:
        """The decision that took `claim` is logged."""
        with self._lock:
            self._settle(claim, 0)

    def give_back(self, claim: Claim) -> None:
        """The decision that took `claim` was not logged."""
        with self._lock:
            self._settle(claim, claim.amount)

    def lost(self, lease_id: str) -> None:
        """The ledger no longer knows the lease: forget it, whatever was left of it."""
        with self._lock:
            slice_ = self._all.pop(lease_id, None)
            if slice_ and self._current.get(slice_.lease.budget_id) is slice_:
                del self._current[slice_.lease.budget_id]

    def renew(self) -> None:
        """Extend slices in use, give back those idle for a term; raises LedgerUnavailableError.

        A slice that could not be extended for a term is forgotten before somebody draws by it: the commit
        would refuse only who took of it, and too many who drew control would be left in the log.
        """
        with self._lock:
            idle = [s for s in self._all.values() if not s.pending and self._is_idle(s)]
            for slice_ in idle:
                self._retire(slice_)
            held = dict(self._all)
        asked_at = self._clock()
        try:
            alive = self._ledger.renew(held, self._term_s) if held else set()
        except LedgerUnavailableError:
            alive = {name for name, slice_ in held.items() if asked_at - slice_.renewed_at < self._term_s}
            self._forget(held.keys() - alive)
            raise
        for lease_id in alive:
            held[lease_id].renewed_at = asked_at
        self._forget(held.keys() - alive)
        self._ledger.reclaim_leases()

    def close(self) -> None:
        """Stop renewing, and give everything back that is not taken."""
        self._stop.set()
        self._thread.join(timeout=5.0)
        with self._lock:
            for slice_ in list(self._all.values()):
                self._end(slice_)
            self._current.clear()

    def _forget(self, lease_ids: Iterable[str]) -> None:
        for lease_id in lease_ids:
            logger.warning("a slice of a budget was not renewed in time; it went back")
            self.lost(lease_id)

    def _is_idle(self, slice_: _Slice) -> bool:
        return self._clock() - slice_.used_at > self._term_s

    def _lease(self, budget_id: str, amount: int) -> _Slice | None:
        """A part of what is left, or at least `amount`, or all there is; None if that is nothing."""
        try:
            left = self._ledger.budget(budget_id).left
            if left < amount and self._reclaims():
                left = self._ledger.budget(budget_id).left
        except ValueError as error:  # never opened: its strategies cannot spend
            logger.error("%s", error)
            return None
        began_at = self._clock()
        for size in dict.fromkeys((max(amount, left // SHARE), amount, min(amount, left))):
            if size > 0 and (lease := self._ledger.lease(budget_id, size, self._holder, self._term_s)):
                return _Slice(lease, lease.amount, renewed_at=began_at, used_at=self._clock())
        return None

    def _reclaims(self) -> bool:
        """Whether replicas that are dead for a term left something, which is back in its budgets now."""
        if self._clock() - self._reclaimed_at < RECLAIM_S:
            return False
        self._reclaimed_at = self._clock()
        return self._ledger.reclaim_leases() > 0

    def _retire(self, slice_: _Slice) -> None:
        """Take nothing more from it; end it as soon as no commit hangs on it."""
        if self._current.get(slice_.lease.budget_id) is slice_:
            del self._current[slice_.lease.budget_id]
        if slice_.pending == 0:
            self._end(slice_)

    def _end(self, slice_: _Slice) -> None:
        """Give the rest back. Never raises: whoever settles a claim has an answer to give, or more claims."""
        self._all.pop(slice_.lease.lease_id, None)
        if self._clock() < self._down_until:
            return  # it is renewed no more, so its term gives it back
        try:
            if self._ledger.end_lease(slice_.lease.lease_id):
                self._dry_until.pop(slice_.lease.budget_id, None)  # there is something to lease again
        except LedgerUnavailableError as error:
            self._down_until = self._clock() + DOWN_S
            logger.warning("a slice stays leased until its term ends: %s", error)

    def _settle(self, claim: Claim, returned: int) -> None:
        slice_ = self._all.get(claim.lease_id)
        if slice_ is None:
            return
        slice_.pending -= 1
        slice_.left += returned
        if slice_.pending == 0 and self._current.get(claim.budget_id) is not slice_:
            self._end(slice_)

    def _run(self) -> None:
        while not self._stop.wait(self._term_s / 3.0):
            try:
                self.renew()
            except LedgerUnavailableError as error:
                logger.warning("slices of budgets are not renewed: %s", error)
            except Exception as error:  # a thread that dies would let every slice run out, unseen
                logger.error("slices of budgets are not renewed: %r", error)
