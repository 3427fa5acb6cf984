"""Layers of a text encoder for texts: the embedded MiniLM by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.encoder_weights import EMBEDDED_DIMENSION, Weights, resolve
from qiance.artifacts.encoders import Encoder, open_text_encoder
from qiance.features.embedding_spec import EMBEDDED
from training.copy.model import spec_of

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class TextEncoder:
    """An encoder at hand. width: d of a layer; fingerprint: of its weights; model: as it was asked for."""

    encoder: Encoder
    width: int
    fingerprint: str
    model: str

    def layers(self, texts: Sequence[str], tell: Tell | None = None) -> NDArray[np.float32]:
        """`[n, (L+1)·width]`: the mean token state after the embedding and after each layer.

        ValueError where there is no text that can be read.
        """
        found = self.encoder.encode(list(texts), tell, layers=True).layers
        if found is None:
            raise ValueError(f"texts: none of {len(texts)} can be read; pass at least one that is not empty")
        return found


def load_text_encoder(model: str = EMBEDDED) -> TextEncoder:
    """`embedded`, a folder or a Hugging Face id; ModelUnavailableError says how to get it."""
    weights = resolve(model)
    width = EMBEDDED_DIMENSION if model == EMBEDDED else _width(weights)
    return TextEncoder(open_text_encoder(spec_of(model, width), weights), width, weights.fingerprint, model)


def _width(weights: Weights) -> int:
    from transformers import AutoConfig

    return int(weights.load(AutoConfig.from_pretrained).hidden_size)
