"""Bad rows planted among good ones are all found, for the right reason, and none is invented."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qiance.data import Mapping, read_mapped
from qiance.data.store import fingerprint_table

MAPPING = Mapping.model_validate(
    {
        "kind": "events",
        "columns": {
            "event_id": "id",
            "user_id": "user",
            "item_id": "item",
            "type": "kind",
            "quantity": {"column": "qty", "max": 50},
            "value": {"column": "amount", "unit": "major"},
            "occurred_at": "at",
        },
    }
)
# What a planted fault puts into which field, and the reason that must be given.
PLANTS = {
    "no user": ("user", "", "missing"),
    "negative price": ("amount", "-0.01", "below_minimum"),
    "word for a price": ("amount", "free", "not_a_number"),
    "NaN": ("amount", "NaN", "not_finite"),
    "infinity": ("amount", "-inf", "not_finite"),
    "huge": ("amount", "1" + "0" * 30, "too_large"),
    "half a piece": ("qty", "1.5", "not_an_integer"),
    "nothing bought": ("qty", "0", "below_minimum"),
    "too many": ("qty", "51", "above_maximum"),
    "no such day": ("at", "2025-02-29", "not_a_timestamp"),
    "strange type": ("kind", "stolen", "not_allowed"),
}
FIELDS = ("id", "user", "item", "kind", "qty", "amount", "at")
names = st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x2FFF), min_size=1, max_size=8)
good_rows = st.fixed_dictionaries(
    {
        "user": names,
        "item": names,
        "kind": st.sampled_from(["purchase", "refund", "view"]),
        "qty": st.integers(1, 50).map(str),
        "amount": st.decimals(0, 10**6, places=2).map(lambda amount: f"{amount:f}"),
        "at": st.datetimes().filter(lambda at: 1700 < at.year < 2250).map(lambda at: at.isoformat()),
    }
)
plans = st.lists(
    st.tuples(good_rows, st.sampled_from([None, None, *PLANTS, "repeat", "short line"])), max_size=25
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans, form=st.sampled_from(["csv", "jsonl"]))
def test_planted_rows(tmp_path: Path, plan: list[tuple[dict[str, str], str | None]], form: str) -> None:
    first = {"user": "u", "item": "i", "kind": "view", "qty": "1", "amount": "1", "at": "2025-01-01"}
    rows, expected, good = [], [], []
    for number, (row, plant) in enumerate([(first, None), *plan], start=1):
        identity = "n1" if plant == "repeat" else f"n{number}"
        full = {"id": identity, **row}
        if plant in PLANTS:
            field, value, reason = PLANTS[plant]
            full[field] = value
            expected.append((number, field, reason))
        elif plant == "repeat":
            expected.append((number, "event_id", "duplicate_key"))
        elif plant == "short line":
            expected.append((number, "(line)", "broken_line"))
        else:
            good.append(identity)
        rows.append((full, plant == "short line"))
    path = tmp_path / f"shop.{form}"
    path.write_text(_as_csv(rows) if form == "csv" else _as_json(rows), encoding="utf-8")
    result = read_mapped(path, MAPPING)
    found = [(f["row"], f["field"], f["reason"]) for f in result.faults.to_pylist()]
    assert sorted(found) == sorted(expected)
    assert result.events is not None
    assert result.events["event_id"].to_pylist() == good
    assert result.report.rows_read == len(rows)
    assert result.report.quarantined == len(expected)


def _as_csv(rows: list[tuple[dict[str, str], bool]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(FIELDS)
    for row, short in rows:
        writer.writerow([row[name] for name in FIELDS][: 3 if short else None])
    return text.getvalue()


def _as_json(rows: list[tuple[dict[str, str], bool]]) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row, _ in rows]
    return "\n".join(line[:-1] if short else line for line, (_, short) in zip(lines, rows, strict=True))


def test_a_row_with_several_faults_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text(f"{','.join(FIELDS)}\n1,u,i,view,1,1,2025-01-01\n2,,i,view,0,x,2025-01-01\n")
    report = read_mapped(path, MAPPING).report
    assert (report.rows_read, report.accepted, report.quarantined) == (2, 1, 1)
    assert sum(fault.count for fault in report.faults) == 3


def test_a_good_row_after_a_bad_one_with_the_same_key_stays(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text(f"{','.join(FIELDS)}\n1,u,i,view,0,1,2025-01-01\n1,u,i,view,1,1,2025-01-01\n")
    result = read_mapped(path, MAPPING)
    assert result.events is not None
    assert result.events.num_rows == 1
    assert [f["reason"] for f in result.faults.to_pylist()] == ["below_minimum"]


def test_reading_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "shop.csv"
    path.write_text(f"{','.join(FIELDS)}\n1,u,i,view,1,1,2025-01-01\n2,u,i,view,0,1,2025-01-01\n")
    first = read_mapped(path, MAPPING, quarantine=tmp_path / "q")
    written = {file.name: file.read_bytes() for file in (tmp_path / "q").iterdir()}
    second = read_mapped(path, MAPPING, quarantine=tmp_path / "q")
    assert {file.name: file.read_bytes() for file in (tmp_path / "q").iterdir()} == written
    assert first.events is not None
    assert first.events.equals(second.events)
    path.write_text(f"{','.join(FIELDS)}\n1,u,i,view,1,1,2025-01-01\n")
    assert read_mapped(path, MAPPING, quarantine=tmp_path / "q").report.quarantine is None
    assert not list((tmp_path / "q").iterdir())


@pytest.mark.parametrize("values", [[1, 2, None], ["a", None, "b"], [1.5, None, -0.0]])
def test_the_fingerprint_is_of_the_content_not_of_its_chunks(values: list[object]) -> None:
    whole = pa.table({"a": values})
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert fingerprint_table(whole) == fingerprint_table(chunked)
    assert fingerprint_table(whole) != fingerprint_table(whole.slice(0, 2))
    assert fingerprint_table(whole) != fingerprint_table(whole.rename_columns(["b"]))
