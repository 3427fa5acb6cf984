"""What is refused of specs and tables, by name, row and value; and that parts of a table are the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offer_cases import full_spec, make_offers

from qiance.allocate.ask import check_named, solve
from qiance.allocate.offers import Catalogue, batch_of, read_rows, typed_rows
from qiance.allocate.spec import check_spec
from qiance.data.errors import DataError
from qiance.data.schema import RawTable
from qiance.settings_sources import SettingsError

HEAD = "user,offer,value,cost,region,day,voucher,depth\n"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"budget: missing \(from s.yaml\); set budget to: most that all offers may cost"),
        ({"budget": -1}, "budget: -1 should be greater than or equal to 0"),
        ({"budget": True}, "budget: True should be a number, not true or false"),
        ({"budget": float("inf")}, "budget: inf should be a finite number"),
        ({"budget": 1, "stok": {}}, "stok: unknown key .*; did you mean stock"),
        ({"budget": 1, "stock": {"unit": {"a": 1}}}, "stock.unit: unknown key .*; did you mean units"),
        ({"budget": 1, "stock": {"units": {"a": -2}}}, "stock.units.a: -2 should be greater"),
        ({"budget": 1, "stock": {"units": {True: 2}}}, "put it in quotes"),
        ({"budget": 1, "daily_budgets": {"limit": 3}}, "daily_budgets: needs .*; set columns.day"),
        ({"budget": 1, "daily_budgets": {}}, "daily_budgets: {} give limit for every day, or limits by day"),
        ({"budget": 1, "frequency_cap": {"most": 1}}, "frequency_cap: a user gets at most one offer"),
        ({"budget": 1, "frequency_cap": {"most": 0.5, "column": "h"}}, "frequency_cap.most: 0.5 should be"),
        ({"budget": 1, "budgets": [{"name": "x", "limit": 1}]}, "budgets.0: .* is the same as budget"),
        (
            {"budget": 1, "budgets": [{"name": "x", "limit": 1, "cost": "c"}] * 2},
            "budgets: 'x' is there twice",
        ),
        (
            {"budget": 1, "segment_floors": [{"column": "r", "value": 1, "share": 1.5}]},
            "segment_floors.0.share: 1.5 should be less than or equal to 1",
        ),
        ({"budget": 1, "depth_fairness": {"column": "r", "spread": 0.1}}, "give depth, a column, or depths"),
        ({"budget": 1, "margin_floor": {"floor": 2}}, "margin_floor.floor: 2 should be less"),
        ({"budget": 1, "columns": {"user": "a", "offer": "a"}}, "columns: 'a' is there twice"),
    ],
)
def test_a_mistake_in_the_spec_is_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_spec(spec, "s.yaml")


def test_names_that_yaml_reads_as_numbers_or_days_are_names() -> None:
    import yaml

    text = "{budget: 1, columns: {day: d}, stock: {units: {7: 2}}, daily_budgets: {limits: {2026-03-01: 5}}}"
    spec = check_spec(yaml.safe_load(text), "s.yaml")
    assert spec.stock is not None
    assert spec.daily_budgets is not None
    assert dict(spec.stock.units) == {"7": 2}
    assert dict(spec.daily_budgets.limits or {}) == {"2026-03-01": 5}


def allocated(folder: Path, body: str, spec: dict[str, Any], head: str = HEAD) -> Any:
    path = folder / "offers.csv"
    path.write_text(head + body, encoding="utf-8")
    asked = check_spec({"budget": 10, **spec}, "s.yaml")
    table, _ = read_rows(path, asked)
    catalogue = Catalogue.of(table, asked)
    check_named(asked, catalogue)
    return solve(asked, catalogue, batch_of(table, asked, catalogue))


GOOD = "u1,a,3,1,north,1,v1,0.1\nu1,b,4,2,north,1,v1,0.2\nu2,a,5,1,south,1,v1,0.1\n"
FLOOR = {"segment_floors": [{"column": "region", "value": "north", "share": 0.5}]}


@pytest.mark.parametrize(
    ("body", "spec", "message"),
    [
        (GOOD + "u3,a,x,1,,,,\n", {}, "row 4, column value: 'x': not a number .*; correct it in the file"),
        (GOOD + "u3,a,,1,,,,\n", {}, r"row 4, column value: '': missing \(value is required\)"),
        (GOOD + "u3,a,nan,1,,,,\n", {}, "row 4, column value: 'nan': not finite"),
        (GOOD + "u3,a,1,-1,,,,\n", {}, "row 4, column cost: '-1': is below 0"),
        (GOOD + ",a,1,1,,,,\n", {}, "row 4, column user: '': missing"),
        (GOOD + "u3,a,1\nu4,a,1\n", {}, r"row 4, column \(line\): .*3 columns instead of 8.*1 rows more"),
        (GOOD + "u1,a,1,1,,,,\n", {}, "row 4: user 'u1' has offer 'a' twice, first in row 1; keep one"),
        (GOOD + "u1,a,1,1,north,1,v1,0.1\n", {"columns": {"day": "day"}}, "'a' on day '1' twice"),
        (GOOD + "u1,c,1,1,south,1,v1,0.1\n", FLOOR, "row 4: segment region of user 'u1' is 'south' here and"),
        (GOOD + "u4,a,1,1,north,1,v2,0.1\n", {"stock": {"column": "voucher", "units": {"v1": 1}}},
         "row 4: offer 'a' has stock v2 here and v1 in row 1"),
        (GOOD + "u4,a,1,1,north,1,v1,0.3\n",
         {"depth_fairness": {"column": "region", "depth": "depth", "spread": 0.1}},
         "row 4: offer 'a' has depth 0.3 here and 0.1 in row 1"),
        (GOOD + "u4,control,1,1,,,,\n", {}, "row 4: 'control' means doing nothing, and its cost is 1"),
        (GOOD, {"columns": {"value": "worth"}}, "column 'worth' is not there .*in the spec"),
        (GOOD, {"stock": {"units": {"c": 1}}}, "stock.units: 'c' is in no row .* offer, which has: a, b"),
        (GOOD, {"stock": {"column": "voucher", "units": {"v9": 1}}},
         "stock.units: 'v9' is in no row of the column voucher, which has: v1"),
        (GOOD, {"segment_floors": [{"column": "region", "value": "west", "share": 0.5}]},
         "segment_floors: 'west' is in no row of the column region, which has: north, south"),
        (GOOD, {"columns": {"day": "day"}, "daily_budgets": {"limits": {"2": 5}}},
         "daily_budgets.limits: '1' is in the data and has no limit"),
        (GOOD, {"depth_fairness": {"column": "region", "depths": {"a": 0.1}, "spread": 0.1}},
         "depth_fairness.depths: offer 'b' has no depth"),
        ("u1,control,1,0,,,,\n", {}, "offer: the data has no offer but 'control'"),
        ("", {}, "has a header but no rows"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_table_is_named(
    body: str, spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        allocated(tmp_path, body, spec)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    spec = check_spec({"budget": 1}, "s.yaml")
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "no.csv", spec)
    (tmp_path / "a.dat").write_text("x")
    with pytest.raises(DataError, match=r"set file.format .* in the spec"):
        read_rows(tmp_path / "a.dat", spec)
    (tmp_path / "b.csv").write_text(HEAD.replace(",", ";") + GOOD.replace(",", ";"))
    with pytest.raises(DataError, match=r"set file\.delimiter"):
        read_rows(tmp_path / "b.csv", spec)
    semicolons = check_spec({"budget": 1, "file": {"delimiter": ";"}}, "s.yaml")
    table, _ = read_rows(tmp_path / "b.csv", semicolons)
    assert table["value"].to_pylist() == [3, 4, 5]


def test_offers_that_share_stock_share_it(tmp_path: Path) -> None:
    stock = {"stock": {"column": "voucher", "units": {"v1": 1}}}
    found = allocated(tmp_path, GOOD, stock)
    assert np.count_nonzero(found.choice) == 1
    assert found.value == 5
    assert [use.name for use in found.limits] == ["budget", "stock of v1"]
    alone = allocated(tmp_path, GOOD, {"stock": {"units": {"a": 1}}})
    assert alone.value == 9, "b has stock of its own"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 29))
def test_a_table_in_parts_is_the_table(seed: int, cut: int) -> None:
    frame = make_offers(12, seed)
    spec = check_spec(full_spec(frame), "s.yaml")
    whole = typed_rows(RawTable.of(pa.Table.from_pandas(frame)), spec, "x")
    rows = [frame.iloc[:cut], frame.iloc[cut:]]
    parts = [typed_rows(RawTable.of(pa.Table.from_pandas(part)), spec, "x") for part in rows if len(part)]
    catalogue = Catalogue.of(whole, spec)
    joined = Catalogue.joined([Catalogue.of(part, spec) for part in parts])
    assert joined == catalogue == Catalogue.from_plain(catalogue.plain())
    batch = batch_of(whole, spec, catalogue, first_key=100)
    assert batch["key"].tolist() == list(range(100, 100 + frame["user"].nunique()))
    for user, row in zip(batch["user"], range(len(batch["user"])), strict=True):
        own = frame[frame["user"] == user].set_index("offer")
        assert set(own.index) == {
            catalogue.offers[n - 1] for n in np.flatnonzero(batch["admissible"][row])[1:]
        }
        for offer, value in own["value"].items():
            assert batch["value"][row, catalogue.offers.index(offer) + 1] == value
        deep = [own.loc[offer, "cost"] if offer != "cheese" else 0.0 for offer in own.index]
        assert batch["cost of deep"][row].sum() == pytest.approx(sum(deep))


def test_parts_that_disagree_about_an_offer_are_refused() -> None:
    parts = [Catalogue(("a",), stock={"a": "v1"}), Catalogue(("a", "b"), stock={"a": "v2", "b": "v1"})]
    with pytest.raises(DataError, match="offer 'a' has stock v2 in some rows and v1 in others"):
        Catalogue.joined(parts)
