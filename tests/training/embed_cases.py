"""Tiny models with random weights, saved as real ones are, and tables to embed with them."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qiance.features.embedding_spec import EmbeddingSpec

SIZE = 16
WORDS = ["red", "blue", "shoe", "shirt", "good", "bad", "soft", "torn", "."]


def text_model(folder: Path) -> Path:
    """A BERT of two layers whose tokenizer knows `WORDS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=SIZE,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def image_model(folder: Path) -> Path:
    """A vision transformer for 32 × 32 pixels with its processor."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=SIZE,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def audio_model(folder: Path) -> Path:
    """A wav2vec2 for 16,000 samples a second with its feature extractor."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=SIZE,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)
    return folder


def spec(model: Path, **changes: Any) -> EmbeddingSpec:
    """A declared embedding of items by the model in a folder."""
    fields: dict[str, Any] = {
        "name": "item_text",
        "entity": "item",
        "modality": "text",
        "model": str(model),
        "columns": ["title"],
        "dimension": SIZE,
        "ttl_days": 30,
    }
    return EmbeddingSpec.model_validate(fields | changes)


def png(colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def wav(hertz: float, rate: int = 16_000, width: int = 2, channels: int = 1, seconds: float = 0.1) -> bytes:
    """A tone as WAV."""
    time = np.arange(int(rate * seconds)) / rate
    tone = 0.5 * np.sin(2 * np.pi * hertz * time)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.repeat(_pcm(tone, width), channels, axis=0).tobytes())
    return buffer.getvalue()


def _pcm(tone: np.ndarray, width: int) -> np.ndarray:
    """`[n, width]` bytes, little-endian; 8 bits are unsigned."""
    whole = np.round(tone * (1 << (8 * width - 1))).astype(np.int64) + (128 if width == 1 else 0)
    return whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
