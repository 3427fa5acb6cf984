"""Late conversions: delays from a truncated log, completed labels, and what the command says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.data.errors import DataError
from qiance.data.faults import TableReport
from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from qiance.data.responses import ResponseTable
from training.delay.correct import correct_delays
from training.delay.feedback import fit_feedback, overall_rate, still_to_come
from training.delay.hazard import fit_delay
from training.delay.train import train_delayed
from training.effect.fit import TrainSettings
from training.response.members import ResponseSettings, TreeSettings

DAYS = 30.0
START = datetime(2026, 3, 2, tzinfo=UTC)
NOTHING = np.zeros((0, 0))


def plant(rows: int, seed: int, late: float = 6.0) -> dict[str, np.ndarray]:
    """A fifth converts in the end; shop b takes `late` days, shop a one."""
    random = np.random.default_rng(seed)
    shop = random.integers(0, 2, rows)
    truth = np.where(shop == 1, 0.25, 0.15)
    at = random.random(rows) * DAYS
    delay = random.exponential(np.where(shop == 1, late, 1.0))
    delay = np.where(random.random(rows) < truth, delay, np.inf)
    return {"shop": shop, "truth": truth, "at": at, "delay": delay, "elapsed": DAYS - at}


def table_of(case: dict[str, np.ndarray], **change: Any) -> ResponseTable:
    seen = case["delay"] <= case["elapsed"]
    start = int(START.timestamp() * 1e6)
    stamp = pa.timestamp("us", "UTC")
    at = start + (case["at"] * 86_400e6).astype(np.int64)
    converted = at + (np.where(seen, case["delay"], 0.0) * 86_400e6).astype(np.int64)
    ids = pa.array([str(n) for n in range(len(at))])
    table = pa.table(
        {
            "row_id": ids,
            "unit_id": ids,
            "occurred_at": pa.array(at).cast(stamp),
            "converted_at": pa.array(converted, mask=~seen).cast(stamp),
            "shop": pa.array(np.array(["a", "b"], dtype=object)[case["shop"]]),
            "conversion": pa.array(seen.astype(np.int8)),
        }
    )
    report = TableReport("responses", "planted", len(at), len(at), 0, (), None)
    whole = ResponseTable(
        name="planted",
        table=table,
        numeric=(),
        categorical=("shop",),
        labels=("conversion",),
        arms=(),
        control_arm=None,
        arm_cost={},
        currency="USD",
        randomised=False,
        report=report,
        log_end=START + timedelta(days=DAYS),
    )
    return replace(whole, **change)


@given(seed=st.integers(0, 10_000), by_features=st.booleans())
@settings(max_examples=6, deadline=None)
def test_the_curve_rises_from_nothing_to_one(seed: int, by_features: bool) -> None:
    case = plant(1_500, seed)
    seen = case["delay"] <= case["elapsed"]
    features = case["shop"][seen].astype(float)[:, None] if by_features else None
    model = fit_delay(case["delay"][seen], case["elapsed"][seen], features)
    days = np.linspace(0, DAYS + 5, 80)
    for shop in (0.0, 1.0):
        curve = model.seen(days, np.full((80, 1), shop))
        assert np.all(np.diff(curve) >= -1e-12)
        assert curve[0] == pytest.approx(0.0, abs=1e-9)
        assert curve[-1] == pytest.approx(1.0)


def test_truncation_is_undone() -> None:
    """Delays as seen are far too short; the reversed hazard finds the planted ones, for each shop."""
    case = plant(20_000, 1)
    seen = case["delay"] <= case["elapsed"]
    shop = case["shop"].astype(float)[:, None]
    model = fit_delay(case["delay"][seen], case["elapsed"][seen], shop[seen])
    assert model.trees, "shops differ, so that features are kept"
    days = np.array([1.0, 3.0, 6.0, 12.0])
    for code, mean in ((0.0, 1.0), (1.0, 6.0)):
        found = model.seen(days, np.full((4, 1), code))
        assert found == pytest.approx(1 - np.exp(-days / mean), abs=0.07)
    as_seen = [(case["delay"][seen & (case["shop"] == 1)] <= day).mean() for day in days]
    assert as_seen[2] > 1 - np.exp(-1) + 0.08


def test_features_that_say_nothing_are_left_out() -> None:
    random = np.random.default_rng(2)
    elapsed = random.random(4_000) * DAYS
    delay = random.exponential(3.0, 4_000)
    kept = delay <= elapsed
    assert fit_delay(delay[kept], elapsed[kept], random.normal(size=(int(kept.sum()), 2))).trees == ()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_what_is_still_to_come_is_a_probability(seed: int) -> None:
    random = np.random.default_rng(seed)
    observed = (random.random(50) < 0.3).astype(float)
    rate, seen = random.random(50), random.random(50)
    still = still_to_come(observed, rate, seen)
    assert np.all((still >= 0) & (still <= 1))
    assert np.all(still[observed > 0] == 0)
    assert np.all(still <= rate + 1e-12), "to wait in vain does not make a conversion more likely"
    if observed.any():
        assert overall_rate(observed, np.maximum(seen, 0.05)) >= observed.mean() - 1e-4


def test_the_planted_rate_is_found() -> None:
    case = plant(6_000, 3)
    corrected = correct_delays(table_of(case), seed=1)
    final, seen = np.isfinite(case["delay"]), case["delay"] <= case["elapsed"]
    label = corrected.responses.table["conversion"].to_numpy()
    assert seen.sum() < 0.9 * final.sum()
    assert label.sum() == pytest.approx(final.sum(), rel=0.07)
    for shop in (0, 1):
        here = case["shop"] == shop
        assert label[here].mean() == pytest.approx(final[here].mean(), rel=0.15)
    assert np.all(label >= seen), "what was seen stays"
    report = corrected.report
    assert report["corrected_rate"] > report["observed_rate"]
    assert report["share_still_expected"] == pytest.approx(1 - seen.sum() / final.sum(), abs=0.05)
    assert sum(one["rows"] for one in report["by_age"]) == 6_000
    assert all(one["corrected_rate"] >= one["observed_rate"] for one in report["by_age"])
    young, old = report["by_age"][0], report["by_age"][-1]
    assert young["corrected_rate"] - young["observed_rate"] > old["corrected_rate"] - old["observed_rate"]


def test_nothing_is_added_where_everything_has_come() -> None:
    case = plant(6_000, 4, late=1.0)
    ripe = table_of(case, log_end=START + timedelta(days=400))
    corrected = correct_delays(ripe)
    assert corrected.still.sum() < 0.005 * np.isfinite(case["delay"]).sum()
    assert corrected.report["ripe_rows"] == 6_000


def test_metrics_say_what_was_corrected(tmp_path: Path) -> None:
    settings_ = ResponseSettings(
        members=2, network=TrainSettings(epochs=1, heads=2), trees=TreeSettings(rounds=20, leaves=(4,))
    )
    table = table_of(plant(900, 5))
    trained = train_delayed(table, tmp_path, folds=2, settings=settings_)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(trained.metrics))
    delay = metrics["delay"]
    assert metrics["rate"] == pytest.approx(delay["corrected_rate"], abs=0.02)
    assert delay["on_ripe_rows"]["rows"] == delay["ripe_rows"] > 0
    assert 0 < delay["delay"]["days_to_50%"] < delay["delay"]["days_to_90%"]
    assert delay["log_end"] == "2026-04-01T00:00:00+00:00"


def test_a_log_end_before_its_rows_is_refused() -> None:
    table = table_of(plant(1_000, 6), log_end=START + timedelta(days=20))
    with pytest.raises(DataError, match=r"has times up to .* hours after log_end; set log_end"):
        correct_delays(table)


def test_times_that_cannot_be_are_named() -> None:
    table = table_of(plant(2_000, 7))
    none = table.table.set_column(5, "conversion", pa.array(np.zeros(2_000, dtype=np.int8)))
    with pytest.raises(DataError, match="converted_at without a conversion in"):
        correct_delays(replace(table, table=none))
    swapped = table.table.rename_columns(
        ["row_id", "unit_id", "converted_at", "occurred_at", "shop", "conversion"]
    ).filter(pa.compute.is_valid(table.table["converted_at"]))
    with pytest.raises(DataError, match="converted_at before occurred_at in"):
        correct_delays(replace(table, table=swapped))
    with pytest.raises(DataError, match="conversions with a time; 50 are needed"):
        correct_delays(replace(table, table=table.table.slice(0, 100)))
    with pytest.raises(ValueError, match="delay: 3 at conversion 0 is outside"):
        fit_delay(np.full(60, 3.0), np.full(60, 2.0))
    with pytest.raises(ValueError, match="too few for a distribution"):
        fit_delay(np.full(9, 1.0), np.full(9, 2.0))
    with pytest.raises(ValueError, match="has no conversion"):
        fit_feedback(np.zeros(9), np.ones(9), NOTHING, np.arange(9))


def test_a_mapping_with_times(tmp_path: Path) -> None:
    data, mapping = tmp_path / "log.csv", tmp_path / "map.yaml"
    data.write_text(
        "sent,bought_at,bought,shop\n2026-03-01 08:00,2026-03-02 09:00,1,a\n2026-03-01 10:00,,0,b\n"
    )
    content: dict[str, Any] = {
        "kind": "responses",
        "columns": {"occurred_at": "sent", "converted_at": "bought_at"},
        "features": {"categorical": ["shop"]},
        "labels": {"conversion": "bought"},
        "log_end": "2026-03-05T00:00:00+01:00",
    }
    mapping.write_text(yaml.safe_dump(content))
    found = read_mapped(data, load_mapping(mapping)).responses
    assert found is not None
    assert found.table["converted_at"].to_pylist()[1] is None
    assert found.log_end == datetime(2026, 3, 4, 23, tzinfo=UTC)
    data.write_text("sent,shop\n2026-03-01 08:00,a\n")
    assert read_mapped(data, load_mapping(mapping), outcomes=False).responses is not None
    for change, message in (
        ({"columns": {"converted_at": "bought_at"}}, "is the time of labels.conversion after"),
        ({"columns": {"occurred_at": "sent"}}, "log_end: says until when conversions were seen"),
    ):
        mapping.write_text(yaml.safe_dump(content | change))
        with pytest.raises(ValueError, match=message):
            load_mapping(mapping)
