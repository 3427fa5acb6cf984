"""Effects of several arms, against planted truth: how near, how sure, and on targeted logs."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner
from uplift_cases import Log, write_log

from qiance.artifacts import ArtifactError
from qiance.artifacts.uplift import UpliftModel
from qiance.cli.main import app
from qiance.cli.train_uplift import _tables, parse_costs
from qiance.data.errors import DataError
from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from qiance.data.responses import ResponseTable
from training.uplift.fit import TrainedUplift, check_cost, train_uplift, write_uplift
from training.uplift.judge import cross_validate, judge
from training.uplift.learner import Data, UpliftSettings
from training.uplift.rows import uplift_rows
from training.uplift.stack import fit_uplift

QUICK = UpliftSettings(members=2, halves=4, simulations=1)
COST = {"mail": 0.05}


@dataclass(frozen=True)
class Case:
    log: Log
    table: ResponseTable
    trained: TrainedUplift
    out: Path
    model: UpliftModel


def read(log: Log) -> ResponseTable:
    found = read_mapped(log.data, load_mapping(log.mapping)).responses
    assert found is not None
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("uplift")
    log = write_log(folder, n=4_000)
    table, out = read(log), folder / "out"
    trained = train_uplift(table, out, folds=2, cost=COST, settings=QUICK)
    return Case(log, table, trained, out, UpliftModel.load(trained.artifact.path))


def in_order(model: UpliftModel, effect: np.ndarray) -> np.ndarray:
    """True effects in the order of the model's arms, without control."""
    return effect[:, [("none", "mail", "push").index(a) for a in model.info.arms if a != "none"]]


def predicted(case: Case) -> Any:
    return case.model.predict(case.model.schema.columns(case.table.table))


def silent(_share: float, _text: str) -> None:
    """Progress that nobody looks at."""


def treated(model: UpliftModel) -> list[int]:
    return [k for k, arm in enumerate(model.info.arms) if arm != "none"]


def test_nearer_to_the_truth_than_two_models_and_than_the_mean(case: Case) -> None:
    from lightgbm import LGBMClassifier

    truth, found = in_order(case.model, case.log.effect), predicted(case)
    ours = found.value[:, treated(case.model)]
    rows = uplift_rows(case.table)
    table = Data.of(rows).inputs.table
    fit = [
        LGBMClassifier(verbose=-1, n_jobs=1).fit(table[rows.arm == k], rows.target[rows.arm == k])
        for k in range(3)
    ]
    chance = np.column_stack([one.predict_proba(table)[:, 1] for one in fit])
    theirs = (chance - chance[:, [rows.control]])[:, list(rows.treatments)]

    def error(effects: np.ndarray) -> float:
        return float(np.sqrt(((effects - truth) ** 2).mean()))

    assert error(ours) < 0.6 * error(theirs)
    assert error(ours) < 0.6 * error(np.broadcast_to(truth.mean(axis=0), truth.shape))


def test_intervals_cover_and_say_something(case: Case) -> None:
    truth, found = in_order(case.model, case.log.effect), predicted(case)
    ours, half = (part[:, treated(case.model)] for part in (found.value, found.half_width()))
    assert (np.abs(ours - truth) <= half).mean() > 0.85
    assert half.mean() < 0.15
    mean, width = found.mean()
    inside = np.abs(mean[treated(case.model)] - truth.mean(axis=0)) <= width[treated(case.model)]
    assert inside.all()


