"""The encoder that an embedding asks for: of texts, images or audio."""

from __future__ import annotations

from qiance.artifacts.encoder_weights import Weights
from qiance.artifacts.encoders import Encoder, load_with, open_text_encoder
from qiance.features.embedding_spec import EmbeddingSpec


def load_encoder(spec: EmbeddingSpec, weights: Weights, device: str = "cpu") -> Encoder:
    """The encoder that `spec` asks for; ModelUnavailableError or ValueError says what is wrong."""
    if spec.modality == "text":
        return open_text_encoder(spec, weights, device)
    from training.embed.media import media_reader

    return load_with(media_reader(spec.modality, weights), spec, weights, device)
