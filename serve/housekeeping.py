"""What is done aside of requests, so that none of them waits for it."""

from __future__ import annotations

import logging
import threading

from qiance.ledger import Ledger, LedgerUnavailableError

EVERY_S = 0.5
logger = logging.getLogger(__name__)


class Checkpointer:
    """Moves the log of an SQLite ledger into its file, or a commit would do that now and then, and wait."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._stop = ledger, threading.Event()
        self._thread = threading.Thread(target=self._run, name="qiance-checkpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self._ledger.checkpoint()
            except LedgerUnavailableError:
                continue  # told by whoever needs an answer
            except Exception as error:  # a thread that dies would leave it to the commits, unseen
                logger.error("the ledger's log stays long: %r", error)