def test_metrics_hold_what_was_planted(case: Case) -> None:
    metrics = case.trained.metrics
    assert metrics == json.loads((case.out / "metrics.json").read_text())
    truth = case.log.effect.mean(axis=0)
    for place, arm in ((1, "mail"), (2, "push")):
        assert metrics["ate"][arm]["low"] < truth[place] < metrics["ate"][arm]["high"]
        found = metrics["qini"][arm]
        for name in ("qini_radcliffe", "cumulative_gain", "auuc"):
            assert 0 < found[f"{name}_low"] < found[name] < found[f"{name}_high"]
        assert metrics["rate"][arm]["low"] > 0
    values = metrics["policy_value"]
    assert list(values) == ["0.1", "0.3", "0.5"]
    assert values["0.3"]["gain_over_random"]["low"] > 0
    assert values["0.3"]["gain_over_response"]["value"] > 0
    best = (case.log.effect - np.array([0, COST["mail"], 0])).max(axis=1)
    reachable = case.log.chance[:, 0].mean() + np.sort(best)[::-1][: len(best) // 2].sum() / len(best)
    assert values["0.5"]["uplift"]["low"] < reachable
    assert metrics["propensity"]["source"] == "logged"


def test_the_console_shows_intervals_and_says_where_there_is_no_curve(case: Case) -> None:
    def shown(metrics: Any) -> str:
        console = Console(record=True, width=80, file=StringIO())
        for table in _tables(metrics):
            console.print(table)
        return console.export_text()

    text, auuc = shown(case.trained.metrics), case.trained.metrics["qini"]["mail"]
    assert re.search(
        rf"mail +AUUC +{auuc['auuc']:.4f} +{auuc['auuc_low']:.4f} to {auuc['auuc_high']:.4f}", text
    )
    targeted = {arm: dict.fromkeys(found) for arm, found in case.trained.metrics["qini"].items()}
    text = shown({**case.trained.metrics, "qini": targeted})
    assert re.search(r"mail +Qini +– +targeted log\n", text.replace(" \n", "\n"))
    assert text.count("targeted log") == 4, "RATE holds there too"


def test_cost_curve_runs_from_nobody_to_everybody_worth_it(case: Case) -> None:
    with (case.out / "curve.csv").open() as stream:
        lines = [{name: float(value) for name, value in line.items()} for line in csv.DictReader(stream)]
    assert [line["budget"] for line in lines] == pytest.approx(np.arange(21) / 20)
    assert lines[0]["treated"] == lines[0]["cost"] == 0
    assert all(line["treated"] <= line["budget"] + 1e-3 for line in lines)
    assert lines[6]["value"] > max(lines[6]["random"], lines[0]["value"])


def test_costs_decide_the_best_arm(case: Case) -> None:
    found, arms = predicted(case), case.model.info.arms
    free = found.best(np.zeros(3))
    dear = found.best(np.array([0.0 if arm == "none" else 0.9 for arm in arms]))
    assert set(dear) == {arms.index("none")}
    net = found.value - case.model.info.costs
    own = found.best(case.model.info.costs)
    assert (net[np.arange(len(own)), own] >= net.max(axis=1) - 1e-12).all()
    assert (own == arms.index("mail")).mean() < (free == arms.index("mail")).mean()


def test_the_same_seed_gives_the_same_model_and_another_another(case: Case, tmp_path: Path) -> None:
    rows = uplift_rows(case.table)
    fitted = fit_uplift(rows, QUICK, silent)
    again = write_uplift(rows, fitted, check_cost(rows, COST), {"rate": {}}, tmp_path)
    assert again.version == case.trained.artifact.version
    other = fit_uplift(rows, replace(QUICK, seed=1), silent, intervals=False)
    inputs = other.scorer.inputs(rows.rows.columns)
    assert not np.allclose(other.scorer.value(inputs), predicted(case).value)


@pytest.mark.parametrize("known", [True, False])
def test_a_targeted_log_is_corrected(tmp_path: Path, known: bool) -> None:
    log = write_log(tmp_path, n=5_000, seed=3, targeted=True, propensity=known)
    table = read(log)
    assert table.can_compare is known
    rows = uplift_rows(table)
    figures = judge(rows, cross_validate(rows, 2, QUICK, silent), np.zeros(3))
    ate, truth = figures["ate"]["mail"], log.effect[:, 1].mean()
    assert ate["naive"] > truth + 0.08
    assert ate["low"] < truth < ate["high"]
    assert set(figures["qini"]["mail"].values()) == {None}
    assert rows.overlap.source == ("logged" if known else "estimated")


def test_a_randomised_log_without_propensities_has_the_shares(tmp_path: Path) -> None:
    log = write_log(tmp_path, n=900, propensity=False, randomised=True)
    rows = uplift_rows(read(log))
    assert rows.overlap.source == "randomised"
    assert rows.overlap.constant
    mail = rows.arm == rows.arms.index("mail")
    assert rows.propensity[mail] == pytest.approx(mail.mean())


def test_doubly_robust_scores_stay_right_with_wrong_outcome_models(tmp_path: Path) -> None:
    """Of outcome models that know nothing the scores' mean is still the effect, as propensities are right."""
    log = write_log(tmp_path, n=40_000, seed=5, targeted=True)
    rows = uplift_rows(read(log))
    data = Data.of(rows)
    arm = rows.arms.index("mail")
    flat = np.full((len(rows), 3), rows.target.mean())
    assert data.pseudo_outcomes(flat)[:, arm].mean() == pytest.approx(log.effect[:, 1].mean(), abs=0.03)


def test_commands_end_to_end(tmp_path: Path) -> None:
    log = write_log(tmp_path, n=900, propensity=False, control=None)
    out, runner = tmp_path / "out", CliRunner()
    given = ["--data", str(log.data), "--mapping", str(log.mapping), "--out"]
    train = ["train", "uplift", *given, str(out), "--label", "bought", "--control", "none", "--folds", "2"]
    done = runner.invoke(app, [*train, "--cost", "mail=0.05"])
    assert done.exit_code == 0, done.output
    assert "propensities are estimated" in " ".join(done.output.split())
    bare = tmp_path / "new.csv"
    bare.write_text("age,visits,city\n25,1,Rome\n65,9,Oslo\n,3,Mars\n", encoding="utf-8")
    wanted = ["predict", str(out), "--data", str(bare), "--mapping", str(log.mapping), "--out"]
    done = runner.invoke(app, [*wanted, str(tmp_path / "p.csv"), "--explain", "shap", "--explain-rows", "1"])
    assert done.exit_code == 0, done.output
    with (tmp_path / "p.csv").open() as stream:
        first, second, third = csv.DictReader(stream)
    assert {first["best_arm"], second["best_arm"], third["best_arm"]} <= {"none", "mail", "push"}
    for line in (first, second, third):
        assert float(line["low:mail"]) < float(line["effect:mail"]) < float(line["high:mail"])
    cost = {"mail": 0.05}.get(first["best_arm"], 0.0)
    assert float(first["gain"]) == pytest.approx(float(first[f"effect:{first['best_arm']}"]) - cost, abs=2e-6)
    (line,) = (tmp_path / "p.csv.explanations.jsonl").read_text().splitlines()
    told = json.loads(line)
    effects = sum(part["effect"] for part in told["contributions"])
    assert effects == pytest.approx(told["prediction"] - told["baseline"], abs=1e-3)


def test_a_damaged_artifact_and_another_kind_are_refused(case: Case, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / case.trained.artifact.path.name
    shutil.copytree(case.trained.artifact.path, copy)
    (copy / "members-0.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"members-0\.json.*was changed"):
        UpliftModel.load(copy)


def changed(log: Log, text: str, **keys: Any) -> Log:
    """Another file and mapping."""
    data = log.data.with_name(f"changed-{log.data.name}")
    data.write_text(text, encoding="utf-8")
    content = yaml.safe_load(log.mapping.read_text()) | keys
    mapping = log.mapping.with_name(f"changed-{log.mapping.name}")
    mapping.write_text(yaml.safe_dump(content), encoding="utf-8")
    return Log(data, mapping, log.effect, log.chance, log.arm)


def test_bad_logs_are_refused_with_the_remedy(tmp_path: Path) -> None:
    log = write_log(tmp_path, n=900)
    text = log.data.read_text()
    with pytest.raises(DataError, match=r"names no control.*set control in the mapping, or --control"):
        uplift_rows(read(changed(log, text, control=None)))
    with pytest.raises(DataError, match=r"has no arm 'sms'.*mail, none, push"):
        uplift_rows(read(log), control="sms")
    with pytest.raises(DataError, match=r"only the arm 'none'"):
        read(changed(log, text.replace(",mail,", ",none,").replace(",push,", ",none,")))
    with pytest.raises(DataError, match=r"no arm.*map columns.arm"):
        uplift_rows(read(changed(log, text, columns={}, control=None)))
    few = [line for k, line in enumerate(text.splitlines(True)) if ",push," not in line or k < 200]
    with pytest.raises(DataError, match=r"rows of arm 'push'.*at least 100"):
        uplift_rows(read(changed(log, "".join(few))))


@pytest.mark.parametrize("value", [0.0, 1.2, np.nan])
def test_a_propensity_outside_0_1_is_refused(tmp_path: Path, value: float) -> None:
    table = read(write_log(tmp_path, n=900))
    shares = table.table["propensity"].to_numpy().copy()
    shares[7] = value
    place = table.table.column_names.index("propensity")
    wrong = replace(table, table=table.table.set_column(place, "propensity", [shares]))
    with pytest.raises(DataError, match=r"in row 7 .*in \(0, 1\]"):
        uplift_rows(wrong)


def test_without_overlap_nothing_is_claimed(tmp_path: Path) -> None:
    log = write_log(tmp_path, n=2_000, propensity=False)
    lines = log.data.read_text().splitlines()
    head, rows = lines[0], [line.split(",") for line in lines[1:]]
    for row in rows:
        row[3] = "mail" if float(row[0]) < 30 else "none"
    alone = changed(log, "\n".join([head, *(",".join(row) for row in rows)]))
    with pytest.raises(DataError, match=r"has no overlap.*'mail' was all but impossible"):
        uplift_rows(read(alone))


def test_costs_are_checked(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no arm 'sms' to cost 1.*price: mail, push"):
        train_uplift(case.table, tmp_path, cost={"sms": 1.0}, settings=QUICK)
    with pytest.raises(DataError, match=r"'none' as control"):
        train_uplift(case.table, tmp_path, cost={"none": 1.0}, settings=QUICK)
    assert parse_costs(["a=b=0.5", "c=1"]) == {"a=b": 0.5, "c": 1.0}
    with pytest.raises(DataError, match=r"folds need 2000.*use fewer folds"):
        train_uplift(case.table, tmp_path, folds=1_000, settings=QUICK)
    for text in ("mail", "=1", "mail=", "mail=-1", "mail=nan", "mail=two"):
        with pytest.raises(Exception, match=r"is not ARM=COST"):
            parse_costs([text])
