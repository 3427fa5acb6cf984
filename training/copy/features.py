"""What a text looks like, in numbers that a person can read: length, punctuation, whom it speaks to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[\w']+")
_VOICES = {
    "says_you": {"you", "your", "you're", "you'll", "you've"},
    "says_i": {"i", "i'm", "my", "me", "i've"},
    "says_we": {"we", "our", "us", "we're"},
    "says_they": {"he", "she", "they", "his", "her", "their", "him", "them"},
    "says_this": {"this", "these", "here's", "here"},
    "asks_why": {"why"},
    "asks_how": {"how"},
    "asks_what": {"what"},
    "denies": {"not", "no", "never", "nothing", "without"},
}
_SHAPES: dict[str, Callable[[str], float]] = {
    "characters_log": lambda text: float(np.log1p(len(text))),
    "characters": lambda text: len(text) / 100,
    "question_mark": lambda text: float("?" in text),
    "exclamation_mark": lambda text: float("!" in text),
    "sentences": lambda text: float(len(re.findall(r"[.?!。？！]+(?:\s|$)", text))),
    "commas": lambda text: float(len(re.findall(r"[,，、]", text))),
    "ellipsis": lambda text: float("..." in text or "…" in text),
    "colon": lambda text: float(":" in text or "：" in text),
    "quotes": lambda text: float(bool(re.search(r"[\"“”「」]|(?:^|\s)'", text))),
    "parenthesis": lambda text: float("(" in text or "（" in text),
    "number": lambda text: float(bool(re.search(r"\d", text))),
    "starts_with_number": lambda text: float(text[:1].isdigit()),
}


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else 0.0


_LETTERS: dict[str, Callable[[Sequence[str]], float]] = {
    "words": lambda words: len(words) / 10,
    "word_length": lambda words: _mean(len(word) for word in words),
    "capitalised": lambda words: _mean(word[:1].isupper() for word in words),
    "shouted": lambda words: float(sum(word.isupper() and len(word) > 1 for word in words)),
}
NAMES = (*_SHAPES, *_LETTERS, *_VOICES)


def features_of(texts: Sequence[str]) -> NDArray[np.float64]:
    """`[n, len(NAMES)]`."""
    return np.array([_row(text) for text in texts], dtype=np.float64).reshape(len(texts), len(NAMES))


def _row(text: str) -> list[float]:
    words = _WORD.findall(text.replace("’", "'"))
    spoken = {word.lower() for word in words}
    shapes = [measure(text) for measure in _SHAPES.values()]
    letters = [measure(words) for measure in _LETTERS.values()]
    return shapes + letters + [float(bool(spoken & voices)) for voices in _VOICES.values()]
