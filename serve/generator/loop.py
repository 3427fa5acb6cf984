"""The thread that works on briefs as they come."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from qiance.ledger import LedgerUnavailableError

logger = logging.getLogger(__name__)
POLL_S = 2.0  # briefs of workers that ended announce themselves to nobody
# On Linux of this thread and of those that it starts, the language model's among them: where decisions need
# the processor a brief waits for them.
NICENESS = 10


class BriefLoop:
    """Calls `work` whenever it is woken, and every few seconds; what it raises is logged."""

    def __init__(self, work: Callable[[], None], poll_s: float = POLL_S) -> None:
        self._work, self._poll_s = work, poll_s
        self._came, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="qiance-briefs", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether briefs are worked on."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """A brief came."""
        self._came.set()

    def stop(self) -> None:
        """No further brief is begun."""
        self._stopped = True
        self._came.set()

    def _run(self) -> None:
        os.nice(NICENESS)
        while not self._stopped:
            try:
                self._work()
            except LedgerUnavailableError as error:
                logger.warning("briefs wait for the ledger: %s", error)
            except Exception:  # of one brief; the next may be worked on
                logger.exception("briefs are not worked on")
            self._came.wait(self._poll_s)
            self._came.clear()
