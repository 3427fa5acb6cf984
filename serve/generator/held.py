"""A brief while one worker has it: the term is renewed from a thread, and its loss is seen."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from qiance.domain import BriefState
from qiance.ledger import Ledger, LedgerUnavailableError

logger = logging.getLogger(__name__)
TERM_S = 20.0  # after which the brief of a worker that ended is taken up by another
RENEWALS = 5  # in a term, so that a ledger that is down for a moment costs no brief


class BriefLostError(RuntimeError):
    """The brief was cancelled, or taken by another after a pause longer than the term."""


class HeldBrief:
    """Keeps a brief that `Ledger.take_brief` gave; use as a context manager."""

    def __init__(self, ledger: Ledger, brief_id: str, holder: str, term_s: float = TERM_S) -> None:
        self._ledger, self._brief_id, self._holder, self._term_s = ledger, brief_id, holder, term_s
        self._progress, self._message = 0.0, "begun"
        self._lost, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, name="qiance-brief", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def is_lost(self) -> bool:
        """Whether nobody wants what is being made."""
        return self._lost.is_set()

    def tell(self, progress: float, message: str) -> None:
        """How far the work is; BriefLostError where it is of no use any more."""
        self._progress, self._message = progress, message
        self._keep()
        if self.is_lost:
            raise BriefLostError(f"brief {self._brief_id} is not held any more")

    def end(self, state: BriefState, message: str) -> None:
        """The end of the work."""
        self._over.set()
        self._ledger.end_brief(self._brief_id, self._holder, state, message)

    def _renew(self) -> None:
        while not self._over.wait(self._term_s / RENEWALS) and not self.is_lost:
            try:
                self._keep()
            except LedgerUnavailableError as error:
                logger.warning("the term of brief %s is not renewed: %s", self._brief_id, error)

    def _keep(self) -> None:
        held = self._ledger.keep_brief(
            self._brief_id, self._holder, self._progress, self._message, self._term_s
        )
        if not held and not self._over.is_set():
            self._lost.set()
