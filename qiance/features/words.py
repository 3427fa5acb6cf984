"""What the effect model and the market see of a creative: cheap, deterministic numbers."""

from __future__ import annotations

from qiance.domain import Creative

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
