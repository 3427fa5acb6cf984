"""Vectors of the words of creatives: made once by the embedded text encoder, then read from the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from qiance.artifacts.encoder_weights import EMBEDDED_DIMENSION, ModelUnavailableError, resolve
from qiance.artifacts.encoders import open_text_encoder
from qiance.features.embedding_spec import EMBEDDED, EmbeddingSpec
from qiance.features.projection import pack_vector
from qiance.features.words import TEXT_ENCODER

logger = logging.getLogger(__name__)
MAX_TOKENS = 128  # a creative has at most some sixty
Encode = Callable[[Sequence[str]], Sequence[bytes]]


class VectorStore(Protocol):
    """Where vectors are kept; the ledger."""

    def put_text_vectors(self, encoder: str, vectors: Mapping[str, bytes]) -> None: ...

    def text_vectors(self, encoder: str, texts: Sequence[str]) -> dict[str, bytes]: ...


def load_encode() -> Encode:
    """The embedded encoder; ModelUnavailableError where its package is missing or damaged."""
    spec = EmbeddingSpec(
        name="creative_text",
        entity="item",
        modality="text",
        model=EMBEDDED,
        columns=("text",),
        dimension=EMBEDDED_DIMENSION,
        max_tokens=MAX_TOKENS,
        ttl_days=1,
    )
    encoder = open_text_encoder(spec, resolve(EMBEDDED))

    def encode(texts: Sequence[str]) -> Sequence[bytes]:
        return [pack_vector(vector) for vector in encoder.encode(list(texts)).vectors]

    return encode


class WordVectors:
    """Finds vectors of texts, and has those made that are not kept yet: seconds, so never during a decision.

    load: loads the encoder, when it is first needed; encoder: the name under which its vectors are kept.
    Use it from one thread.
    """

    def __init__(
        self, store: VectorStore, load: Callable[[], Encode] = load_encode, encoder: str = TEXT_ENCODER
    ) -> None:
        self._store, self._load, self._encoder = store, load, encoder
        self._encode: Encode | None = None
        self.missing = ""  # why there is no encoder, once it was needed

    def __call__(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Text → packed vector; without an encoder only of those that are kept."""
        wanted = sorted(set(texts))
        found = self._store.text_vectors(self._encoder, wanted)
        new = [text for text in wanted if text not in found]
        encode = self._loaded() if new else None
        if encode is not None:
            made = dict(zip(new, encode(new), strict=True))
            self._store.put_text_vectors(self._encoder, made)
            found |= made
        return found

    def _loaded(self) -> Encode | None:
        if self._encode is None and not self.missing:
            try:
                self._encode = self._load()
            except ModelUnavailableError as error:
                self.missing = str(error)
                logger.warning("the effect model reads words by their surface only: %s", error)
        return self._encode
