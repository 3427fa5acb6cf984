"""From a purchase log to a judged model: the command, what it may know, and what it refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from customer_cases import QUICK, plant, write_log
from typer.testing import CliRunner

from qiance.artifacts import ArtifactError
from qiance.artifacts.customers import CustomerModel
from qiance.cli.main import app
from qiance.data.errors import DataError
from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from qiance.data.purchases import PurchaseLog
from training.customers.fit import conformal_level, fit_customers
from training.customers.judge import Said, intervals, past_rate, score
from training.customers.outcome import outcome_of
from training.customers.settings import Period, earlier_periods
from training.customers.train import TrainedCustomers, holdout_period, train_customers

LOG = plant().log
SMALL = plant(250, 150, 4).log
HORIZON = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("customers")


@pytest.fixture(scope="module")
def trained(folder: Path) -> TrainedCustomers:
    told = list[float]()
    found = train_customers(
        LOG, folder, horizon=HORIZON, settings=QUICK, tell=lambda share, _text: told.append(share)
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
    return found


def test_it_is_calibrated_and_better_than_going_on_as_before(trained: TrainedCustomers, folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    naive = metrics["baselines"]["past rate"]
    assert metrics["churn_log_loss"] < naive["churn_log_loss"] - 0.1
    assert metrics["count_rmse"] < naive["count_rmse"]
    assert metrics["value_rmse"] < naive["value_rmse"]
    assert metrics["next_purchase_ibs"] < naive["next_purchase_ibs"]
    assert metrics["churn_auc"] > 0.75
    assert metrics["churn_ece"] < 2 * metrics["churn_ece_floor"]
    assert 0.8 < metrics["count_bias"] < 1.2
    assert metrics["value_cover90"] > 0.86
    assert metrics["next_purchase_cover90"] > 0.86
    assert metrics["model"] == trained.artifact.path.name


def test_nothing_after_the_cutoff_is_known() -> None:
    """Whatever happens from the cutoff on, the model fitted there and what it says are the same."""
    cutoff, random = 160, np.random.default_rng(5)
    kept = LOG.before(cutoff)
    ids, days = kept.user_ids[kept.user].tolist(), kept.day.tolist()
    later = [*random.choice(LOG.user_ids, 3_000).tolist(), "new1", "new2"]
    other = PurchaseLog.of(
        ids + later,
        np.array(days + random.integers(cutoff, 400, len(later)).tolist()),
        np.concatenate([kept.value, random.uniform(0, 1e6, len(later))]),
    )
    found = []
    for log in (LOG, other):
        fitted = fit_customers(log, cutoff, HORIZON, QUICK, lambda _share, _text: None)
        found.append(fitted.scorer.predict(log, cutoff))
    one, two = found
    assert one.user_ids.tolist() == two.user_ids.tolist()
    # Bit by bit, so that this also says that the same data gives the same model.
    for name in ("churn", "purchases", "value", "value_high", "within"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_a_customer_does_not_hang_on_the_others(trained: TrainedCustomers) -> None:
    model = CustomerModel.load(trained.artifact.path)
    everybody = model.predict(LOG)
    rows = LOG.user == 7
    alone = PurchaseLog.of(LOG.user_ids[LOG.user[rows]], LOG.day[rows], LOG.value[rows])
    one = model.predict(alone, LOG.end_day)
    assert one.churn[0] == pytest.approx(everybody.churn[7])
    assert one.value_high[0] == pytest.approx(everybody.value_high[7])


def test_the_artifact_says_what_the_training_said(trained: TrainedCustomers, folder: Path) -> None:
    model = CustomerModel.load(trained.artifact.path)
    again = model.predict(LOG)
    assert np.array_equal(again.churn, trained.forecast.churn)
    assert np.array_equal(again.value_low, trained.forecast.value_low)
    with pytest.raises(ArtifactError, match="no manifest"):
        CustomerModel.load(folder)
    with pytest.raises(DataError, match="is in EUR, and the model was trained on USD"):
        model.predict(replace(LOG, currency="EUR"))
    with pytest.raises(DataError, match="has no purchase before the cutoff"):
        model.predict(LOG, LOG.first_day)


def test_outcomes_are_those_of_the_period() -> None:
    log = PurchaseLog.of(["a", "a", "b", "c"], np.array([1, 12, 11, 25]), np.array([1.0, 5.0, 7.0, 9.0]))
    found = outcome_of(log, np.array(["a", "b", "z"]), Period(10, 10))
    assert found.count.tolist() == [1, 1, 0]
    assert found.value.tolist() == [5, 7, 0]
    assert found.next_day.tolist() == [3, 2, np.inf]
    assert found.churned.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("span", "horizon"), [(273, 273), (120, 60), (400, 90), (1_000, 30)])
def test_earlier_periods_end_by_the_cutoff(span: int, horizon: int) -> None:
    log = PurchaseLog.of(["a", "b"], np.array([0, span - 1]), np.ones(2))
    periods = earlier_periods(log, span, horizon)
    assert all(one.cutoff > 0 and one.cutoff + one.horizon <= span for one in periods)
    assert all(one.horizon <= horizon for one in periods)
    if span < 4 * horizon:
        first = periods[0]
        assert first.horizon / first.cutoff == pytest.approx(horizon / span, rel=0.05)


def test_intervals_are_widened_until_they_hold() -> None:
    random = np.random.default_rng(0)
    draws = np.sort(random.normal(size=(500, 256)), axis=1)
    assert conformal_level(draws, random.normal(size=500)) == pytest.approx(0.9, abs=0.05)
    assert conformal_level(draws, 2 * random.normal(size=500)) > 0.98
    assert conformal_level(draws, np.zeros(500)) == 0.9, "never below what is promised"


def test_naive_forecasts_go_on_as_before() -> None:
    from qiance.customers.history import history_of

    log = PurchaseLog.of(["a"] * 3, np.array([0, 10, 19]), np.full(3, 50.0))
    said = past_rate(history_of(log, 20, 20), 20)
    assert said.purchases == pytest.approx([3.0])
    assert said.value == pytest.approx([150.0])
    assert said.churn == pytest.approx([np.exp(-3)])


def test_figures_of_a_right_forecast(trained: TrainedCustomers) -> None:
    judged = trained.judged
    perfect = Said(judged.outcome.churned, judged.outcome.count, judged.outcome.value)
    figures = score(perfect, judged.outcome)
    assert figures["churn_auc"] == 1
    assert figures["count_rmse"] == 0
    assert figures["value_bias"] == 1
    assert intervals(judged.forecast, judged.outcome)["value_cover90_buyers"] <= 1


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.customers.settings as chosen

    monkeypatch.setattr(chosen, "CustomerSettings", lambda seed: replace(QUICK, seed=seed))
    data, mapping = write_log(tmp_path, SMALL)
    out, runner = tmp_path / "out", CliRunner()
    where = ["--data", str(data), "--mapping", str(mapping)]
    done = runner.invoke(app, ["train", "customers", *where, "--out", str(out), "--horizon", "40"])
    assert done.exit_code == 0, done.output
    assert "customer model" in done.output
    assert "past rate" in done.output
    with (out / "customers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["user_id"] for row in rows] == SMALL.user_ids.tolist()
    for row in rows:
        assert float(row["value_low"]) <= float(row["expected_value"]) <= float(row["value_high"])
        assert float(row["buys"]) == pytest.approx(1 - float(row["churn"]), abs=1e-5)
    with (out / "holdout.csv").open() as stream:
        held = list(csv.DictReader(stream))
    bought = [int(row["actual_purchases"]) for row in held]
    assert np.mean([n == 0 for n in bought]) == pytest.approx(
        json.loads((out / "metrics.json").read_text())["churn_rate"]
    )
    answers = tmp_path / "new.csv"
    done = runner.invoke(app, ["predict", str(out), *where, "--out", str(answers)])
    assert done.exit_code == 0, done.output
    assert answers.read_text() == (out / "customers.csv").read_text()
    assert not list(out.rglob("*.pkl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 3}, "horizon: 3 days is below 7"),
        ({"horizon": 227}, "too few for a horizon of 227 days"),
        ({"horizon": 400}, "none of them before"),
        ({"horizon": 60, "cutoff": 230}, "days after the cutoff 1970-08-19; the horizon is 60 days"),
    ],
)
def test_periods_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_customers(LOG, tmp_path, settings=QUICK, **change)


def test_logs_that_teach_nothing_are_refused(tmp_path: Path) -> None:
    few = LOG.user < 20
    small = PurchaseLog.of(LOG.user_ids[LOG.user[few]], LOG.day[few], LOG.value[few])
    with pytest.raises(DataError, match="50 customers and some that bought twice are needed"):
        train_customers(small, tmp_path, horizon=HORIZON, settings=QUICK)
    empty = PurchaseLog.of([], np.zeros(0, np.int64), np.zeros(0))
    with pytest.raises(DataError, match="has no purchase"):
        holdout_period(empty, 30, None)
    with pytest.raises(ValueError, match="members: 1 is below 2"):
        replace(QUICK, members=1)


def test_purchases_come_from_both_kinds_of_mapping(tmp_path: Path) -> None:
    data, mapping = write_log(tmp_path, LOG)
    own = read_mapped(data, load_mapping(mapping)).purchases
    assert own is not None
    assert own.fingerprint == LOG.fingerprint
    shop = read_mapped(Path("examples/shop_events.csv"), load_mapping(Path("examples/shop_events.map.yaml")))
    assert shop.purchases is not None
    assert shop.events is not None
    assert shop.purchases.value.sum() == sum(
        value
        for kind, value in zip(shop.events["type"].to_pylist(), shop.events["value"].to_pylist(), strict=True)
        if kind == "purchase"
    )


def test_wrong_mappings_are_named(tmp_path: Path) -> None:
    data, mapping = write_log(tmp_path, LOG)
    runner = CliRunner()
    words = ["train", "customers", "--data", str(data), "--mapping", str(mapping), "--out", str(tmp_path)]
    mapping.write_text("kind: purchases\ncolumns: {user_id: who, occurred_at: day}\n")
    assert "columns.value: missing" in str(runner.invoke(app, words).exception)
    mapping.write_text("kind: responses\nlabels: {conversion: paid}\n")
    assert "maps responses, and a customer model learns" in str(runner.invoke(app, words).exception)
