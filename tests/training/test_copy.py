"""The reward model of copy: what is read and paired, no story on both sides, planted effects are found."""

from __future__ import annotations

import json
from pathlib import Path

import embed_cases as cases
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qiance.artifacts.manifest import ArtifactError
from qiance.cli.main import app
from qiance.data.errors import DataError
from training.copy.calibration import Calibration, fit_calibration
from training.copy.features import NAMES, features_of
from training.copy.fit import CopySettings, FittedCopy, fit_copy
from training.copy.headlines import (
    UPWORTHY,
    CopyTests,
    folds_of,
    from_frame,
    pairs_of,
    read_tests,
    split_by_story,
)
from training.copy.judge import judge
from training.copy.model import load_copy, write_copy
from training.copy.ridge import Within, fit_views

WORDS = [word for word in cases.WORDS if word.isalpha()]
LIFT = {"good": 0.5, "bad": -0.5}
RUNNER = CliRunner()


def planted(tests: int = 160, seed: int = 0, shown: int = 4_000) -> pd.DataFrame:
    """Four texts a test; `good` and `bad` change the click rate, and each test has a level of its own."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(tests):
        level = rng.normal(-4.0, 0.7)
        for _ in range(4):
            words = [*rng.choice(WORDS, 5), f"w{rng.integers(0, 40)}"]
            effect = sum(LIFT.get(word, 0.0) for word in set(words))
            rate = np.exp(level + effect + rng.normal(0, 0.1))
            row = {"test_id": f"t{number}", "text": " ".join(words), "impressions": shown, "at": number}
            rows.append({**row, "clicks": int(rng.binomial(shown, min(rate, 1.0)))})
    return pd.DataFrame(rows)


def states(texts: np.ndarray) -> np.ndarray:
    """Two layers of 4 numbers: the second knows of `good` and `bad`, the first of nothing."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(len(texts), 8)).astype(np.float32)
    noise[:, 4] = [("good" in text.split()) - 1.0 * ("bad" in text.split()) for text in texts]
    return noise


@pytest.fixture(scope="module")
def tests() -> CopyTests:
    return from_frame(planted(), "planted", "0")


@pytest.fixture(scope="module")
def fitted(tests: CopyTests) -> FittedCopy:
    rows, _ = split_by_story(tests, 0.3, 0)
    return fit_copy(
        tests.take(rows), states(tests.texts)[rows], 4, ("weights", "name"), CopySettings(folds=3)
    )


def small(**columns: list) -> pd.DataFrame:
    given = {"test_id": ["a", "a"], "text": ["x", "y"], "impressions": [10, 10], "clicks": [1, 2]}
    return pd.DataFrame({**given, **columns})


