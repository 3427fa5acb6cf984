"""Files that are not what they say are refused with the file, the problem and the remedy."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qiance.data import DataError, Mapping, Reason, check_file, read_mapped
from qiance.data.files import read_bytes

HEADER = "id,user,item,amount,at"
GOOD = "1,u1,i1,2.50,2025-01-02T10:00:00Z"


def mapping(**file: object) -> Mapping:
    return Mapping.model_validate(
        {
            "kind": "events",
            "file": file,
            "columns": {
                "event_id": "id",
                "user_id": "user",
                "item_id": "item",
                "value": {"column": "amount", "unit": "major"},
                "occurred_at": "at",
            },
        }
    )


def write(folder: Path, data: bytes | str, name: str = "shop.csv") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def faults(path: Path, **file: object) -> list[tuple[int, str, str]]:
    report = check_file(path, mapping(**file))
    return [(f["row"], f["field"], f["reason"]) for f in report.faults.to_pylist()]


LINES = f"{HEADER}\n{GOOD}\n"
PACKED = gzip.compress((LINES + "".join(f"{n},u,i,1,2025-01-01\n" for n in range(2, 3000))).encode())
REFUSED = [
    ("shop.csv", b"", {}, "is empty", "export it again"),
    ("shop.csv", b"\n\n  \n", {}, "is empty", "export it again"),
    ("shop.csv", HEADER.encode(), {}, "header but no rows", "export it again"),
    ("shop.csv", LINES.replace(",", ";").encode(), {}, "'id'", 'set file.delimiter: ";"'),
    ("shop.csv", LINES.replace(",", "\t").encode(), {}, "'id'", 'set file.delimiter: "\\t"'),
    ("shop.csv", LINES.replace("amount", "total").encode(), {}, "column 'amount' is not there", "correct"),
    ("shop.csv", LINES.replace("item", "user").encode(), {}, "'item' is not there", "correct"),
    ("shop.csv", LINES.replace("user,item", "user,user,item").encode(), {}, "there twice", "rename"),
    ("shop.csv", b"id,user,item,amount,at\n1,2\n3\n", {}, "none of its 2 rows", "file.delimiter"),
    ("shop.csv", LINES.encode("utf-16"), {}, "is UTF-16", "set file.encoding: utf-16"),
    ("shop.csv", bytes(range(256)) * 4, {}, "is binary", "export it as text"),
    ("shop.csv", LINES.replace("id,", "id\xe4,").encode("latin-1"), {}, "is not UTF-8 (byte 2)", "cp1252"),
    ("shop.csv", LINES.encode(), {"encoding": "utf-16"}, "is not utf-16", "set file.encoding"),
    ("shop.csv", b"PK\x03\x04rest", {}, "Excel workbook", "export the sheet as CSV"),
    ("shop.csv", b"PAR1rest", {}, "is Parquet, not csv", "file.format: parquet"),
    ("shop.csv.gz", PACKED[:-40], {}, "gzip stream breaks off", "copy it again"),
    ("shop.csv.gz", PACKED[:60] + b"\x00\x13" + PACKED[62:], {}, "gzip stream is damaged", "copy it again"),
    ("shop.csv.gz", LINES.encode(), {}, "is named .gz but is not gzip", "rename it"),
    ("shop.parquet", LINES.encode(), {}, "is not Parquet", "file.format"),
    ("shop.parquet", b"PAR1" + b"\x00" * 40, {}, "is damaged Parquet", "cut off"),
    ("shop.jsonl", b'[{"id": 1}]', {}, "one JSON array", "one object per line"),
    ("shop.jsonl", LINES.encode(), {}, "none of its 2 rows has one JSON object", "file.format"),
    ("shop.jsonl", b'{"id": 1}\n', {}, "column 'user', 'item', 'amount', 'at' is not there", "correct"),
    ("shop.dat", LINES.encode(), {}, "does not tell the format", "file.format"),
]


@pytest.mark.parametrize(("name", "data", "file", "problem", "remedy"), REFUSED)
def test_refused(
    tmp_path: Path, name: str, data: bytes, file: dict[str, object], problem: str, remedy: str
) -> None:
    path = write(tmp_path, data, name)
    with pytest.raises(DataError) as caught:
        check_file(path, mapping(**file))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert remedy in message


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; pass the path"):
        check_file(tmp_path / "absent.csv", mapping())
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    with pytest.raises(DataError, match="is a folder"):
        check_file(folder, mapping())


def test_a_gzip_that_unpacks_without_end_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(b"\x20" * (64 << 20)), "bomb.csv.gz")
    with pytest.raises(DataError, match="holds more than 8 MiB; split it"):
        read_bytes(path, limit=8 << 20)


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b"2,u,i,1", "(line)", Reason.BROKEN_LINE),
        (b"2,u,i,1,2025-01-01,more", "(line)", Reason.BROKEN_LINE),
        (b'2,u,"i,1,2025-01-01', "(line)", Reason.BROKEN_LINE),
        (b'2,"u"x,i,1,2025-01-01', "(line)", Reason.BROKEN_LINE),
        (b"2,\xff,i,1,2025-01-01", "(line)", Reason.NOT_UTF8),
        (b"2," + b"u" * (1 << 20) + b",i,1,2025-01-01", "(line)", Reason.BROKEN_LINE),
        (b"2,,i,1,2025-01-01", "user", Reason.MISSING),
        (b"2,u,  ,1,2025-01-01", "item", Reason.MISSING),
        (b"2,u,i,-1,2025-01-01", "amount", Reason.BELOW_MINIMUM),
        (b"2,u,i,NaN,2025-01-01", "amount", Reason.NOT_FINITE),
        (b"2,u,i,Infinity,2025-01-01", "amount", Reason.NOT_FINITE),
        (b"2,u,i,1e400,2025-01-01", "amount", Reason.TOO_LARGE),
        (b"2,u,i,99999999999999999999,2025-01-01", "amount", Reason.TOO_LARGE),
        (b"2,u,i,free,2025-01-01", "amount", Reason.NOT_A_NUMBER),
        (b"2,u,i,1,01/02/2025", "at", Reason.NOT_A_TIMESTAMP),
        (b"1,u,i,1,2025-01-01", "event_id", Reason.DUPLICATE_KEY),
    ],
)
def test_one_bad_line_among_good_ones(tmp_path: Path, line: bytes, field: str, reason: Reason) -> None:
    after = GOOD.replace("1,", "3,", 1).encode()
    path = write(tmp_path, b"\n".join([HEADER.encode(), GOOD.encode(), line, b"", after]) + b"\n")
    assert faults(path) == [(2, field, reason.value)]
    result = read_mapped(path, mapping())
    assert result.events is not None
    assert result.events["event_id"].to_pylist() == ["1", "3"]
    assert (result.report.rows_read, result.report.accepted, result.report.quarantined) == (3, 2, 1)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_endings_and_quotes(tmp_path: Path, ending: str) -> None:
    lines = [
        HEADER,
        '1,"Ann, B.",5" nail,2.50,2025-01-02',
        '2,"say ""hi""",,1,2025-01-02',
        GOOD.replace("1", "3", 1),
    ]
    path = write(tmp_path, "\ufeff" + ending.join(lines))
    assert faults(path) == [(2, "item", "missing")]
    result = read_mapped(path, mapping())
    assert result.events is not None
    assert result.events["user_id"].to_pylist() == ["Ann, B.", "u1"]
    assert result.events["item_id"].to_pylist() == ['5" nail', "i1"]


