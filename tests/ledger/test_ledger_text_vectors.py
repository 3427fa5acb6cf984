"""Vectors of words in the ledger, on both databases: by text and encoder, never mixed."""

from __future__ import annotations

from dataclasses import replace

from ledger_cases import KEY, actions

from qiance.domain import Channel, Creative
from qiance.features.words import TEXT_ENCODER, creative_text
from qiance.ledger import Ledger

WORDS = Creative(Channel.EMAIL, "en", "New: {product}", "Take it home", "Shop")


def test_vectors_come_back_by_the_encoder_that_made_them(ledger: Ledger, url: str) -> None:
    before = ledger.versions().serial
    ledger.put_text_vectors("one", {"a": b"\x00\x01", "汉字": b"\xff" * 1_536})
    serial = ledger.versions().serial
    assert serial > before, "what serves reads its words again"
    ledger.put_text_vectors("one", {"a": b"later"})
    assert ledger.versions().serial == serial, "nothing new came"
    ledger.put_text_vectors("two", {"a": b"\x02"})
    other = Ledger.open(url, key=KEY)
    assert other.text_vectors("one", ["a", "汉字", "b"]) == {"a": b"\x00\x01", "汉字": b"\xff" * 1_536}
    assert other.text_vectors("two", ["a", "汉字"]) == {"a": b"\x02"}
    assert other.text_vectors("three", ["a"]) == other.text_vectors("one", []) == {}
    other.close()


def test_a_set_keeps_which_words_were_read(ledger: Ledger, url: str) -> None:
    first, second = (
        replace(action, creative=replace(WORDS, headline=f"{n}: {{product}}"))
        for n, action in enumerate(actions(3)[1:])
    )
    offered = (actions(1)[0], first, second)
    text, other = (creative_text(action.creative) for action in (first, second) if action.creative)
    blind = ledger.put_candidates(offered)
    ledger.put_text_vectors(TEXT_ENCODER, {text: b"1234", other: b"5678"})
    seen = ledger.put_candidates(offered, {first.action_id: TEXT_ENCODER})
    older = ledger.put_candidates(offered, {first.action_id: "another"})
    assert len({blind, seen, older}) == 3
    again = Ledger.open(url, key=KEY)
    assert again.candidates(seen) == again.candidates(blind) == offered
    assert again.candidate_vectors(seen) == {text: b"1234"}, "the other one came later"
    assert again.candidate_vectors(blind) == again.candidate_vectors(older) == {}
    again.close()
