"""Vectors of words, by their text and the encoder that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from sqlalchemy import select

from qiance.features.words import TEXT_ENCODER, creative_text
from qiance.ledger.candidates import CandidateSets
from qiance.ledger.database import checked, chunks, inserted
from qiance.ledger.schema import ENCODER_LENGTH, text_vectors
from qiance.ledger.versions import VersionRow


class TextVectors(VersionRow, CandidateSets):
    """Kept beside the creatives: a decision never waits for an encoder, and a replay finds what was read."""

    def candidate_vectors(self, set_id: str) -> dict[str, bytes]:
        """Text → packed vector as decisions over this set read them, if by the encoder of now.

        What was not there then is not given, even if it is by now: else a replay would come out otherwise.
        ValueError if the set was never put.
        """
        read_by = self.candidates_read_by(set_id)
        texts = {
            creative_text(action.creative)
            for action in self.candidates(set_id)
            if action.creative is not None and read_by.get(action.action_id) == TEXT_ENCODER
        }
        return self.text_vectors(TEXT_ENCODER, sorted(texts)) if texts else {}

    def put_text_vectors(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        """Keeps packed vectors by text; those that are there stay. What serves reads its words again."""
        checked("encoder", encoder, ENCODER_LENGTH)
        now = self._now()
        with self.write() as connection:
            new = [
                inserted(
                    connection,
                    text_vectors,
                    {
                        "tenant_id": self.tenant,
                        "encoder": encoder,
                        "digest": _digest(text),
                        "vector": vectors[text],
                        "created_at": now,
                    },
                )
                for text in sorted(vectors)
            ]
            if any(new):
                self._bump(connection)

    def text_vectors(self, encoder: str, texts: Sequence[str]) -> dict[str, bytes]:
        """Text → its packed vector, for those that this very encoder has read."""
        by_digest = {_digest(text): text for text in texts}
        found: dict[str, bytes] = {}
        with self.read() as connection:
            for part in chunks(sorted(by_digest)):
                rows = connection.execute(
                    select(text_vectors.c.digest, text_vectors.c.vector).where(
                        text_vectors.c.tenant_id == self.tenant,
                        text_vectors.c.encoder == encoder,
                        text_vectors.c.digest.in_(part),
                    )
                )
                found |= {by_digest[row.digest]: bytes(row.vector) for row in rows}
        return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