def test_other_encodings(tmp_path: Path) -> None:
    text = LINES.replace("u1", "Müller")
    for encoding in ("latin-1", "utf-16", "cp1252"):
        path = write(tmp_path, text.encode(encoding))
        result = read_mapped(path, mapping(encoding=encoding))
        assert result.events is not None
        assert result.events["user_id"].to_pylist() == ["Müller"]


def test_json_lines_keep_their_row_numbers(tmp_path: Path) -> None:
    good = '{"id": %d, "user": "u", "item": 7, "amount": 1.25, "at": "2025-01-01"}'
    lines = [
        (good % 1).encode(),
        b'{"id": 2, "user": "u"',
        b"[1, 2]",
        b'{"id": 4, "user": "\xff", "item": 7, "amount": 1, "at": "2025-01-01"}',
        (good % 5).replace("1.25", "NaN").encode(),
        (good % 6).replace("7", '{"sku": 7}').encode(),
        (good % 7).replace("1.25", "1" + "0" * 5000).encode(),
        b"[" * 100_000,
        (good % 9).encode(),
    ]
    path = write(tmp_path, b"\n".join(lines), "shop.jsonl")
    found = faults(path)
    assert [(row, reason) for row, _, reason in found] == [
        (2, "broken_line"),
        (3, "broken_line"),
        (4, "not_utf8"),
        (5, "not_finite"),
        (7, "too_large"),
        (8, "broken_line"),
    ]
    result = read_mapped(path, mapping())
    assert result.events is not None
    assert result.events["event_id"].to_pylist() == ["1", "6", "9"]
    assert result.events["value"].to_pylist() == [125, 125, 125]


def test_parquet_with_lists_or_bytes_is_refused(tmp_path: Path) -> None:
    columns = {"id": ["1"], "user": ["u"], "amount": [1.0], "at": ["2025-01-01"]}
    for item, words in (([["a"]], "list"), ([b"\xff"], "bytes")):
        path = tmp_path / "shop.parquet"
        pq.write_table(pa.table({**columns, "item": item}), path)
        with pytest.raises(DataError, match=words):
            check_file(path, mapping())


def test_a_file_without_one_good_row_is_refused_when_read(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\n1,u,i,-1,2025-01-01\n")
    assert check_file(path, mapping()).table.accepted == 0
    with pytest.raises(DataError, match=r"all of its 1 rows have faults \(first: amount below_minimum\)"):
        read_mapped(path, mapping(), quarantine=tmp_path / "q")
    assert (tmp_path / "q" / "shop.csv.csv").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["shop.csv", "shop.jsonl", "shop.parquet", "shop.csv.gz"]))
def test_damage_is_refused_or_quarantined_but_never_a_traceback(
    tmp_path: Path, data: st.DataObject, name: str
) -> None:
    whole = bytearray(_sound(tmp_path, name))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    path = write(tmp_path, bytes(whole[:cut] if data.draw(st.booleans()) else whole), name)
    try:
        table = check_file(path, mapping()).table
    except DataError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
    else:
        assert table.rows_read == table.accepted + table.quarantined


def _sound(folder: Path, name: str) -> bytes:
    rows = [(str(n), f"u{n}", f"i{n}", 1.5 * n, "2025-01-02T10:00:00Z") for n in range(6)]
    if name.endswith(".parquet"):
        columns = list(zip(*rows, strict=True))
        pq.write_table(
            pa.table(dict(zip(HEADER.split(","), map(list, columns), strict=True))), folder / "sound"
        )
        return (folder / "sound").read_bytes()
    if name.endswith(".jsonl"):
        line = '{{"id": "{}", "user": "{}", "item": "{}", "amount": {}, "at": "{}"}}\n'
        return "".join(line.format(*row) for row in rows).encode()
    text = f"{HEADER}\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    return gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
