"""How the benchmark judges a tuned writer: the gain, and the judge of another family."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_model import write_tiny_model

from benchmarks.copying import tuning
from benchmarks.copying.generating import requests_of
from qiance.domain import Catalogue, Channel, Creative, Item
from qiance.strategy.content_ports import Written
from serve.generator.engine import TransformersEngine
from training.copy.headlines import CopyTests, from_frame

ITEMS = Catalogue(tuple(Item(f"i{n}", f"Tea {'abcdefgh'[n]}", "Tea", "G", "N", 500, 300) for n in range(8)))


def written(headline: str, source: str) -> Written:
    return Written(Creative(Channel.EMAIL, "en", headline, "b", "Shop now", source), (), source)


def lengths(texts: list[str]) -> np.ndarray:
    return np.array([len(text) / 10 for text in texts])


def test_the_gain_is_of_what_is_delivered() -> None:
    asked = requests_of(ITEMS, 8)
    before = [written("aaaa", "llm")] * 4 + [written("aa", "template")] * 4
    after = [written("aaaaaa", "llm")] * 4 + [written("aaaa", "llm")] * 4
    found = tuning.gain(asked, before, after, lengths, 0)
    assert found["judge_ctr_gain"] == pytest.approx(math.expm1(0.2))
    assert found["judge_ctr_low"] == pytest.approx(found["judge_ctr_high"])
    mixed = tuning.gain(asked, before, [*after[:4], *before[4:]], lengths, 0)
    assert mixed["judge_ctr_gain"] == pytest.approx(math.expm1(0.1))
    assert mixed["judge_ctr_low"] <= mixed["judge_ctr_gain"] <= mixed["judge_ctr_high"]
    assert mixed["judge_ctr_gain_by_model"] == pytest.approx(math.expm1(0.2))


def planted(tests: int) -> CopyTests:
    random = np.random.default_rng(0)
    rows = []
    for number in range(tests):
        for word, rate in (("zzzzzz", 0.04), ("aaaaaa", 0.02)):
            text = f"{word} {random.integers(100)}"
            rows.append((number, text, 5_000, random.binomial(5_000, rate)))
    return from_frame(
        pd.DataFrame(rows, columns=["test_id", "text", "impressions", "clicks"]), "planted", "f"
    )


def test_the_judge_learns_from_the_states_of_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "LAYER", 1)
    folder = write_tiny_model(tmp_path / "tiny")
    engine = TransformersEngine.load(str(folder), tmp_path, 1, "float32")
    states = tuning.states_of(engine, ["a", "longer text", "a"])
    assert np.allclose(states[0], states[2], atol=1e-5), "padding counts for nothing"
    judge = tuning.fit_decoder_judge(planted(150), engine, 0)
    high, low = judge(["zzzzzz 5", "aaaaaa 5"])
    assert high - low == pytest.approx(math.log(2), abs=0.2)
    assert tuning.accuracy(judge, planted(60)) > 0.95


def test_the_last_judge_shares_no_story_with_the_tuning() -> None:
    mine, others = tuning.split_archive(planted(50), 0)
    assert set(mine.story.tolist()).isdisjoint(others.story.tolist())
    assert mine.tests + others.tests == 50


def test_without_a_tuned_writer_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    assert tuning.load_adapter() is None
    (tmp_path / "metrics.json").write_text('{"model": null}')
    assert tuning.load_adapter() is None
