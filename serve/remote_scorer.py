"""The predictor deployment as the engine's `Scorer`: one call per batch, from a worker thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve.scoring import ScoredBatch, ScoreRequest

# Part of what the most urgent request of a batch has left that the predictor may take; the rest is for
# drawing and the commit. But no less than what a predictor that is well needs, or one request in a hurry
# would have the whole batch decided without it.
SHARE, LEAST_S = 0.5, 0.05
# Times a vain wait that must pass before the next: of a predictor that is only too slow, a third of the
# engine's time is waited for at most.
REST = 2.0
RENEW_S = 5.0  # after which a call that was not answered is given up, and another is the sign of life
logger = logging.getLogger(__name__)


class Response(Protocol):
    """What of Ray's `DeploymentResponse` is used."""

    def result(self, *, timeout_s: float | None = None) -> Any:
        """What was answered, or raises what was raised there; TimeoutError after `timeout_s`."""
        ...

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        ...


@dataclass(frozen=True)
class _Unanswered:
    """A call that was not answered in time; others may be waited for again after `rest_until`."""

    call: Response
    since: float
    rest_until: float


class RemoteScorer:
    """Asks `handle.score`; while it does not answer, nobody waits for it. Safe to use from several threads.

    A handle waits for a dead replica's successor. So the wait is at most `timeout_s`, a part of what a
    request may take, and less where less is left. A call that was not answered in time is kept: until it is,
    or one that was sent after it, every batch is told so at once, and the ladder's next step serves.
    """

    def __init__(self, handle: Any, timeout_s: float) -> None:
        self._handle, self._timeout_s = handle, timeout_s
        self._unanswered: _Unanswered | None = None
        self._lock = threading.Lock()

    def score(self, requests: Sequence[ScoreRequest]) -> ScoredBatch:
        """See `Scorer`."""
        if self._unanswered is not None and not self._is_back(requests):
            raise TimeoutError("the predictor has not answered for some time")
        asked_at, call = time.monotonic(), self._ask(requests)
        try:
            found: ScoredBatch = call.result(timeout_s=self._patience_s(requests))
        except TimeoutError:
            now = time.monotonic()
            self._unanswered = _Unanswered(call, asked_at, now + REST * (now - asked_at))
            raise
        except Exception as error:
            raise cause_of(error) from None
        return found

    def _patience_s(self, requests: Sequence[ScoreRequest]) -> float:
        left_s = min(request.deadline for request in requests) - time.monotonic()
        return min(self._timeout_s, max(SHARE * left_s, LEAST_S))

    def _is_back(self, requests: Sequence[ScoreRequest]) -> bool:
        """Whether the call under way was answered; where it never will be, `requests` is another."""
        with self._lock:
            now, silent = time.monotonic(), self._unanswered
            if silent is None:
                return True
            if now < silent.rest_until:
                return False
            try:
                silent.call.result(timeout_s=0.0)
            except TimeoutError:
                if now < silent.since + RENEW_S:
                    return False
                silent.call.cancel()
            except Exception as error:  # its replica ended, or had nothing to score by: the next may do
                logger.warning("the predictor answers late, and in vain: %r", error)
            else:
                self._unanswered = None
                return True
            self._unanswered = _Unanswered(self._ask(requests), now, now)
            return False

    def _ask(self, requests: Sequence[ScoreRequest]) -> Response:
        call: Response = self._handle.score.remote(list(requests))
        return call


def cause_of(error: Exception) -> Exception:
    """What was raised in the other deployment: Ray's own error repeats its whole traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
