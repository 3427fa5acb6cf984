"""A writer's tuning: what is preferred, what is watched, when it stops, and that the steps really teach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_model import write_tiny_model

from qiance.artifacts.manifest import ArtifactError
from qiance.artifacts.writer import load_writer, write_writer
from qiance.data.errors import DataError
from qiance.domain import Item
from qiance.guard import Guard
from qiance.strategy.content_ports import Generated
from qiance.strategy.prompts import Prompt
from training.copy.headlines import CopyTests, from_frame
from training.writer import tune
from training.writer.drafts import Drafts, imitated, pairs_of
from training.writer.fit import _trainer, fit_adapter, imitation_rows, preference_rows
from training.writer.products import read_products, request_of
from training.writer.reward import fit_judges, split_stories
from training.writer.settings import WriterSettings
from training.writer.trees import fit_trees
from training.writer.tune import Tuning, Watched, figures_of, gain_of, reason_to_stop, split_products

NAMES = ["coffee", "milk", "bread", "butter", "cheese", "jam", "soap", "rice", "tea", "honey"]


def item(name: str) -> Item:
    return Item(f"i-{name}", name.title(), name.title(), "GROCERY", "National", 1_000, 1)


REQUESTS = [
    request_of(item(f"{name} {kind}"), "en", n)
    for n, name in enumerate(NAMES)
    for kind in ("cup", "box", "bag")
]


def drafts(passed: Sequence[bool], score: Sequence[float]) -> Drafts:
    """Answers by turns for two products."""
    size = len(passed)
    text = [f"answer {n}" for n in range(size)]
    product = np.arange(size) % 2
    prompts = [Prompt("", "p")] * size
    return Drafts(REQUESTS[:2], product, text, text, np.array(passed), np.array(score), prompts)


def test_the_best_that_passed_is_preferred_to_the_worst_and_to_one_that_failed() -> None:
    found = drafts([True, True, True, True, False, True], [0.1, 0.5, 0.3, 0.5, 9.0, 0.5])
    pairs = [(one.chosen, one.rejected) for one in pairs_of(found, penalty=1.0)]
    # The second product's answers are alike, and none of them failed: nothing is to be learned of it.
    assert pairs == [("answer 2", "answer 0"), ("answer 2", "answer 4")]
    assert found.reward(1.0).tolist() == [0.1, 0.5, 0.3, 0.5, 8.0, 0.5]
    assert pairs_of(drafts([False] * 4, [0.0] * 4), 1.0) == [], "nothing is chosen that failed"


def test_only_different_answers_that_passed_are_imitated() -> None:
    found = drafts([True, True, True, False, False, True], [0.0] * 6)
    found = replace(found, text=["a", "b", "a", "c", "d", "e"])
    assert [text for _, text in imitated(found, 2)] == ["a", "b", "e"]
    assert [text for _, text in imitated(found, 1)] == ["a", "b"]
    assert all(not prompt.turns for prompt, _ in imitated(found, 2)), "without examples"


def test_a_gain_is_per_product_and_of_what_passed() -> None:
    lengths = lambda texts: np.array([float(len(text)) for text in texts])  # noqa: E731
    before = replace(drafts([True] * 4, [0.0] * 4), headlines=["aa", "bb", "aa", "bb"])
    after = replace(drafts([True, True, False, True], [0.0] * 4), headlines=["aaaa", "bbb", "a" * 99, "bbb"])
    value, low, high = gain_of(before, after, lengths, 0)
    assert value == 1.5, "two more for the first product, one more for the second; what failed is left out"
    assert low <= value <= high
    none = drafts([False] * 4, [0.0] * 4)
    assert all(math.isnan(number) for number in gain_of(before, none, lengths, 0))


KEPT = Watched("imitation", reward=0.1, judge=0.1, pass_share=0.8, kl=0.0)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (Watched("round 1", 0.3, 0.2, 0.9, kl=3.0, gain=0.1), None),
        (Watched("round 1", 0.3, 0.2, 0.9, kl=30.0, gain=0.1), "30.0 nats away"),
        (Watched("round 1", 0.3, 0.0, 0.9, kl=3.0, gain=-0.1), "the judge saw no gain"),
        (Watched("round 1", 0.3, 0.0, 0.0, kl=3.0, gain=math.nan), "the judge saw no gain"),
        (Watched("round 1", 0.0, 0.0, 0.9, kl=3.0, gain=0.0), "brought nothing"),
    ],
)
def test_a_round_is_kept_only_where_the_judge_sees_a_gain(seen: Watched, why: str | None) -> None:
    found = reason_to_stop(seen, KEPT, 15.0)
    assert found is None if why is None else why in str(found)


class Shelf:
    """An engine that answers with a headline of its stage; of three for a product the last one fails."""

    takes_segment = False
    languages = frozenset({"en"})
    weights, location = "shelf", "nowhere"

    def __init__(self, adapter: Path | None) -> None:
        self.name = self.stage = "untuned" if adapter is None else adapter.name
        self.tuned: frozenset[str] = frozenset() if adapter is None else frozenset({"en"})

    def generate_json(self, prompts: Sequence[Prompt], *_: Any, **__: Any) -> list[Generated]:
        found = []
        for place, prompt in enumerate(prompts):
            name = prompt.user.removeprefix("Write an advertisement for ").split(":")[0]
            words = {"untuned": "A good day", "imitation": "A fine day", "round-1": "What a day"}
            headline = f"{words.get(self.stage, 'You wonder')} {'now' if place % 3 else 'today'}"
            body = f"Enjoy {name} with friends today." if place % 3 < 2 else "Enjoy 3 of them."
            data = {"body": body, "headline": headline, "call_to_action": "Shop now"}
            found.append(Generated(str(data), data, None, 20, -0.5))
        return found

    def log_likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str], **_: Any) -> list[float]:
        far = {"round-1": -18.0, "round-2": -16.0}.get(self.stage, -20.0)
        return [far + (0.0 if "groceries" in prompt.user else 1.0) for prompt in prompts]


def tuned(
    monkeypatch: pytest.MonkeyPatch, folder: Path, judge: Mapping[str, float], **settings: Any
) -> tuple[tune.Tuned, list[tuple[str, int, str | None]]]:
    """A run whose steps only note what they were given; judge: by word of a headline."""
    steps: list[tuple[str, int, str | None]] = []

    def note(rows: Any, model: str, start: Path | None, out: Path, *_: Any) -> dict[str, float]:
        steps.append((out.name, len(rows), None if start is None else start.name))
        return {"loss": 0.5}

    def score(words: Mapping[str, float]) -> Any:
        return lambda texts: np.array([sum(v for word, v in words.items() if word in text) for text in texts])

    monkeypatch.setattr(tune, "fit_adapter", note)
    reward = {"fine": 0.1, "What": 0.2, "wonder": 0.3, "today": 0.05}
    run = Tuning(
        Shelf, score(reward), score(judge), Guard.load(), folder,
        WriterSettings(samples=3, **settings), lambda _share, _text: None,
    )  # fmt: skip
    return run.run(REQUESTS), steps


def test_rounds_go_on_from_what_was_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, steps = tuned(monkeypatch, tmp_path, {"What": 0.1, "wonder": 0.2})
    assert [one.stage for one in found.history] == ["untuned", "imitation", "round 1", "round 2"]
    assert [(name, start) for name, _, start in steps] == [
        ("imitation", None), ("round-1", "imitation"), ("round-2", "round-1"),
    ]  # fmt: skip
    assert steps[0][1] == 48, "two different answers for each of the 24 products that teach"
    assert found.adapter.name == "round-2"
    assert [one.kl for one in found.history] == [None, 0.0, 2.0, 4.0]
    assert found.ended == "all rounds are over"


def test_a_reward_that_rises_alone_ends_the_tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, steps = tuned(monkeypatch, tmp_path, {"What": -0.1})
    assert len(steps) == 2
    assert found.adapter.name == "imitation"
    assert [one.kept for one in found.history] == [True, True, False]
    assert "the judge saw no gain" in found.ended


def test_a_writer_that_goes_too_far_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, _ = tuned(monkeypatch, tmp_path, {"What": 0.1, "wonder": 0.2}, most_kl=3.0)
    assert found.adapter.name == "round-1"
    assert "4.0 nats away from the imitation" in found.ended


def test_a_writer_that_fails_more_checks_is_not_kept(tmp_path: Path) -> None:
    history = [Watched("untuned", 0.1, 0.1, 0.6), Watched("imitation", 0.2, 0.2, 0.56)]
    assert tune.Tuned(tmp_path, history, "").passes
    worse = [*history, Watched("round 1", 0.3, 0.3, 0.5)]
    assert not tune.Tuned(tmp_path, worse, "").passes
    assert tune.Tuned(tmp_path, [*history, replace(worse[-1], kept=False)], "").passes


def test_without_a_preference_there_is_no_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tune, "pairs_of", lambda *_: [])
    found, steps = tuned(monkeypatch, tmp_path, {})
    assert [name for name, *_ in steps] == ["imitation"]
    assert found.ended == "before round 1 no answer was better than another"


def test_what_is_no_number_is_written_as_none() -> None:
    found = figures_of([Watched("round 1", math.nan, 0.1, 0.0, gain=math.nan)])
    assert (found[0]["reward"], found[0]["gain"], found[0]["judge"]) == (None, None, 0.1)


def test_no_product_both_teaches_and_watches() -> None:
    teach, watch = split_products(REQUESTS, 0.2, 3)
    assert len(watch) == 6
    assert {one.item.item_id for one in teach}.isdisjoint(one.item.item_id for one in watch)
    assert len(teach) + len(watch) == len(REQUESTS)
    with pytest.raises(DataError, match="are 5; a writer is tuned on at least 20"):
        split_products(REQUESTS[:5], 0.2, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 1}, "samples: 1 is below 2"),
        ({"watched": 1.0}, r"watched: 1.0 is outside \(0, 1\)"),
        ({"beta": 0.0}, "beta: 0.0 is not above 0"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WriterSettings(**changed)


def test_products_are_different_names_by_sales(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('item_id,title,n_sold\n1,"Milk, 1 gal",5\n2,"Milk, 2 gal",9\n3,Bread,7\n4,,99\n')
    found = read_products(path, "en", 10)
    assert [(one.item.item_id, one.language) for one in found] == [("2", "en"), ("3", "en")]
    assert len({(one.channel, one.offer) for one in found}) == 2
    assert len(read_products(path, "en", 1)) == 1
    with pytest.raises(DataError, match="title_zh"):
        read_products(path, "zh", 10)
    path.write_text("item_id,title\n1,\n")
    with pytest.raises(DataError, match="has no item with a name in en"):
        read_products(path, "en", 10)


def planted(tests: int = 200, seed: int = 0) -> CopyTests:
    """Texts with `secret` are clicked twice as often."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(tests):
        for arm in range(3):
            word = "secret" if arm == 0 else "plain"
            text = f"the {word} {random.choice(NAMES)} of {random.choice(NAMES)} {number % 7}"
            rows.append((number, text, 5_000, random.binomial(5_000, 0.04 if arm == 0 else 0.02)))
    return from_frame(
        pd.DataFrame(rows, columns=["test_id", "text", "impressions", "clicks"]), "planted", "f"
    )


