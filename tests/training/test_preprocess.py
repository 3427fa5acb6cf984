"""From raw files to feature tables: the reasons of the check, any format, nothing lost or done twice."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from benchmarks.ingest_shop import SPOILT, Shop, make_shop
from qiance.data import DataError, check_file, load_mapping
from qiance.data.items import read_items
from training.preprocess.erased import ErasedBefore
from training.preprocess.job import preprocess
from training.preprocess.report import PreprocessReport
from training.preprocess.tables import TABLES, instants

SMALL = {"fragment_bytes": 20_000, "bucket_rows": 700, "workers": 0}
ROWS = 4_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_shop(tmp_path_factory.mktemp("shop") / "files", ROWS, 0)


@pytest.fixture(scope="module")
def built(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreprocessReport, Path]:
    out = tmp_path_factory.mktemp("built")
    return preprocess(shop.log, load_mapping(shop.mapping), shop.items, out, **SMALL), out


def contents(out: Path) -> dict[str, bytes]:
    """Every table and quarantine file, byte by byte."""
    files = [*sorted((out / "data").iterdir()), *sorted((out / "quarantine").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def tables(out: Path) -> dict[str, pd.DataFrame]:
    """Rows in one order, whatever the buckets were."""
    found = {}
    for name, (keys, _) in TABLES.items():
        table = pq.read_table(out / "data" / f"{name}.parquet").to_pandas()
        found[name] = table.sort_values([*keys, "event_timestamp"], ignore_index=True)
    return found


def test_every_planted_row_is_found_with_its_reason(shop: Shop, built: tuple[PreprocessReport, Path]) -> None:
    report, out = built
    planted = pq.read_table(shop.planted).to_pylist()
    faults = pd.read_csv(out / report.files[0].quarantine)
    found = set(faults[["row", "field", "reason"]].itertuples(index=False, name=None))
    assert found == {(p["row"], p["field"], p["reason"]) for p in planted}
    assert len({p["reason"] for p in planted}) == len({reason for _, _, reason in SPOILT})
    assert report.rows_read == ROWS == report.accepted + report.quarantined
    assert report.quarantined == len(planted) == len(faults)


def test_faults_are_those_of_the_check(shop: Shop, built: tuple[PreprocessReport, Path]) -> None:
    report, out = built
    checked = check_file(shop.log, load_mapping(shop.mapping))
    ours = pacsv.read_csv(out / report.files[0].quarantine).to_pandas().astype(str)
    theirs = checked.faults.to_pandas().astype(str)
    order = ["row", "field", "reason"]
    ours, theirs = (table.sort_values(order, ignore_index=True) for table in (ours, theirs))
    # A file of text cannot tell an empty value from one that is not there.
    for table in (ours, theirs):
        table["value"] = table["value"].replace({"None": "", "nan": ""})
    ours["row"] = ours["row"].astype(int).astype(str)
    pd.testing.assert_frame_equal(ours, theirs)
    assert report.files[0].faults == checked.table.faults
    assert report.accepted == checked.table.accepted


@pytest.mark.parametrize(
    "form", ["crlf", "returns", "gzip", "latin", "utf16", "jsonl", "jsonl.gz", "parquet"]
)
def test_any_format_gives_the_same_tables(shop: Shop, tmp_path: Path, form: str) -> None:
    """Only sound rows here: what is bad in one format cannot be written in another."""
    wanted = load_mapping(shop.mapping)
    bad = {row["row"] for row in pq.read_table(shop.planted).to_pylist()}
    lines = shop.log.read_bytes().split(b"\n")[:-1]
    sound = [line for number, line in enumerate(lines) if number not in bad]
    frame = pd.read_csv(io.BytesIO(b"\n".join(sound)), dtype=str, keep_default_na=False)
    options = {"crlf": {}, "latin": {"encoding": "cp1252"}, "utf16": {"encoding": "utf-16"}}.get(form, {})
    mapping = wanted.model_copy(update={"file": wanted.file.model_copy(update=options)})
    plain = tmp_path / "plain.csv"
    plain.write_bytes(b"\n".join(sound))
    path = tmp_path / f"log.{form if form in ('jsonl', 'jsonl.gz', 'parquet') else 'csv'}"
    if form == "crlf":
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(sound) + b"\r\n")
    elif form == "returns":
        path.write_bytes(b"\r".join(sound))
    elif form == "gzip":
        path = path.with_name("log.csv.gz")
        path.write_bytes(gzip.compress(b"\n".join(sound)))
    elif form in ("latin", "utf16"):
        path.write_bytes(b"\n".join(sound).decode().encode(mapping.file.encoding))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pandas(frame), path, row_group_size=900)
    else:
        text = "\n".join(json.dumps(row) for row in frame.to_dict("records")).encode()
        path.write_bytes(gzip.compress(text) if form.endswith("gz") else text)
    expected = preprocess(plain, wanted, shop.items, tmp_path / "expected", **SMALL)
    report = preprocess(path, mapping, shop.items, tmp_path / "out", **SMALL)
    assert report.quarantined == expected.quarantined == 0
    assert report.rows_read == expected.rows_read == ROWS - len(bad)
    one, two = tables(tmp_path / "out"), tables(tmp_path / "expected")
    for name in TABLES:
        pd.testing.assert_frame_equal(one[name], two[name])


def test_sizes_of_pieces_change_nothing(
    shop: Shop, built: tuple[PreprocessReport, Path], tmp_path: Path
) -> None:
    preprocess(shop.log, load_mapping(shop.mapping), shop.items, tmp_path, workers=0)
    one, two = tables(built[1]), tables(tmp_path)
    for name in TABLES:
        pd.testing.assert_frame_equal(one[name], two[name])


def test_the_same_input_twice_changes_nothing(
    shop: Shop, built: tuple[PreprocessReport, Path], tmp_path: Path
) -> None:
    report, out = built
    before = contents(out)
    stamps = {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    copy = tmp_path / "elsewhere" / shop.log.name  # known by content, not by path or time
    copy.parent.mkdir()
    shutil.copy(shop.log, copy)
    again = preprocess(copy, load_mapping(shop.mapping), shop.items, out, **SMALL)
    assert again.unchanged
    assert replace(again, unchanged=False, rows=report.rows) == replace(report, resumed=0)
    assert contents(out) == before
    assert stamps == {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}


def test_a_file_delivered_twice_is_quarantined_and_named(shop: Shop, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "january"
    logs.mkdir(parents=True)
    shutil.copy(shop.log, logs / "a.csv")
    shutil.copy(shop.log, logs / "b.csv")
    report = preprocess(tmp_path / "logs", load_mapping(shop.mapping), shop.items, tmp_path / "out", **SMALL)
    first, second = report.files
    assert (first.source, second.source) == ("january/a.csv", "january/b.csv")
    assert second.accepted == 0
    assert second.quarantined == ROWS
    faults = pd.read_csv(tmp_path / "out" / second.quarantine)
    details = faults.loc[faults["reason"] == "duplicate_key", "detail"]
    assert details.str.contains("of january/a.csv").any()
    assert report.rows_read == report.accepted + report.quarantined


def test_kept_pieces_are_used_again_and_others_are_not_left(shop: Shop, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    header, *lines = shop.log.read_bytes().split(b"\n")[:-1]
    (logs / "1.csv").write_bytes(b"\n".join([header, *lines[:2_000]]))
    mapping, out = load_mapping(shop.mapping), tmp_path / "out"
    sizes = SMALL | {"bucket_rows": 5_000}  # one bucket before and after
    preprocess(logs, mapping, shop.items, out, keep=True, **sizes)
    (logs / "2.csv").write_bytes(b"\n".join([header, *lines[2_000:3_500]]))
    report = preprocess(logs, mapping, shop.items, out, **sizes)
    assert report.resumed > 0
    assert not (out / ".work").exists(), "the users' raw events are not left behind"
    fresh = tmp_path / "fresh"
    preprocess(logs, mapping, shop.items, fresh, **sizes)
    assert contents(out) == contents(fresh)


def test_a_new_erasure_is_not_answered_from_what_was_kept(shop: Shop, tmp_path: Path) -> None:
    mapping, out = load_mapping(shop.mapping), tmp_path / "out"
    before = preprocess(shop.log, mapping, shop.items, out, keep=True, **SMALL)
    profile = pq.read_table(out / "data" / "user_profile.parquet")
    gone = profile["user_id"][0].as_py()
    drop = ErasedBefore.wholly(frozenset({gone}))
    after = preprocess(shop.log, mapping, shop.items, out, drop=drop, keep=True, **SMALL)
    assert after.erased > 0
    assert after.accepted == before.accepted
    assert after.resumed == 0
    assert gone not in pq.read_table(out / "data" / "user_profile.parquet")["user_id"].to_pylist()
    for path in (out / ".work").rglob("*.arrow"):
        if path.name != "item_sums.arrow":
            assert gone not in pa.ipc.open_file(path).read_all()["user_id"].to_pylist()


def test_an_erasure_without_an_offset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of user 'u1' has no offset; give it in UTC"):
        ErasedBefore({"u1": datetime(2025, 1, 1)})


HEADER = b"line,customer,sku,kind,qty,amount,rebate,coupon,booked_at,order\n"
REFUSED = [
    ("empty.csv", b"", "is empty"),
    (
        "header.csv",
        b"line,customer,sku,kind,qty,amount,rebate,coupon,booked_at,order\n",
        "a header but no rows",
    ),
    ("other.csv", b"a,b\n1,2\n", "column 'line', .* is not there"),
    ("zip.csv", b"PK\x03\x04....", "is a zip archive"),
    ("array.jsonl", b'[{"a": 1}]\n', "is one JSON array"),
    ("text.jsonl", b"hello\nworld\n", "none of its 2 rows has one JSON object"),
    ("names.jsonl", b'{"line": 1}\n', "column 'customer', .* is not there"),
    ("cut.csv.gz", gzip.compress(b"x" * 100_000, mtime=0)[:60], "the gzip stream breaks off"),
    ("no.csv.gz", b"line,customer\n", "is named .gz but is not gzip"),
    ("cut.parquet", b"PAR1 and then nothing", "is damaged Parquet"),
    ("latin.csv", "line,customer,sku,é\n".encode("cp1252"), "is not UTF-8"),
    ("name.xyz", b"a\n", "the name does not tell the format"),
    ("half.csv", HEADER + b"1,\xe9\n" * 3 + b"1,2\n", r"is not UTF-8 \(3 of 4 rows\)"),
    ("short.csv", HEADER + b"1,2\n3,4\n", "none of its 2 rows has 10 columns"),
    ("bad.csv", HEADER + b",,,,,,,,,\n", "all of its 1 rows have faults"),
]


@pytest.mark.parametrize(("name", "data", "message"), REFUSED)
def test_a_file_that_is_not_what_it_says(
    shop: Shop, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        preprocess(path, load_mapping(shop.mapping), shop.items, tmp_path / "out", workers=0)
    assert not (tmp_path / "out" / "data").exists()


def test_what_cannot_be_done_is_said(shop: Shop, tmp_path: Path) -> None:
    mapping = load_mapping(shop.mapping)
    with pytest.raises(DataError, match="does not exist"):
        preprocess(tmp_path / "no.csv", mapping, shop.items, tmp_path / "out", workers=0)
    (tmp_path / "logs").mkdir()
    with pytest.raises(DataError, match="holds no event file"):
        preprocess(tmp_path / "logs", mapping, shop.items, tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match="is inside the folder of events"):
        preprocess(tmp_path / "logs", mapping, shop.items, tmp_path / "logs" / "out", workers=0)
    with pytest.raises(ValueError, match="every: 0 is below 1"):
        preprocess(shop.log, mapping, shop.items, tmp_path / "out", every=0, workers=0)
    since = datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.raises(DataError, match=r"0 snapshots; set --since to an earlier day"):
        preprocess(shop.log, mapping, shop.items, tmp_path / "out", since=since, workers=0)
    views = mapping.model_copy(update={"constants": {"type": "view"}})
    views = views.model_copy(update={"columns": {n: c for n, c in views.columns.items() if n != "type"}})
    with pytest.raises(DataError, match="has no purchase"):
        preprocess(shop.log, views, shop.items, tmp_path / "out", workers=0)


def test_items_come_with_what_is_known_of_them(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(
        "item_id,category,price,unit_cost,stock\na,tea,500,300,4\nb,,,,\na,x,1,1,1\nc,tea,0,1,2\n"
    )
    found = read_items(path)
    assert found.items.item_ids == ("a", "b")
    assert found.items.category == ("tea", "")
    assert found.items.brand == ("", "")
    np.testing.assert_array_equal(found.items.margin_rate, [0.4, np.nan])
    np.testing.assert_array_equal(found.items.stock, [4, np.nan])
    assert [(f.field, f.reason) for f in found.checked.report("items", "x").faults] == [
        ("item_id", "duplicate_key"),
        ("price", "below_minimum"),
    ]


def test_short_logs_have_one_instant() -> None:
    assert instants(10.2, 10.9, 28) == [11.0]
    assert instants(10.2, 38.9, 28) == [39.0]
    assert instants(10.2, 68.9, 28) == [41.0, 69.0]
