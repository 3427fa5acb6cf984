"""A response log nobody has seen goes through one command to a calibrated, explained model."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from response_cases import FEATURES, Log, write_log
from typer.testing import CliRunner

from qiance.artifacts import ArtifactError
from qiance.artifacts.response import ResponseModel
from qiance.cli.contest import register_response
from qiance.cli.main import app
from qiance.data.errors import DataError
from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from qiance.data.responses import ResponseTable
from qiance.evaluate.prediction import log_loss
from training.effect.fit import TrainSettings
from training.response.fairness import Thresholds, audit
from training.response.fit import TrainedResponse, train_response
from training.response.members import ResponseSettings, TreeSettings
from training.response.rows import folds_of, response_rows

QUICK = ResponseSettings(
    members=3,
    network=TrainSettings(epochs=12, batch_size=256, heads=4, learning_rate=3e-3),
    trees=TreeSettings(rounds=400, leaves=(4, 16), threads=1),
)


@dataclass(frozen=True)
class Case:
    log: Log
    table: ResponseTable
    trained: TrainedResponse
    out: Path


def read(log: Log, **more: Any) -> ResponseTable:
    found = read_mapped(log.data, load_mapping(log.mapping), **more).responses
    assert found is not None
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("response")
    log = write_log(folder)
    table, told = read(log), list[float]()
    out = folder / "out"
    trained = train_response(
        table, out, folds=3, settings=QUICK, tell=lambda share, _text: told.append(share)
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    return Case(log, table, trained, out)


def test_it_is_not_worse_than_boosting_and_knows_how_sure_it_is(case: Case) -> None:
    metrics = json.loads((case.out / "metrics.json").read_text())
    assert metrics["intervals"]["groups"] == 8
    assert "nine of 500 rows are needed" in metrics["intervals"]["doubt"]
    best = min(scores["log_loss"] for scores in metrics["baselines"].values())
    assert metrics["log_loss"] < best + 0.003, "with a third of the members and epochs of the default"
    # The least that anybody can reach: the truth's own log loss.
    floor = log_loss(case.log.answered, case.log.truth)
    assert floor < metrics["log_loss"] < floor + 0.03
    assert metrics["ece"] < metrics["ece_floor"]
    assert 0.7 < metrics["auc"] < 1
    assert metrics["ne"] < 0.9
    assert 0.75 <= metrics["coverage90_group"] <= 1, "of a dozen groups in each of three folds"
    assert "NaN" not in (case.out / "metrics.json").read_text()
    assert metrics["cross_validation"]["folds"] == len(metrics["cross_validation"]["by_fold"]) == 3
    assert set(metrics["baselines"]) == {
        "population mean", "linear regression", "64-32-1 network", "logistic regression", "LightGBM",
    }  # fmt: skip


def test_what_is_loaded_predicts_the_truth_and_refuses_what_it_does_not_know(case: Case) -> None:
    model = ResponseModel.load(case.out / str(case.trained.metrics["model"]))
    columns = model.schema.columns(case.table.table)
    draws = model.predict(columns)
    assert draws.shape == (4_000, 4)
    assert float(np.abs(draws.mean(axis=1) - case.log.truth).mean()) < 0.06
    assert model.predict({name: values[:0] for name, values in columns.items()}).shape == (0, 4)
    new = {**columns, "age": np.full(4_000, "unheard of", dtype=object)}
    assert np.isfinite(model.predict(new)).all()
    with pytest.raises(ValueError, match="column 'age' is missing"):
        model.predict({name: values for name, values in columns.items() if name != "age"})
    with pytest.raises(ArtifactError, match="no manifest"):
        ResponseModel.load(case.out)


def test_further_groups_lie_in_their_intervals(case: Case, tmp_path: Path) -> None:
    """30,000 further rows of the same truth; intervals without luck would hold far fewer."""
    model = ResponseModel.load(case.out / str(case.trained.metrics["model"]))
    later = write_log(tmp_path, n=30_000, seed=9, taste=case.log.taste)
    columns = model.schema.columns(read(later).table)
    draws = model.predict(columns)
    inside, widths, luck = [], [], []
    for start in range(0, 30_000, 500):
        rows = slice(start, start + 500)
        found = model.outcome_interval(draws[rows], {name: own[rows] for name, own in columns.items()})
        inside.append(found.low <= later.answered[rows].mean() <= found.high)
        widths.append(found.high - found.low)
        chances = draws[rows].mean(axis=1)
        luck.append(2 * 1.645 * np.sqrt((chances * (1 - chances)).sum()) / 500)
    assert 0.85 <= np.mean(inside) <= 0.99
    assert np.mean(luck) < np.mean(widths) < 1.6 * np.mean(luck), "most of it is the luck of 500 answers"


def test_an_unseen_value_is_less_certain(case: Case) -> None:
    model = ResponseModel.load(case.out / str(case.trained.metrics["model"]))
    columns = model.schema.columns(case.table.table)
    unseen = {**columns, "age": np.full(4_000, "unheard of", dtype=object)}
    width = [
        float(
            np.mean(
                [model.mean_interval(row[None]).high - model.mean_interval(row[None]).low for row in draws]
            )
        )
        for draws in (model.predict(columns)[:300], model.predict(unseen)[:300])
    ]
    assert width[1] > width[0]


def test_segments_show_intervals_beside_what_was_seen(case: Case) -> None:
    with (case.out / "segments.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["feature"] for row in rows} == set(FEATURES["categorical"])
    assert all(float(row["low"]) <= float(row["predicted"]) <= float(row["high"]) for row in rows)
    inside = [float(row["low"]) <= float(row["observed"]) <= float(row["high"]) for row in rows]
    assert np.mean(inside) >= 0.75


def test_explanations_add_up_and_name_what_matters(case: Case) -> None:
    found = json.loads((case.out / "explanations.json").read_text())
    assert set(list(found["mean_abs_shap"])[:3]) == {"age", "coupon", "visits"}
    for one in found["examples"]:
        total = sum(part["effect"] for part in one["contributions"])
        if one["method"] == "shap":
            assert one["prediction"] - one["baseline"] == pytest.approx(total, abs=1e-3)
        assert one["additivity_error"] == pytest.approx(one["prediction"] - one["baseline"] - total, abs=1e-9)
    assert {one["method"] for one in found["examples"]} == {"shap", "lime"}


def test_users_stay_whole_and_folds_alike(case: Case) -> None:
    rows = response_rows(case.table)
    fold = folds_of(rows, 5, 0)
    assert all(len(set(fold[rows.units == unit])) == 1 for unit in np.unique(rows.units)[:200])
    shares = [rows.target[fold == number].mean() for number in range(5)]
    assert max(shares) - min(shares) < 0.03


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    table = read(write_log(tmp_path, n=800))
    settings = replace(QUICK, members=2, network=TrainSettings(epochs=2, heads=2))
    found = [
        train_response(table, tmp_path / name, folds=2, settings=settings).artifact.version for name in "ab"
    ]
    assert found[0] == found[1]


def test_the_commands(tmp_path: Path) -> None:
    log = write_log(tmp_path, n=600, rows_a_user=1)
    out, runner = tmp_path / "model", CliRunner()
    words = ["train", "effect", "--data", str(log.data), "--mapping", str(log.mapping), "--out", str(out)]
    done = runner.invoke(app, [*words, "--folds", "2", "--calibrate-by", "coupon"])
    assert done.exit_code == 0, done.output
    assert "response model" in done.output
    assert "LightGBM" in done.output
    assert "rests on one group" in " ".join(done.output.split())
    assert json.loads((out / "metrics.json").read_text())["calibrated_by"] == "coupon"
    answers = tmp_path / "new.csv"
    predict = [
        "predict",
        str(out),
        "--data",
        str(log.data),
        "--mapping",
        str(log.mapping),
        "--out",
        str(answers),
    ]
    done = runner.invoke(app, [*predict, "--explain", "shap", "--explain-rows", "2"])
    assert done.exit_code == 0, done.output
    with answers.open() as stream:
        rows = list(csv.DictReader(stream))
    assert "rests on one group" in " ".join(done.output.split())
    assert len(rows) == 600
    assert all(float(r["low"]) <= float(r["probability"]) <= float(r["high"]) for r in rows)
    lines = (tmp_path / "new.csv.explanations.jsonl").read_text().splitlines()
    assert [json.loads(line)["row_id"] for line in lines] == [rows[0]["row_id"], rows[1]["row_id"]]


def test_what_is_protected_is_not_seen_and_is_audited(tmp_path: Path) -> None:
    """Age moves the outcome; a model that must not see it is wrong about every age, and says so."""
    log = write_log(tmp_path, n=900)
    out, runner = tmp_path / "model", CliRunner()
    words = ["train", "effect", "--data", str(log.data), "--mapping", str(log.mapping), "--out", str(out)]
    words += ["--folds", "2", "--protected", "age"]
    more = ["--depth", "visits", "--max-exposure-gap", "0.01", "--max-depth-gap", "9"]
    done = runner.invoke(app, [*words, "--max-gap", "0.02", *more])
    assert done.exit_code == 1, done.output
    assert "unfair: age" in done.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert "age" not in metrics["features"]
    report = json.loads((out / "fairness.json").read_text())
    assert len(report["broken"]) >= 1
    groups = report["groups"]["age"]
    assert {one["group"] for one in groups} <= {"below21", "21-30", "31-50", "50plus"}
    for one in groups:
        assert one["gap"] == pytest.approx(one["predicted"] - one["observed"])
        assert one["gap_low"] <= one["gap"] <= one["gap_high"]
        assert one["exposure_gap_low"] < one["exposure_gap"] < one["exposure_gap_high"]
        assert one["offered_gap_low"] < one["offered_gap"] < one["offered_gap_high"]
    assert report["thresholds"] == {"max_gap": 0.02, "max_exposure_gap": 0.01, "max_depth_gap": 9.0}
    model = ResponseModel.load(out / metrics["model"])
    assert "age" not in model.schema.names
    table = read(log)
    with pytest.raises(DataError, match="has no categorical feature 'visits'; protect one of: age"):
        response_rows(table, protected=("visits",))


def test_a_right_model_is_let_through_and_a_wrong_one_is_named() -> None:
    random = np.random.default_rng(0)
    p, group = random.beta(2, 5, 4_000), random.choice(["a", "b", "tiny"], 4_000, p=[0.6, 0.39, 0.01])
    y = (random.random(4_000) < p).astype(float)
    fair = audit(y, p, {"group": group}, Thresholds(0.03))
    assert fair.broken == ()
    assert [one.group for one in fair.groups["group"]] == ["a", "b"], "of forty rows nothing is claimed"
    assert sum(one.exposure * one.rows for one in fair.groups["group"]) == pytest.approx(800, abs=25)
    tilted = audit(y, p + 0.1 * (group == "b"), {"group": group}, Thresholds(0.03))
    (sentence,) = tilted.broken
    assert sentence.startswith("group 'b': predicted")
    assert tilted.groups["group"][1].gap == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"labels": {"sales": {"column": "visits", "unit": "minor"}}}, "maps no yes-or-no outcome"),
        ({"features": {}}, "has no feature with a value"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    log = write_log(tmp_path, n=100)
    content = yaml.safe_load(log.mapping.read_text()) | edit
    log.mapping.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=message):
        response_rows(read(log))


def test_wrong_choices_are_named(tmp_path: Path) -> None:
    table = read(write_log(tmp_path, n=100))
    with pytest.raises(DataError, match="maps no label 'click'; use one of: conversion"):
        response_rows(table, "click")
    with pytest.raises(DataError, match="has no categorical feature 'visits'; calibrate by one of: age"):
        response_rows(table, None, "visits")
    with pytest.raises(DataError, match="too few for 20 folds"):
        folds_of(response_rows(table), 20, 0)
    with pytest.raises(DataError, match="rows of the rarer outcome of conversion; 5 folds need 63"):
        train_response(table, tmp_path)
    with pytest.raises(ValueError, match="folds: 1 is below 2"):
        train_response(table, tmp_path, folds=1)
    with pytest.raises(ValueError, match="members: 1 is below 2"):
        ResponseSettings(members=1)


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
def test_features_may_all_be_of_one_kind(tmp_path: Path, kind: str) -> None:
    log = write_log(tmp_path, n=400)
    content = yaml.safe_load(log.mapping.read_text())
    content["features"] = {kind: FEATURES[kind]}
    log.mapping.write_text(yaml.safe_dump(content))
    settings = replace(QUICK, members=2, network=TrainSettings(epochs=2, heads=2))
    trained = train_response(read(log), tmp_path / "out", folds=2, settings=settings)
    model = ResponseModel.load(trained.artifact.path)
    assert model.schema.names == tuple(FEATURES[kind])
    assert np.isfinite(model.predict(model.schema.columns(read(log).table))).all()


def test_a_registered_model_is_promoted_on_a_log_that_it_was_not_trained_on(
    case: Case, tmp_path: Path
) -> None:
    number = register_response(case.trained, "coupons", tmp_path)
    later = write_log(tmp_path, n=1_500, seed=0)
    runner, where = CliRunner(), ["-w", str(tmp_path)]
    same = ["--data", str(case.log.data), "-m", str(case.log.mapping)]
    refused = runner.invoke(app, ["models", "promote", "coupons", *where])
    assert "give a log that no rival was trained on" in str(refused.exception)
    refused = runner.invoke(app, ["models", "promote", "coupons", *same, *where])
    assert "is what model" in str(refused.exception)
    fresh = ["--data", str(later.data), "-m", str(later.mapping)]
    assert runner.invoke(app, ["models", "promote", "coupons", *fresh, *where]).exit_code == 0
    assert register_response(case.trained, "coupons", tmp_path) != number
    compared = runner.invoke(app, ["models", "compare", "coupons", *fresh, *where, "--json"])
    assert compared.exit_code == 0
    found = json.loads(compared.output)["test"]
    assert found["rows"] == 1_500
    assert [one["outcome"] for one in found["differences"]] == ["conversion", "conversion"]
    with pytest.raises(ValueError, match="is the name of the model that the service follows"):
        register_response(case.trained, "effect", tmp_path)
