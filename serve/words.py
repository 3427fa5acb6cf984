"""Vectors of the words that are served, made in the background: a decision only reads them."""

from __future__ import annotations

from qiance.artifacts.word_vectors import WordVectors
from qiance.domain import CreativeState
from qiance.features.words import creative_text
from qiance.ledger import Ledger


class WordKeeper:
    """Has approved words read once: those written by hand, of before vectors, or under another encoder."""

    def __init__(self, ledger: Ledger, vectors: WordVectors) -> None:
        self._ledger, self._vectors = ledger, vectors
        self._seen: int | None = None

    def work(self) -> None:
        """Read what came since the last time; nothing is asked of the bank while no words changed."""
        serial = self._ledger.versions().strategies_serial
        if serial == self._seen:
            return
        approved = self._ledger.creatives(CreativeState.APPROVED)
        self._vectors(creative_text(entry.subject.creative) for entry in approved)
        self._seen = serial
