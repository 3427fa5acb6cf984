"""API keys at the door of the hot path: the ledger is asked at most once a second for the same key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from qiance.ledger import Ledger, LedgerUnavailableError, Principal
from qiance.ledger.keys import hash_token

FRESH_S = 1.0  # a key that is revoked, and the first that is made, count within this time
MAX_KNOWN = 1_000


class KeyCache:
    """What the ledger said of keys; belongs to one event loop. Only hashes of tokens are kept."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._clock = ledger, clock
        self._any = (clock(), ledger.has_keys())
        self._known: dict[str, tuple[float, Principal]] = {}

    @property
    def known(self) -> bool:
        """Whether there was an active key when the ledger was last asked."""
        return self._any[1]

    async def any(self, now: bool = False) -> bool:
        """Whether there is an active key, as of `now` or of the last second."""
        if now or self._clock() - self._any[0] > FRESH_S:
            with suppress(LedgerUnavailableError):  # then what it last said counts
                self._any = (self._clock(), await asyncio.to_thread(self._ledger.has_keys))
        return self._any[1]

    async def verify(self, token: str, now: bool = False) -> Principal | None:
        """Who the token stands for, as of `now` or of the last second; None if nobody.

        Raises LedgerUnavailableError if that was never learned.
        """
        name = hash_token(token)
        known = self._known.get(name)
        if not now and known is not None and self._clock() - known[0] <= FRESH_S:
            return known[1]
        try:
            found = await asyncio.to_thread(self._ledger.verify_key, token)
        except LedgerUnavailableError:
            if known is None:
                raise
            return known[1]
        if found is None:
            self._known.pop(name, None)
            return None
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[name] = (self._clock(), found)
        return found
