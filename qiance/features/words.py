"""What is seen of a creative: cheap, deterministic numbers, and the text that its vector is made of.

The market sees the numbers, the effect model both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qiance.domain import Creative
from qiance.features.embedding_spec import EMBEDDED_FINGERPRINT

# Text → its packed vector, without those that have none; and what finds them.
Vectors = Mapping[str, bytes]
VectorsOf = Callable[[Sequence[str]], Vectors]
# What makes the vectors of texts: the weights, and how a creative becomes one text. Raise the number when
# `creative_text` changes: vectors of two encoders are never mixed.
TEXT_ENCODER = f"{EMBEDDED_FINGERPRINT[:12]}-1"
TEXT_VECTOR = f"text_vector_{TEXT_ENCODER}"

CREATIVE_FEATURES = (
    "headline_length",
    "body_length",
    "has_question",
    "has_discount_slot",
    "mentions_product",
    "exclamations",
    "is_llm",
    "language_zh",
)


def creative_features(creative: Creative) -> dict[str, float]:
    """Features of the unbound words: lengths in characters, flags 0 or 1, count of exclamation marks."""
    words = f"{creative.headline} {creative.body} {creative.call_to_action}"
    return {
        "headline_length": float(len(creative.headline)),
        "body_length": float(len(creative.body)),
        "has_question": float("?" in words or "？" in words),
        "has_discount_slot": float("{discount}" in words),
        "mentions_product": float("{product}" in words),
        "exclamations": float(words.count("!") + words.count("！")),
        "is_llm": float(creative.source == "llm"),
        "language_zh": float(creative.language.startswith("zh")),
    }


def creative_text(creative: Creative) -> str:
    """The unbound words as one text; slots are read as their names."""
    parts = (creative.headline, creative.body, creative.call_to_action)
    return " ".join(part for part in parts if part).replace("{", "").replace("}", "")


def no_vectors(_wanted: object) -> Vectors:
    """No text has one."""
    return {}