def test_texts_of_a_test_are_pooled_and_compared_where_all_else_is_equal() -> None:
    frame = small(
        test_id=["a"] * 5,
        text=["x", "y", " x ", "z", "z"],
        impressions=[10, 20, 30, 5, 5],
        clicks=[1, 2, 3, 1, 1],
    ).assign(shown_with=["p", "p", "p", "q", "q"])
    found = from_frame(frame, "here", "0")
    assert list(found.texts) == ["x", "y"]
    assert list(found.impressions) == [40, 20]
    assert list(found.clicks) == [4, 2]
    assert found.dropped == {"nothing to compare with": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clicks": [1, 11]}, "row 2 has more clicks than impressions"),
        ({"clicks": [1, -1]}, "row 2 has clicks '-1'; write a whole number"),
        ({"impressions": [10, 2.5]}, "row 2 has impressions '2.5'"),
        ({"impressions": ["ten", 10]}, "row 1 has impressions 'ten'"),
        ({"text": ["x", "x"]}, "no test that compares two texts"),
        ({"text": ["x", None]}, "no test that compares two texts"),
        ({"test_id": ["a", "b"]}, "no test that compares two texts"),
        ({"at": ["monday", "tuesday"]}, "column 'at' is no time"),
        ({"at": ["2026-01-01", None]}, "row 2 has no 'at'"),
    ],
)
def test_what_cannot_be_used_is_named(columns: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_frame(small(**columns), "here", "0")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tests.csv"
    small().rename(columns={"clicks": "klicks"}).to_csv(path, index=False)
    with pytest.raises(
        DataError, match=r"no column 'clicks' \(found: 'test_id', 'text', 'impressions', 'klicks'\)"
    ):
        read_tests(path)
    with pytest.raises(DataError, match="does not exist"):
        read_tests(tmp_path / "none.csv")


def test_the_archive_is_known_by_its_columns_and_its_bad_weeks_are_dropped(tmp_path: Path) -> None:
    frame = pd.concat([small(), small(test_id=["b", "b"])]).assign(
        at=[201301, 201301, 201330, 201330], shown_with=["i", "i", "j", "j"], winner=[True, False] * 2
    )
    names = {ours: theirs for ours, theirs in UPWORTHY.items() if ours != "story"}
    path = tmp_path / "archive.parquet"
    frame.rename(columns=names).to_parquet(path)
    found = read_tests(path)
    assert found.tests == 1
    assert found.dropped == {"probably not randomised": 2}


def test_csv_and_json_lines_give_the_same(tmp_path: Path) -> None:
    frame = planted(12)
    frame.to_csv(tmp_path / "tests.csv", index=False)
    frame.to_json(tmp_path / "tests.jsonl", orient="records", lines=True)
    first, second = read_tests(tmp_path / "tests.csv"), read_tests(tmp_path / "tests.jsonl")
    for name in ("texts", "group", "clicks", "at"):
        assert list(getattr(first, name)) == list(getattr(second, name))


def test_pairs_are_within_a_group_and_ties_have_no_winner() -> None:
    frame = small(
        test_id=["a"] * 3 + ["b"] * 2, text=list("xyzuv"), impressions=[100] * 5, clicks=[1, 5, 5, 0, 9]
    )
    found = from_frame(frame, "here", "0")
    pairs = pairs_of(found)
    names = {
        (found.texts[i], found.texts[j], bool(w))
        for i, j, w in zip(pairs.first, pairs.second, pairs.won, strict=True)
    }
    assert names == {("x", "y", False), ("x", "z", False), ("u", "v", False)}
    assert abs(pairs.z[-1]) > 1.96 > abs(pairs.z[0])


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_story_is_on_both_sides(seed: int, timed: bool) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    frame = pd.DataFrame(
        {
            "test_id": [f"t{k // 2}" for k in range(n)],
            "text": [f"Text {k % 2} {rng.integers(0, 40)}" for k in range(n)],
            "impressions": 100,
            "clicks": rng.integers(0, 50, n),
            "story": [rng.choice(["", f"s{k // 8}"]) for k in range(n)],
        }
    )
    if timed:
        frame["at"] = np.repeat(rng.integers(0, 20, n // 2), 2)
    frame.loc[1::2, "text"] = frame.loc[1::2, "text"].str.upper()
    found = from_frame(frame, "here", "0")
    try:
        fit, held = split_by_story(found, 0.3, seed)
    except DataError:
        return
    assert not {text.lower() for text in found.texts[fit]} & {text.lower() for text in found.texts[held]}
    assert not set(found.test[fit]) & set(found.test[held])
    assert not timed or len(set(found.at)) < 2 or found.at[fit].max() < found.at[held].min()
    fold = folds_of(found, 4, seed)
    assert all(len(set(fold[found.story == story])) == 1 for story in set(found.story))


def test_deviations_from_a_group_are_a_projection() -> None:
    rng = np.random.default_rng(0)
    group, weight, values = rng.integers(0, 6, 40), rng.random(40) + 0.1, rng.normal(size=40)
    within = Within(group, weight)
    once = within.scaled(values)
    assert np.allclose(within(once), once)
    assert np.allclose(within.scaled(values + np.arange(6)[group]), once)


def test_the_weights_are_those_of_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    n, group = 50, np.arange(50) // 5
    x, z = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
    target, variance = rng.normal(size=n), rng.random(n) + 0.5
    found = fit_views({"x": x, "z": z}, {"x": 0.7, "z": 1.3}, target, group, variance)
    design = np.hstack([0.7 * x, 1.3 * z, np.eye(10)[group]])
    penalty = np.diag([1.0] * 5 + [0.0] * 10)
    exact = np.linalg.solve(design.T @ (design / variance[:, None]) + penalty, design.T @ (target / variance))
    assert np.allclose(found["x"], 0.7 * exact[:3], atol=1e-4)
    assert np.allclose(found["z"], 1.3 * exact[3:5], atol=1e-4)
    assert not fit_views({"x": x, "z": z}, {"x": 0.7, "z": 0.0}, target, group, variance)["z"].any()


def test_calibration_finds_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    predicted, variance = rng.normal(0, 0.3, 40_000), rng.random(40_000) * 0.2
    seen = 0.8 * predicted + rng.normal(0, np.sqrt(0.4**2 + variance))
    found = fit_calibration(predicted, seen, variance, np.ones(40_000))
    assert found.slope == pytest.approx(0.8, abs=0.03)
    assert found.spread == pytest.approx(0.4, abs=0.02)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6), st.floats(0.1, 2.0))
@settings(max_examples=40, deadline=None)
def test_chances_are_chances(scores: list[float], spread: float) -> None:
    calibration, own = Calibration(0.9, spread), np.array(scores)
    beats = calibration.beats(own[:, None] - own[None, :])
    assert np.allclose(beats + beats.T, 1.0)
    best = calibration.best(own)
    assert best.sum() == pytest.approx(1.0)
    assert own[best.argmax()] == pytest.approx(own.max(), abs=1e-6)
    assert np.allclose(calibration.best(own[:2]), [beats[0, 1], beats[1, 0]], atol=1e-3)


def test_the_look_of_a_text_is_read() -> None:
    found = dict(zip(NAMES, features_of(["Why do YOU, of all people, own 3 cars?"])[0], strict=True))
    assert found["question_mark"] == found["number"] == found["says_you"] == found["asks_why"] == 1
    assert (found["commas"], found["shouted"], found["denies"]) == (2, 1, 0)
    assert np.isfinite(features_of(["", "！？", "x"])).all()


def test_planted_effects_are_found_on_later_stories(tests: CopyTests, fitted: FittedCopy) -> None:
    _, held = split_by_story(tests, 0.3, 0)
    later, layers = tests.take(held), states(tests.texts)[held]
    assert fitted.choice.layer == 1
    found = judge(later, fitted.model.score(list(later.texts), layers), fitted.model.calibration).figures(0)
    assert found["clear_pair_accuracy"] > 0.9
    assert found["pair_low"] < found["pair_accuracy"] < found["pair_high"]
    assert found["ece"] < 2 * found["ece_floor"]


def test_the_same_seed_gives_the_same_artifact(tests: CopyTests, tmp_path: Path) -> None:
    few, versions = tests.take(np.arange(120)), set()
    for name in ("one", "two"):
        fitted = fit_copy(few, states(few.texts), 4, ("weights", "name"), CopySettings(folds=2))
        versions.add(write_copy(tmp_path / name, fitted.model, {}, {}, "0").version)
    assert len(versions) == 1


def test_nothing_is_found_where_nothing_is(tests: CopyTests) -> None:
    rng = np.random.default_rng(0)
    shuffled = from_frame(
        planted().assign(
            clicks=lambda frame: rng.permuted(frame["clicks"].to_numpy().reshape(-1, 4), axis=1).ravel()
        ),
        "shuffled",
        "0",
    )
    found = fit_copy(shuffled, states(shuffled.texts), 4, ("w", "n"), CopySettings(folds=3))
    accuracy = judge(shuffled, found.held_out, found.model.calibration).right.mean()
    assert 0.42 < accuracy < 0.58


def test_the_artifact_is_read_as_it_was_written(tests: CopyTests, fitted: FittedCopy, tmp_path: Path) -> None:
    artifact = write_copy(tmp_path, fitted.model, {"pair_accuracy": 0.5}, {"purpose": "x"}, "0")
    again = load_copy(artifact.path)
    layers, texts = states(tests.texts)[:9], list(tests.texts[:9])
    assert np.array_equal(again.score(texts, layers), fitted.model.score(texts, layers))
    assert again.calibration == fitted.model.calibration
    (artifact.path / "words.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"'words\.json' was changed"):
        load_copy(artifact.path)


def test_a_user_trains_and_ranks(tmp_path: Path) -> None:
    encoder = cases.text_model(tmp_path / "encoder")
    planted(50).to_csv(tmp_path / "tests.csv", index=False)
    command = ["train", "copy", "--data", str(tmp_path / "tests.csv"), "--encoder", str(encoder)]
    done = RUNNER.invoke(app, [*command, "--out", str(tmp_path / "one")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    version = json.loads((tmp_path / "one" / "metrics.json").read_text())["model"]
    card = json.loads((tmp_path / "one" / version / "card.json").read_text())
    assert card["judged_on"]["pair_accuracy"] > 0.6
    (tmp_path / "texts.txt").write_text("red  bad shirt\n\nred good shirt\n")
    model = ["copy", "rank", "--model", str(tmp_path / "one")]
    done = RUNNER.invoke(app, [*model, "--file", str(tmp_path / "texts.txt"), "red shirt", "red shirt"])
    found = json.loads(done.output)
    assert [row["text"] for row in found["texts"]] == ["red good shirt", "red shirt", "red bad shirt"]
    assert found["beats"][0][2] > 0.6 > 0.5 == found["beats"][0][0]
    assert sum(row["chance_best"] for row in found["texts"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["only one"], "texts: 1 different ones cannot be ranked"),
        (["one", "two", "--file", "none.txt"], "--file: none.txt cannot be read"),
        (["one", "two", "--model", "nowhere"], "nowhere: holds no trained model"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], message: str) -> None:
    done = RUNNER.invoke(app, ["copy", "rank", *arguments])
    assert done.exit_code != 0
    assert message in str(done.exception)