def test_trees_learn_what_is_clicked() -> None:
    judge = fit_trees(planted(), 0.05, 0)
    secret, plain = judge(["the secret milk of tea 3", "the plain milk of tea 3"])
    assert secret - plain == pytest.approx(math.log(2), abs=0.15)


def test_no_story_is_with_both_judges() -> None:
    tests = planted(90)
    mine, other = split_stories(tests, 1 / 3, 5)
    assert set(mine.story.tolist()).isdisjoint(other.story.tolist())
    assert len(mine) + len(other) == len(tests)
    with pytest.raises(DataError, match="at least 40 are needed"):
        fit_judges(planted(60), None, 0)  # type: ignore[arg-type]


def test_an_artifact_says_what_it_was_tuned_on(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    written = write_writer(tmp_path, adapter, "tiny", frozenset({"en"}), {"a": 1}, {"reward": 0.5}, "data")
    found = load_writer(written.path)
    assert (found.base, found.languages, found.version) == ("tiny", frozenset({"en"}), written.version)
    (written.path / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(ArtifactError):
        load_writer(written.path)


SAID = [(Prompt("Be brief.", f"Say {word}."), f'{{"headline": "{word}"}}') for word in NAMES]


def margins(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean log-likelihood of what is chosen less that of what is rejected."""
    from serve.generator.likelihood import log_likelihoods

    prompts = [
        tokenizer.encode(
            tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        )
        for row in rows
    ]
    ends = [[tokenizer.encode(row[kind][0]["content"]) for row in rows] for kind in ("chosen", "rejected")]
    chosen, rejected = (log_likelihoods(model, prompts, said, lambda: False) for said in ends)
    return float(np.mean(np.subtract(chosen, rejected)))


def test_a_step_of_preference_makes_what_is_chosen_likelier(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = write_tiny_model(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    rows = [
        {"prompt": prompt.messages(), "chosen": row["chosen"], "rejected": row["rejected"]}
        for (prompt, _), row in zip(SAID, preference_rows_of(SAID), strict=True)
    ]
    before = margins(network, tokenizer, rows)
    settings = WriterSettings(preference_epochs=4, batch=5, preference_rate=5e-3, rank=4)
    config = {"rows": rows, "adapter": None, "progress": str(tmp_path / "progress"), "settings": settings}
    trainer = _trainer(network, tokenizer, config, str(tmp_path / "run"))
    trainer.train()
    assert margins(trainer.model.eval(), tokenizer, rows) > before + 1.0
    assert len((tmp_path / "progress").read_text().splitlines()) == 8


def preference_rows_of(said: Sequence[tuple[Prompt, str]]) -> list[dict[str, Any]]:
    from training.writer.drafts import Pair

    return preference_rows([Pair(prompt, text, text.upper()) for prompt, text in said])


@pytest.mark.slow
def test_the_steps_run_on_ray_train_and_the_engine_takes_what_they_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    import ray

    from qiance.artifacts.writer import WriterAdapter
    from serve.generator.carried import ModelUnavailable
    from serve.generator.engine import TransformersEngine

    folder = write_tiny_model(tmp_path / "tiny")
    settings = WriterSettings(
        imitation_epochs=6, preference_epochs=6, batch=5, imitation_rate=1e-2, preference_rate=5e-3, rank=4
    )
    told: list[float] = []
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        tell = lambda share, _text: told.append(share)  # noqa: E731
        fit_adapter(imitation_rows(SAID), str(folder), None, tmp_path / "first", settings, tell)
        rows = preference_rows_of(SAID)
        fit_adapter(rows, str(folder), tmp_path / "first", tmp_path / "second", settings, tell)
    finally:
        ray.shutdown()
    assert told, "progress is shown"
    assert 0 < min(told) <= max(told) == 1.0

    def engine(name: str | None) -> TransformersEngine:
        adapter = None if name is None else WriterAdapter(tmp_path / name, "tiny", frozenset({"en"}), name)
        return TransformersEngine.load(str(folder), tmp_path, 1, "float32", adapter)

    def likely(one: TransformersEngine, change: Any = str) -> float:
        return float(np.mean(one.log_likelihoods([p for p, _ in SAID], [change(text) for _, text in SAID])))

    untuned, first, second = engine(None), engine("first"), engine("second")
    monkeypatch.chdir(folder.parent)
    assert TransformersEngine.load("./tiny", tmp_path, 1, "float32").location == str(folder)
    assert (untuned.tuned, first.tuned, first.name) == (frozenset(), {"en"}, "tiny+first")
    assert likely(first) > likely(untuned) + 1
    gaps = [likely(one) - likely(one, str.upper) for one in (first, second)]
    assert gaps[1] > gaps[0] + 1
    other = WriterAdapter(tmp_path / "first", "another", frozenset({"en"}), "first")
    with pytest.raises(ModelUnavailable, match="was tuned on another, not on tiny"):
        TransformersEngine.load(str(folder), tmp_path, 1, "float32", other)
