"""Vectors of words are made once, and their absence is said; the embedded encoder itself where it is here."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from qiance.artifacts import encoder_weights
from qiance.artifacts.encoder_weights import embedded_is_installed
from qiance.artifacts.word_vectors import Encode, WordVectors
from qiance.domain import Action, Channel, Creative, Offer, StrategyKind
from qiance.features.columns import ActionColumns, unread
from qiance.features.projection import Projection, unpack_vector
from qiance.features.words import CREATIVE_FEATURES, TEXT_ENCODER, creative_features, creative_text


@dataclass
class Memory:
    """A store like the ledger's."""

    kept: dict[tuple[str, str], bytes] = field(default_factory=dict)

    def put_text_vectors(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        self.kept = {(encoder, text): vector for text, vector in vectors.items()} | self.kept

    def text_vectors(self, encoder: str, texts: Sequence[str]) -> dict[str, bytes]:
        return {text: self.kept[encoder, text] for text in texts if (encoder, text) in self.kept}


@dataclass
class Loaded:
    """Counts what it is asked to read."""

    read: list[str] = field(default_factory=list)

    def __call__(self) -> Encode:
        def encode(texts: Sequence[str]) -> list[bytes]:
            self.read += texts
            return [hashlib.sha256(text.encode()).digest() for text in texts]

        return encode


def creative(headline: str) -> Creative:
    return Creative(Channel.EMAIL, "en", headline, "Take {product} home", "Shop now")


def test_every_text_is_read_once_and_again_by_another_encoder() -> None:
    store, first, later = Memory(), Loaded(), Loaded()
    vectors = WordVectors(store, first, "one")
    assert set(vectors(["a", "b", "a"])) == {"a", "b"}
    assert set(WordVectors(store, later, "one")(["b", "c"])) == {"b", "c"}
    assert (first.read, later.read) == (["a", "b"], ["c"])
    changed = Loaded()
    WordVectors(store, changed, "two")(["a", "b"])
    assert changed.read == ["a", "b"]
    assert WordVectors(store, Loaded(), "two")([]) == {}


def test_without_the_encoder_what_is_kept_is_found_and_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoder_weights, "_PACKAGE", "no_such_package")
    store = Memory({(TEXT_ENCODER, "known"): b"1234"})
    vectors = WordVectors(store)
    with caplog.at_level(logging.WARNING):
        assert vectors(["known", "new"]) == vectors(["known", "newer"]) == {"known": b"1234"}
    assert "pip install" in vectors.missing
    assert len(caplog.records) == 1, "once"


@pytest.mark.skipif(not embedded_is_installed(), reason="the text encoder is not installed")
def test_words_of_equal_looks_and_other_meaning_are_told_apart() -> None:
    words = [creative("Warm winter coats for you"), creative("Fresh summer fruit is in!")]
    words = [*words, creative("Cosy winter coats for you")]
    apart = (words[0], replace_headline(words[0], "Cheap office paper for it"))
    assert creative_features(apart[0]) == creative_features(apart[1]), "the surface is the same"
    found = WordVectors(Memory())([creative_text(one) for one in (*words, apart[1])])
    coats, fruit, cosy, paper = (unpack_vector(found[creative_text(one)]) for one in (*words, apart[1]))
    assert coats @ cosy > max(coats @ fruit, coats @ paper) + 0.1
    assert np.linalg.norm(coats) == pytest.approx(1.0, abs=1e-5)
    projection = Projection.fit(np.array(list(found.values()), dtype=object), 8)
    pair = np.empty(2, dtype=object)
    pair[:] = [found[creative_text(one)] for one in apart]
    numbers = projection(pair)
    assert np.abs(numbers[0] - numbers[1]).max() > 0.5


def replace_headline(one: Creative, headline: str) -> Creative:
    return Creative(one.channel, one.language, headline, one.body, one.call_to_action, one.source)


def test_slots_are_read_by_their_names_and_actions_without_words_have_no_vector() -> None:
    text = creative_text(creative("New: {product}"))
    assert text == "New: product Take product home Shop now"
    shown, other, silent = (
        Action(f"a{n}", "s", StrategyKind.AD, None, Offer(), words, Channel.EMAIL)
        for n, words in enumerate((creative("New: {product}"), creative("Old"), None))
    )
    columns = ActionColumns.build([shown, other, silent], {}, [], {text: b"1234"})
    assert columns.text.tolist() == [b"1234", None, None]
    assert unread([shown, other, silent], {text: b"1234"}).tolist() == [False, True, False]
    assert set(CREATIVE_FEATURES) <= set(columns.columns())
