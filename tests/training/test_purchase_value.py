"""What a purchase is worth: CV+ by its definition, coverage on planted purchases, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qiance.artifacts.value import ValueModel, _ranked
from qiance.cli.main import app
from qiance.features.encoder import Encoder
from qiance.features.schema import FeatureSchema
from training.effect.width import design_effect
from training.response.members import ResponseSettings
from training.response.rows import ResponseRows
from training.response.value import fit_value, value_scores, why_no_value

SCHEMA = FeatureSchema("response_log", ("visits",), ("city",))
SETTINGS = ResponseSettings(members=3)


def planted(n: int, seed: int, spread: float = 0.5) -> ResponseRows:
    """Two in three buy; city and visits move the value; in Lima purchases vary three times as much."""
    random = np.random.default_rng(seed)
    city = random.choice(np.array(["Lima", "Oslo", "Kyiv"], dtype=object), n)
    visits = random.poisson(4, n).astype(float)
    mean = 1_000 * np.exp(0.6 * (city == "Oslo") + 0.1 * visits)
    noise = spread * np.where(city == "Lima", 3.0, 1.0)
    value = mean * np.exp(noise * random.normal(size=n) - noise**2 / 2)
    bought = (random.random(n) < 2 / 3).astype(float)
    return ResponseRows(
        name="planted",
        label="conversion",
        schema=SCHEMA,
        columns={"visits": visits, "city": city},
        target=bought,
        units=np.arange(n).astype(np.str_),
        segment="city",
        fingerprint="",
        sales=np.maximum(np.round(value), 1.0) * bought,
    )


@pytest.fixture(scope="module")
def fitted() -> tuple[ValueModel, ResponseRows]:
    rows = planted(4_000, 1)
    return fit_value(rows, Encoder.fit(SCHEMA, rows.columns), SETTINGS), planted(4_000, 2)


def test_the_interval_holds_single_purchases_in_every_segment(
    fitted: tuple[ValueModel, ResponseRows],
) -> None:
    model, fresh = fitted
    for city in ("Lima", "Oslo", "Kyiv"):
        scores = value_scores(model, fresh.take(fresh.columns["city"] == city))
        assert 0.87 < scores["coverage90_row"] < 0.94, f"{city}: {scores}"
    shared = replace(model, scores={"": model.scores[""]})
    lima = fresh.take(fresh.columns["city"] == "Lima")
    assert value_scores(shared, lima)["coverage90_row"] < 0.8, "one width for all is too narrow in Lima"


def test_means_follow_the_features_and_sums_agree(fitted: tuple[ValueModel, ResponseRows]) -> None:
    model, fresh = fitted
    scores = value_scores(model, fresh)
    paid = fresh.sales[fresh.sales > 0]  # type: ignore[index]
    assert scores["value_rmse"] < paid.std()
    assert abs(scores["value_bias"]) < 0.06
    assert model.weight > 0.5
    assert model.share == 1.0
    row = {"visits": np.array([1.0, 9.0]), "city": np.array(["Kyiv", "Oslo"], dtype=object)}
    cheap, dear = model.predict(row).mean
    assert dear > 2 * cheap


def test_it_survives_being_written(fitted: tuple[ValueModel, ResponseRows]) -> None:
    model, fresh = fitted
    again = ValueModel.from_dict(json.loads(json.dumps(model.to_dict())), model.encoder, model.members)
    assert np.array_equal(again.predict(fresh.columns).high, model.predict(fresh.columns).high)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-5, 5), max_size=6), min_size=1, max_size=4),
    st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    st.integers(-1, 30),
)
def test_ranks_are_those_of_the_union(scores: list[list[float]], means: list[float], rank: int) -> None:
    parts = [np.sort(np.array(part)) for part in scores]
    log_means = np.add.outer(np.array(means), 0.5 * np.arange(len(parts)))
    below, above = _ranked(log_means, parts, rank)
    for row, low, high in zip(log_means, below, above, strict=True):
        union = np.sort(np.concatenate([mean + part for mean, part in zip(row, parts, strict=True)]))
        wanted = -np.inf if rank < 1 else np.inf if rank > len(union) else union[rank - 1]
        assert low <= wanted <= high
        assert (low, high) == pytest.approx((wanted, wanted), abs=1e-6)


def test_purchases_of_one_price_are_held() -> None:
    rows = planted(900, 3)
    assert rows.sales is not None
    cheapest = np.random.default_rng(0).random(len(rows)) < 0.5
    rows = replace(rows, sales=np.where((rows.sales > 0) & cheapest, 499.0, rows.sales))
    rows = replace(rows, sales=np.where(rows.sales > 0, np.maximum(rows.sales, 499.0), 0.0))
    model = fit_value(rows, Encoder.fit(SCHEMA, rows.columns), SETTINGS)
    everyone = replace(model, weight=0.0, scores={"": model.scores[""]})
    alike = [np.sort(np.log(part / model.mean)) for part in np.array_split(rows.sales[rows.sales > 0], 3)]
    assert value_scores(replace(everyone, scores={"": alike}), rows)["coverage90_row"] > 0.9


def test_why_there_is_no_value() -> None:
    rows = planted(90, 0)
    assert "rows have sales, and 100 are needed" in str(why_no_value(rows))
    assert why_no_value(replace(rows, sales=None)) == "no sales are mapped"
    assert rows.sales is not None
    paid = replace(planted(400, 0), target=np.zeros(400))
    assert "sales without a conversion" in str(why_no_value(paid))
    assert why_no_value(planted(400, 0)) is None


def test_rows_of_one_user_that_go_together_count_as_fewer() -> None:
    random = np.random.default_rng(0)
    mood = random.normal(size=500)
    units = np.repeat(np.arange(500), 4).astype(np.str_)
    alone = random.normal(size=2_000)
    assert design_effect(alone, units) == pytest.approx(1.0, abs=0.2)
    assert design_effect(np.repeat(mood, 4), units) == pytest.approx(4.0, abs=1e-9)


def test_a_log_with_sales_predicts_them(tmp_path: Path) -> None:
    rows, data, mapping = planted(700, 3), tmp_path / "log.csv", tmp_path / "map.yaml"
    with data.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["visits", "city", "bought", "spent"])
        assert rows.sales is not None
        writer.writerows(zip(rows.columns["visits"], rows.columns["city"], rows.target.astype(int),
                             rows.sales.astype(int), strict=True))  # fmt: skip
    mapping.write_text(
        "kind: responses\nname: shop\ncurrency: EUR\nfeatures: {numeric: [visits], categorical: [city]}\n"
        "labels: {conversion: bought, sales: {column: spent, unit: minor}}\n"
    )
    out, answers = tmp_path / "model", tmp_path / "new.csv"
    common = ["--data", str(data), "--mapping", str(mapping)]
    done = CliRunner().invoke(app, ["train", "effect", *common, "--out", str(out), "--folds", "2"])
    assert done.exit_code == 0, done.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["purchase_value"]["purchases"] == int(rows.target.sum())
    assert 0.85 < metrics["coverage90_row"] <= 1
    done = CliRunner().invoke(app, ["predict", str(out), *common, "--out", str(answers)])
    assert done.exit_code == 0, done.output
    with answers.open() as stream:
        for row in csv.DictReader(stream):
            low, mean, high = (float(row[f"purchase_{name}"]) for name in ("low", "value", "high"))
            assert 0 < low < mean < high
            assert float(row["expected_sales"]) == pytest.approx(float(row["probability"]) * mean, rel=1e-4)
