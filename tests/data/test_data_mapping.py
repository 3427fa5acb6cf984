"""The mapping schema: what it refuses, and what a file becomes by it."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qiance.cli.data import app
from qiance.data import EVENT_SCHEMA, DataError, Mapping, MappingError, load_mapping, read_mapped

EXAMPLES = Path(__file__).parents[2] / "examples"
EVENTS: dict[str, Any] = {
    "kind": "events",
    "columns": {"event_id": "id", "user_id": "u", "item_id": "i", "occurred_at": "t"},
    "constants": {"value": 100},
}
RESPONSES: dict[str, Any] = {
    "kind": "responses",
    "columns": {"arm": "variant"},
    "constants": {"propensity": 0.5},
    "labels": {"click": "clicked"},
}


def changed(base: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """A copy with `value` at the dotted place; None removes it."""
    data = json.loads(json.dumps(base))
    *path, last = place.split(".")
    inner = data
    for key in path:
        inner = inner.setdefault(key, {})
    inner.pop(last, None)
    if value is not None:
        inner[last] = value
    return data


WRONG = [
    (EVENTS, "kind", "clicks", "kind: Input should be 'events', 'responses' or 'purchases'"),
    (EVENTS, "colums", {}, "colums: no such key; remove it or correct its spelling"),
    (EVENTS, "columns.price", "p", "columns.price: no such role for kind events; use one of event_id"),
    (EVENTS, "columns.user_id", None, "columns.user_id: missing; name the source column"),
    (EVENTS, "columns.user_id", {"colunm": "u"}, "columns.user_id.column: Field required"),
    (EVENTS, "columns.event_id", None, "columns.event_id: missing; map it, or list in `key` the roles"),
    (EVENTS, "columns.value", "v", "columns.value.unit: say unit: major or unit: minor"),
    (EVENTS, "columns.quantity", {"column": "q", "unit": "major"}, "columns.quantity.unit: only money"),
    (EVENTS, "columns.quantity", {"column": "q", "type": "string"}, "columns.quantity.type: string does not"),
    (
        EVENTS,
        "columns.quantity",
        {"column": "q", "min": 5, "max": 2},
        "columns.quantity.min: 5 is above max 2",
    ),
    (EVENTS, "columns.quantity", {"column": "q", "min": float("nan")}, "columns.quantity.min"),
    (EVENTS, "columns.user_id", {"column": "u", "min": 1}, "columns.user_id.min, max: only numbers"),
    (EVENTS, "columns.user_id", {"column": "u", "format": "%d"}, "columns.user_id.format: only a timestamp"),
    (
        EVENTS,
        "columns.user_id",
        {"column": "u", "required": False},
        "columns.user_id.required: user_id cannot",
    ),
    (
        EVENTS,
        "columns.type",
        {"column": "k", "allowed": ["BUY"]},
        "columns.type.allowed: use a subset of purc",
    ),
    (EVENTS, "constants.user_id", "x", "constants.user_id: cannot be constant"),
    (EVENTS, "constants.quantity", 0, "constants.quantity: 0 is not a whole number of at least 1"),
    (EVENTS, "constants.type", "buy", "constants.type: 'buy' is not one of purchase"),
    (EVENTS, "key", ["basket_id"], "key: 'basket_id' is not mapped under columns"),
    (EVENTS, "labels", {"click": "c"}, "belong to kind responses; remove them"),
    (EVENTS, "currency", "euro", "currency: String should match pattern"),
    (EVENTS, "file", {"delimiter": ",,"}, "file.delimiter: String should have at most 1"),
    (
        EVENTS,
        "file",
        {"delimiter": ",", "decimal": ","},
        "delimiter: ',' cannot be told from the decimal mark",
    ),
    (EVENTS, "file", {"encoding": "klingon"}, "file: encoding: 'klingon' is unknown"),
    (EVENTS, "file", {"encoding": "hex"}, "file: encoding: 'hex' is unknown"),
    (EVENTS, "file", {"timezone": "Mars/Base"}, "file: timezone: 'Mars/Base' is no IANA name"),
    (RESPONSES, "labels", None, "labels: missing; map at least one of click, conversion, sales"),
    (RESPONSES, "labels", {"clicks": "c"}, "labels.clicks: no such label; use one of click"),
    (RESPONSES, "columns", None, "columns.arm: missing; control, arm_cost and propensity are those of arms"),
    (RESPONSES, "constants.propensity", 0, "constants.propensity: 0 is outside (0, 1]"),
    (RESPONSES, "constants.propensity", {"a": 0.9, "b": 0.3}, "the shares of the arms sum to 1.2, not to 1"),
    (RESPONSES, "columns.propensity", "p", "constants.propensity: is mapped under columns too"),
    (RESPONSES, "features", {"numeric": ["arm"]}, "features: 'arm' is the name of a role or label"),
    (RESPONSES, "features", {"numeric": ["x"], "categorical": ["x"]}, "x: mapped more than once"),
    (RESPONSES, "arm_cost", {"a": -1}, "arm_cost.a: Input should be greater than or equal to 0"),
    (RESPONSES, "key", ["arm"], "key: stands in for a missing event_id only"),
]


@pytest.mark.parametrize(("base", "place", "value", "message"), WRONG)
def test_a_wrong_mapping_names_the_key(
    tmp_path: Path, base: dict[str, Any], place: str, value: object, message: str
) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(json.dumps(changed(base, place, value)).replace("NaN", ".nan"))
    with pytest.raises(MappingError) as caught:
        load_mapping(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"kind: [events", "is not YAML"),
        (b"", "holds no keys; start with `kind: events`"),
        (b"- a\n- b\n", "holds no keys"),
        (b"kind: \xff", "is not UTF-8"),
        (b"kind: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_a_file_that_is_no_mapping(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_bytes(data)
    with pytest.raises(MappingError, match=message):
        load_mapping(path)
    with pytest.raises(MappingError, match="cannot be read"):
        load_mapping(tmp_path / "absent.yaml")


def test_the_event_example() -> None:
    mapping = load_mapping(EXAMPLES / "shop_events.map.yaml")
    events = read_mapped(EXAMPLES / "shop_events.csv", mapping).events
    assert events is not None
    assert events.schema == EVENT_SCHEMA
    first = events.slice(0, 1).to_pylist()[0]
    assert (first["value"], first["discount"], first["quantity"]) == (1053, 117, 3)
    assert first["occurred_at"].isoformat() == "2025-03-03T19:21:00+00:00"
    assert set(events["type"].to_pylist()) <= {"purchase", "refund"}
    assert events["discount"].null_count == 0
    assert events["coupon"].to_pylist() == [0] * events.num_rows, "not mapped: no coupons"


def test_the_response_example() -> None:
    mapping = load_mapping(EXAMPLES / "shop_responses.map.yaml")
    responses = read_mapped(EXAMPLES / "shop_responses.jsonl", mapping).responses
    assert responses is not None
    assert responses.arms == ("new_arrivals", "none", "voucher_10")
    assert responses.arm_cost == {"new_arrivals": 12, "none": 0, "voucher_10": 12}
    assert (responses.control_arm, responses.randomised, responses.currency) == ("none", True, "EUR")
    shares = dict(
        zip(responses.table["arm"].to_pylist(), responses.table["propensity"].to_pylist(), strict=True)
    )
    assert shares == {"new_arrivals": 0.4, "none": 0.2, "voucher_10": 0.4}
    assert responses.table["spend"].to_pylist()[0] == 23392.0
    assert responses.table["channel"].null_count > 0
    assert [responses.arms[i] for i in responses.arm_index()] == responses.table["arm"].to_pylist()


def test_the_same_rows_in_every_format_give_the_same_table(tmp_path: Path) -> None:
    mapping = load_mapping(EXAMPLES / "shop_responses.map.yaml")
    rows = [json.loads(line) for line in (EXAMPLES / "shop_responses.jsonl").read_text().splitlines()]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    pa.csv.write_csv(table, tmp_path / "a.csv")
    shutil.copy(EXAMPLES / "shop_responses.jsonl", tmp_path / "a.jsonl")
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    results = [read_mapped(path, mapping).responses for path in sorted(tmp_path.iterdir())]
    assert len(results) == 6
    assert len({result.fingerprint for result in results if result}) == 1
    assert all(result.table.equals(results[0].table) for result in results if result and results[0])


def test_a_composite_key_and_optional_values(tmp_path: Path) -> None:
    data = changed(changed(EVENTS, "columns.event_id", None), "constants", None)
    data["columns"] |= {
        "basket_id": "b",
        "value": {"column": "v", "unit": "minor", "required": False},
        "type": "k",
    }
    data["key"] = ["basket_id", "item_id"]
    path = tmp_path / "shop.csv"
    path.write_text(
        "u,i,t,b,v,k\na,x/1,2025-01-01,1,,view\na,1,2025-01-01,1/x,5,cart\na,x/1,2025-01-02,1,7,view\n"
    )
    result = read_mapped(path, Mapping.model_validate(data))
    assert result.events is not None
    assert result.events["event_id"].to_pylist() == ["1/x%2F1", "1%2Fx/1"]
    assert result.events["value"].to_pylist() == [0, 5]
    assert result.events["quantity"].to_pylist() == [1, 1]
    fault = result.faults.to_pylist()[0]
    assert (fault["row"], fault["reason"], fault["detail"]) == (3, "duplicate_key", "first seen in row 1")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("control", "nobody", "has no arm 'nobody'; set control to one of 'a', 'b'"),
        ("arm_cost", {"c": 5}, "has no arm 'c'; correct arm_cost"),
    ],
)
def test_arms_that_the_file_does_not_have(tmp_path: Path, place: str, value: object, message: str) -> None:
    path = tmp_path / "shop.csv"
    path.write_text("variant,clicked\na,1\nb,0\n")
    with pytest.raises(DataError, match=message):
        read_mapped(path, Mapping.model_validate(changed(RESPONSES, place, value)))
    path.write_text("variant,clicked\na,1\na,0\n")
    with pytest.raises(DataError, match="at least two arms"):
        read_mapped(path, Mapping.model_validate(RESPONSES))


def test_a_log_for_prediction_alone_needs_no_arm_and_no_propensity(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text("variant,clicked\na,1\nb,0\n")
    without_share = read_mapped(path, Mapping.model_validate(changed(RESPONSES, "constants", None))).responses
    assert without_share is not None
    assert (without_share.arms, without_share.can_compare) == (("a", "b"), False)
    assert without_share.table["propensity"].to_pylist() == [None, None]
    data = {"kind": "responses", "features": {"categorical": ["variant"]}, "labels": {"click": "clicked"}}
    without_arm = read_mapped(path, Mapping.model_validate(data)).responses
    assert without_arm is not None
    assert (without_arm.arms, without_arm.can_compare) == ((), False)
    assert without_arm.features == ("variant",)
    both = read_mapped(path, Mapping.model_validate(RESPONSES)).responses
    assert both is not None
    assert both.can_compare


def test_an_arm_without_a_share_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text("variant,clicked\na,1\nb,0\nc,0\n")
    mapping = Mapping.model_validate(changed(RESPONSES, "constants.propensity", {"a": 0.7, "b": 0.3}))
    result = read_mapped(path, mapping)
    assert result.responses is not None
    assert result.responses.table["propensity"].to_pylist() == [0.7, 0.3]
    assert result.faults.to_pylist()[0]["reason"] == "not_allowed"


def test_a_propensity_column_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text("variant,clicked,p\na,1,0.5\nb,0,0\nb,0,1.2\nb,0,nan\nb,1,1\n")
    data = changed(changed(RESPONSES, "constants", None), "columns.propensity", "p")
    result = read_mapped(path, Mapping.model_validate(data))
    reasons = [(f["row"], f["reason"]) for f in result.faults.to_pylist()]
    assert reasons == [(2, "below_minimum"), (3, "above_maximum"), (4, "not_finite")]


@pytest.mark.parametrize(
    ("name", "edit", "code", "words"),
    [
        ("ok.csv", lambda text: text, 0, "58 rows read, 58 accepted, 0 quarantined"),
        ("bad.csv", lambda text: text.replace("TEA-BLK-20;SALE;3", ";SALE;-3", 1), 1, "below_minimum"),
        ("tab.csv", lambda text: text.replace(";", "\t"), 2, "set file.delimiter"),
    ],
)
def test_the_command(tmp_path: Path, name: str, edit: Any, code: int, words: str) -> None:
    path = tmp_path / name
    path.write_text(edit((EXAMPLES / "shop_events.csv").read_text()))
    map_file = str(EXAMPLES / "shop_events.map.yaml")
    result = CliRunner().invoke(app, ["check", str(path), "--mapping", map_file])
    assert result.exit_code == code
    assert words in result.output + result.stderr
    options = ["--mapping", map_file, "--json", "--quarantine", str(tmp_path / "q")]
    result = CliRunner().invoke(app, ["check", str(path), *options])
    assert result.exit_code == code
    report = json.loads(result.stdout)
    assert ("refused" in report) == (code == 2)
    if code == 1:
        assert report["quarantined"] == 1
        assert [fault["field"] for fault in report["examples"]] == ["sku", "qty"]
        quarantined = pa.csv.read_csv(tmp_path / "q" / f"{name}.csv")
        assert quarantined.column_names == ["row", "field", "value", "reason", "detail"]
        assert pc.all(pc.equal(quarantined["row"], 1)).as_py()
