"""The public data sets: facts that their makers state, and a second run that changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from qiance.data import (
    EVENT_SCHEMA,
    DataError,
    IngestReport,
    read_complete_journey,
    read_hillstrom,
    read_open_bandit,
)
from qiance.data.complete_journey import PACKAGE
from qiance.data.journey_tables import USER_ATTRIBUTES
from qiance.data.packages import package_folder
from qiance.data.titles import readable_size, titles_of

HILLSTROM = Path(__file__).parents[3] / "shared" / "data" / "hillstrom" / "hillstrom.csv.gz"
needs_journey = pytest.mark.skipif(package_folder(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
needs_bandit = pytest.mark.skipif(package_folder("obp") is None, reason="obp is not installed")
needs_hillstrom = pytest.mark.skipif(not HILLSTROM.exists(), reason="the shared data is not there")


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestReport]:
    out = tmp_path_factory.mktemp("journey")
    started = time.process_time()
    report = read_complete_journey(out=out)
    assert time.process_time() - started < 30
    return out, report


@needs_journey
def test_complete_journey_facts(journey: tuple[Path, IngestReport]) -> None:
    out, report = journey
    lines = report.tables[0]
    assert (lines.table, lines.rows_read) == ("transactions", 1_469_307)
    # Lines of no quantity (coupons, voided lines) are no purchases.
    assert (lines.accepted, lines.quarantined) == (1_460_438, 8_869)
    assert [(f.field, f.reason, f.count) for f in lines.faults] == [("quantity", "below_minimum", 8_869)]
    assert all(table.quarantined == 0 for table in report.tables[1:])
    users = pq.read_table(out / "users.parquet")
    assert users.num_rows == 2_469
    assert users.column_names == ["user_id", *USER_ATTRIBUTES]
    contacts = pq.read_table(out / "contacts.parquet")
    assert contacts.num_rows == 6_589
    assert pc.sum(contacts["conversion"]).as_py() == 792
    assert contacts["contact_id"].combine_chunks().unique().__len__() == 6_589


@needs_journey
def test_complete_journey_events(journey: tuple[Path, IngestReport]) -> None:
    events = pq.read_table(journey[0] / "events.parquet")
    assert events.schema.equals(EVENT_SCHEMA)
    assert events["event_id"].combine_chunks().unique().__len__() == events.num_rows
    source = pq.read_table(package_folder(PACKAGE) / "data" / "transactions.parquet")  # type: ignore[operator]
    sold = source.filter(pc.greater(source["quantity"], 0))
    assert pc.sum(events["value"]).as_py() == round(pc.sum(sold["sales_value"]).as_py() * 100)


@needs_journey
def test_complete_journey_items(journey: tuple[Path, IngestReport]) -> None:
    out, report = journey
    items = pq.read_table(out / "items.parquet")
    assert pc.min(items["price"]).as_py() >= 1
    assert pc.all(pc.less(items["unit_cost"], items["price"])).as_py()
    assert pc.min(items["n_sold"]).as_py() >= 1
    assert not pc.any(pc.equal(items["title"], "")).as_py()
    left_out = report.left_out
    named = 92_331 - left_out["items without a name"] - left_out["items never sold"]
    assert items.num_rows == named - left_out["items under one cent a unit"]
    milk = items.filter(pc.equal(items["item_id"], "1029743")).to_pylist()[0]
    assert (milk["title"], milk["price"], milk["unit_cost"]) == ("Milk, 1 gal", 269, 167)
    assert milk["title_zh"] == "鲜牛奶（1加仑）"
    sold = items.sort_by([("n_sold", "descending")]).slice(0, 2_000)
    assert pc.mean(pc.cast(pc.not_equal(sold["title_zh"], ""), "float64")).as_py() > 0.2


@needs_journey
def test_complete_journey_spending_of_a_contact(journey: tuple[Path, IngestReport]) -> None:
    out, _ = journey
    events, contacts = pq.read_table(out / "events.parquet"), pq.read_table(out / "contacts.parquet")
    rng = np.random.default_rng(3)
    for row in contacts.take(rng.choice(contacts.num_rows, 12)).to_pylist():
        mine = events.filter(pc.equal(events["user_id"], row["user_id"]))
        when = mine["occurred_at"].to_pandas()
        inside = (when >= row["contacted_at"]) & (when.dt.floor("D") <= row["ended_at"])
        assert row["sales"] == mine["value"].to_pandas()[inside].sum()


@needs_journey
def test_a_second_run_changes_nothing(journey: tuple[Path, IngestReport], tmp_path: Path) -> None:
    out, report = journey
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    again = read_complete_journey(out=out)
    assert again.unchanged
    assert not report.unchanged
    assert again.fingerprint == report.fingerprint
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    assert after == before


def _small_journey(folder: Path, **change: pa.Table) -> Path:
    day = np.datetime64("2017-03-01", "us")
    tables = {
        "transactions": pa.table(
            {
                "household_id": [1, 1, 2, 2],
                "basket_id": [10, 10, 11, 11],
                "product_id": [100, 101, 100, 102],
                "quantity": [1, 2, 3, 0],
                "sales_value": [1.0, 3.0, 2.4, 0.0],
                "retail_disc": [0.5, 0.0, 0.0, 0.0],
                "coupon_disc": [0.0, 0.4, 0.1, 0.0],
                "coupon_match_disc": [0.0, 0.0, 0.6, 0.0],
                "transaction_timestamp": [day, day, day + np.timedelta64(1, "D"), day],
            }
        ),
        "products": pa.table(
            {
                "product_id": [100, 101, 103],
                "department": ["GROCERY", "PRODUCE", "GROCERY"],
                "brand": ["National", "Private", "Private"],
                "product_category": ["COLD CEREAL", None, "SOUP"],
                "product_type": ["KIDS CEREAL", "BANANAS", "CONDENSED SOUP"],
                "package_size": ["16 OZ", "40 LB", None],
            }
        ),
        "demographics": pa.table({"household_id": [1], **{name: ["x"] for name in USER_ATTRIBUTES}}),
        "campaigns": pa.table({"campaign_id": [7, 7, 9], "household_id": [1, 2, 1]}),
        "campaign_descriptions": pa.table(
            {"campaign_id": [7], "campaign_type": ["Type A"], "start_date": [day], "end_date": [day]}
        ),
        "coupons": pa.table({"coupon_upc": [5, 5, 6], "product_id": [1, 2, 1], "campaign_id": [7, 7, 7]}),
        "coupon_redemptions": pa.table(
            {"household_id": [1], "coupon_upc": [5], "campaign_id": [7], "redemption_date": [day]}
        ),
    }
    for name, table in (tables | change).items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def test_a_small_journey_by_hand(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    out = tmp_path / "out"
    report = read_complete_journey(
        _small_journey(source), out=out, cost_fraction={"National": 0.5, "Private": 0}
    )
    items = pq.read_table(out / "items.parquet").to_pylist()
    # 100: shelf prices 150 and (240 + 60) / 3 = 100, median 125; 101: 300 / 2.
    assert [(i["item_id"], i["title"], i["price"], i["unit_cost"], i["n_sold"]) for i in items] == [
        ("100", "Kids' Cereal, 16 oz", 125, 62, 4),
        ("101", "Bananas", 150, 0, 2),
    ]
    assert items[1]["category"] == "Produce"
    lines = pq.read_table(out / "events.parquet")
    assert lines["coupon"].to_pylist() == [0, 40, 70], "the maker's and the shop's"
    assert lines["discount"].to_pylist() == [50, 0, 60], "the shop's alone"
    contacts = pq.read_table(out / "contacts.parquet").to_pylist()
    assert [(c["contact_id"], c["conversion"], c["sales"], c["n_coupons"]) for c in contacts] == [
        ("7/1", 1, 400, 2),
        ("7/2", 0, 0, 2),
    ]
    assert pq.read_table(out / "users.parquet")["age"].to_pylist() == ["x", None]
    assert {t.table: t.quarantined for t in report.tables if t.quarantined} == {
        "transactions": 1,
        "campaigns": 1,
    }
    assert (
        (out / "quarantine" / "campaigns.csv").read_text().splitlines()[1].startswith('3,"campaign_id","9"')
    )
    assert report.left_out["items never sold"] == 1
    assert IngestReport.from_dict(report.to_dict()) == report


def test_the_journey_is_read_again_when_anything_changed(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    first = read_complete_journey(_small_journey(source), out=out)
    assert read_complete_journey(source, out=out).unchanged
    assert not read_complete_journey(
        source, out=out, cost_fraction={"National": 0.1, "Private": 0.1}
    ).unchanged
    again = read_complete_journey(source, out=out)
    assert (again.unchanged, again.fingerprint) == (False, first.fingerprint)
    (out / "items.parquet").write_bytes(b"damaged")
    assert not read_complete_journey(source, out=out).unchanged
    assert pq.read_table(out / "items.parquet").num_rows == 2
    assert not list(out.rglob("*.part"))


def test_a_journey_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks transactions.parquet, .*; pass the folder"):
        read_complete_journey(tmp_path, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"cost_fraction: 1.2 for 'National' is outside \[0, 1\)"):
        read_complete_journey(tmp_path, out=tmp_path / "out", cost_fraction={"National": 1.2})
    with pytest.raises(ValueError, match="cost_fraction: no fraction for brand 'Private'"):
        read_complete_journey(_small_journey(tmp_path), out=tmp_path / "out", cost_fraction={"National": 0.2})
    empty = pa.table({"campaign_id": [None], "household_id": [1]})
    with pytest.raises(DataError, match=r"has no good row \(first: campaign_id missing\)"):
        read_complete_journey(_small_journey(tmp_path, campaigns=empty), out=tmp_path / "out")


@pytest.mark.parametrize(
    ("department", "category", "kind", "size", "title"),
    [
        ("GROCERY", "FLUID MILK PRODUCTS", "FLUID MILK WHITE ONLY", "1 GA", "Milk, 1 gal"),
        (
            "GROCERY",
            "SOFT DRINKS",
            "SFT DRNK 2 LITER BTL CARB INCL",
            None,
            "Soft Drink 2 Liter Bottle Carbonated",
        ),
        ("PRODUCE", "TROPICAL FRUIT", "BANANAS", "40 LB", "Bananas"),
        ("PRODUCE", "CARROTS", "CARROTS MINI PEELED", "1 LB", "Carrots Mini Peeled, 1 lb"),
        ("MEAT", "BEEF", "LEAN", None, "Lean Beef"),
        ("MEAT", "LAMB", "LEAN", None, "Lamb: Lean"),
        ("MEAT", "CHICKEN", "CHICKEN BREAST BONELESS", None, "Boneless Chicken Breast"),
        ("PRODUCE", "POTATOES", "POTATOES RUSSET (BULK&BAG)", "5 LB", "Potatoes Russet, 5 lb"),
        ("DRUG GM", "CANDY - CHECKLANE", "CANDY BARS (SINGLES)(INCLUDING", "1.6 OZ", "Candy Bars, 1.6 oz"),
    ],
)
def test_titles(department: str, category: str, kind: str, size: str | None, title: str) -> None:
    assert titles_of(department, category, kind, size).en == title


@pytest.mark.parametrize(
    ("category", "kind", "size", "title"),
    [
        ("COFFEE", "GROUND COFFEE", "33.9 OZ", "研磨咖啡（33.9盎司）"),
        ("DIAPERS & DISPOSABLES", "BABY DIAPERS", "CRATE", "婴儿纸尿裤"),
        ("LAUNDRY DETERGENTS", "LIQUID LAUNDRY DETERGENTS", "32 LOAD", "洗衣液（32次用量）"),
        ("COFFEE", "COFFEE FILTERS", "100 CT", ""),
    ],
)
def test_chinese_titles(category: str, kind: str, size: str, title: str) -> None:
    assert titles_of("GROCERY", category, kind, size).zh == title


@pytest.mark.parametrize("size", [None, "", "LARGE", "(600) 4 LB", "974246 PK", "OZ"])
def test_an_unreadable_size_is_left_out(size: str | None) -> None:
    assert readable_size(size, "GROCERY") == ""


@needs_hillstrom
def test_hillstrom_facts() -> None:
    responses = read_hillstrom(HILLSTROM, email_cost=7)
    table = responses.table
    assert len(responses) == 64_000
    counts = {row["values"]: row["counts"] for row in pc.value_counts(table["arm"]).to_pylist()}
    assert counts == {"Mens E-Mail": 21_307, "Womens E-Mail": 21_387, "No E-Mail": 21_306}
    sums = [pc.sum(table[name]).as_py() for name in ("click", "conversion", "sales")]
    assert sums == [9_394, 578, 6_725_813]
    assert responses.arm_cost == {"Mens E-Mail": 7, "No E-Mail": 0, "Womens E-Mail": 7}
    assert responses.control_arm == "No E-Mail"
    assert responses.randomised
    assert set(table["propensity"].to_pylist()) == {1 / 3}
    assert responses.fingerprint == read_hillstrom(HILLSTROM).fingerprint


@needs_bandit
@pytest.mark.parametrize(
    ("campaign", "behaviour", "arms", "clicks"),
    [("all", "random", 80, 38), ("men", "random", 34, 46), ("women", "bts", 46, 46), ("all", "bts", 80, 42)],
)
def test_open_bandit_counts(campaign: str, behaviour: str, arms: int, clicks: int) -> None:
    responses = read_open_bandit(None, campaign, behaviour)  # type: ignore[arg-type]
    assert len(responses) == 10_000
    assert responses.arms == tuple(str(arm) for arm in range(arms))
    assert pc.sum(responses.table["click"]).as_py() == clicks
    assert responses.randomised == (behaviour == "random")
    if behaviour == "random":
        np.testing.assert_allclose(responses.table["propensity"].to_numpy(), 1 / arms)


@needs_bandit
def test_open_bandit_features_of_the_arm_shown_and_of_the_others() -> None:
    responses = read_open_bandit()
    shown = responses.arm_index()
    assert responses.arm_features is not None
    assert responses.arm_features["arm"].to_pylist() == list(responses.arms)
    affinity = responses.pair_features["affinity"]
    assert affinity.shape == (10_000, 80)
    assert (affinity > 0).sum() > 0
    np.testing.assert_array_equal(responses.table["affinity"].to_numpy(), affinity[np.arange(10_000), shown])
    as_shown = responses.table.select(list(responses.features))
    for arm in ("0", "79"):
        rows = pa.array(np.flatnonzero(shown == int(arm)))
        assert responses.features_if(arm).take(rows).equals(as_shown.take(rows))
    with pytest.raises(ValueError, match="arm: '80' is not one of the 80 arms"):
        responses.features_if("80")


@needs_bandit
def test_open_bandit_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder random/all; behaviour is random or bts"):
        read_open_bandit(tmp_path)
    folder = tmp_path / "random" / "all"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match="does not exist"):
        read_open_bandit(tmp_path)
