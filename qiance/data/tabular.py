"""CSV, JSON Lines and Parquet as raw tables; lines that cannot be split become faults, not losses."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from qiance.data.convert import Bools, mask
from qiance.data.errors import DataError
from qiance.data.faults import MAX_SHOWN, Reason, fault_rows, join_faults
from qiance.data.files import FileFormat, format_of, read_bytes, refuse_other, to_utf8
from qiance.data.lines import MAX_LINE, Lines, split_lines
from qiance.data.schema import RawTable

_OPEN_LINE = "quotes that do not close on the line, or a carriage return inside it"


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a file is written: format (None: by its name), delimiter of a CSV, encoding of text."""

    format: FileFormat | None = None
    delimiter: str = ","
    encoding: str = "utf-8"


def read_raw(path: Path, wanted: Sequence[str], options: TextOptions | None = None) -> RawTable:
    """The columns `wanted` of a file, unchecked; the whole file is held in memory.

    A file that is not what it says is refused with `DataError`.
    """
    options = options or TextOptions()
    chosen = format_of(path, options.format)
    data = read_bytes(path)
    refuse_other(path, data, chosen)
    if chosen is FileFormat.PARQUET:
        return _parquet(path, data, wanted)
    lines = split_lines(path, to_utf8(path, data, options.encoding))
    if chosen is FileFormat.JSONL:
        return _json_lines(path, lines, wanted)
    return _csv(path, lines, wanted, options.delimiter)


def column_names(path: Path, options: TextOptions | None = None) -> list[str]:
    """Names of a file's columns; of JSON Lines those of the first object. Reads the whole file."""
    options = options or TextOptions()
    chosen = format_of(path, options.format)
    data = read_bytes(path)
    refuse_other(path, data, chosen)
    if chosen is FileFormat.PARQUET:
        try:
            return list(pq.read_schema(pa.BufferReader(data)).names)
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error) from None
    lines = split_lines(path, to_utf8(path, data, options.encoding))
    if chosen is FileFormat.CSV:
        return _header(path, lines.text(0), options.delimiter)
    record = _json_object(lines, 0)
    return [] if isinstance(record, str) else list(record)


def _csv(path: Path, lines: Lines, wanted: Sequence[str], delimiter: str) -> RawTable:
    header = csv_header(path, lines.text(0), wanted, delimiter)
    body = lines.from_line(1)
    if not len(body):
        raise no_rows(path)
    raw = csv_rows(body, header, wanted, delimiter)
    if not raw.table.num_rows:
        raise unreadable(path, raw.num_rows, FileFormat.CSV, len(header))
    return raw


def no_rows(path: Path) -> DataError:
    """The refusal of a table without rows."""
    return DataError(path, "has a header but no rows", "export it again with at least one row")


def unreadable(path: Path, num_rows: int, form: FileFormat, num_columns: int = 0) -> DataError:
    """The refusal of a text file none of whose rows can be split."""
    if form is FileFormat.JSONL:
        expected, remedy = "one JSON object", "check file.format, or export it as JSON Lines"
    else:
        expected, remedy = f"{num_columns} columns as in its header", "check file.delimiter"
    return DataError(path, f"none of its {num_rows} rows has {expected}", remedy)


def csv_header(path: Path, line: str, wanted: Sequence[str], delimiter: str) -> list[str]:
    """Names of the columns; `DataError` if one of `wanted` is not there."""
    header = _header(path, line, delimiter)
    require_columns(path, header, wanted, _delimiter_hint(path, line, wanted, delimiter))
    return header


def csv_rows(body: Lines, header: list[str], wanted: Sequence[str], delimiter: str) -> RawTable:
    """The columns `wanted` of the lines below a header, at least one; lines that do not split are faults."""
    # The parser takes a lone carriage return for the end of a line.
    closed = _quotes_close(body, delimiter) & ~_holds(body, "\r")
    short = (body.ends - body.starts) <= MAX_LINE
    good = body.utf8 & closed & short
    table, skipped = _parse_csv(body.select(good), header, wanted, delimiter)
    numbers = np.arange(1, len(body) + 1, dtype=np.int64)
    uneven = np.zeros(len(body), dtype=bool)
    uneven[np.flatnonzero(good)[[row - 1 for row, _ in skipped]]] = True
    faults = [
        _line_faults(body, ~body.utf8, Reason.NOT_UTF8, "bytes that are not UTF-8"),
        _line_faults(body, body.utf8 & ~short, Reason.BROKEN_LINE, f"longer than {MAX_LINE} bytes"),
        _line_faults(body, body.utf8 & short & ~closed, Reason.BROKEN_LINE, _OPEN_LINE),
        _line_faults(body, uneven, Reason.BROKEN_LINE, [detail for _, detail in skipped]),
    ]
    kept = good & ~uneven
    assert table.num_rows == kept.sum(), "the parser split the lines otherwise than we did"
    return RawTable(table, numbers[kept], join_faults(faults), len(body))


def _header(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    except csv.Error as error:
        raise DataError(path, f"has a header that cannot be read ({error})", "export it again") from None


def require_columns(path: Path, present: Sequence[str], wanted: Iterable[str], hint: str = "") -> None:
    """`DataError` unless each of `wanted` is there once."""
    missing = [name for name in wanted if name not in present]
    if missing:
        found = ", ".join(repr(name) for name in list(present)[:30])
        remedy = hint or "correct the names of the source columns in the mapping"
        raise DataError(path, f"column {', '.join(map(repr, missing))} is not there (found: {found})", remedy)
    twice = [name for name in wanted if list(present).count(name) > 1]
    if twice:
        raise DataError(path, f"column {twice[0]!r} is there twice", "rename one of the two in the file")


def _delimiter_hint(path: Path, line: str, wanted: Sequence[str], delimiter: str) -> str:
    for other in (",", ";", "\t", "|"):
        if other != delimiter and set(wanted) <= set(_header(path, line, other)):
            return f"the header splits at {other!r}: set file.delimiter: {json.dumps(other)}"
    return ""


def _quotes_close(lines: Lines, delimiter: str) -> Bools:
    """`[n]` whether each line's quoted fields end on it; else a parser would swallow the next lines."""
    closed = np.ones(len(lines), dtype=bool)
    quoted = np.flatnonzero(_holds(lines, '"'))
    if len(quoted):
        d = r"\t" if delimiter == "\t" else re.escape(delimiter)
        one = rf'(?:"(?:[^"]|"")*"|[^"{d}][^{d}]*|)'
        texts = pa.array([lines.text(line) for line in quoted.tolist()], pa.string())
        closed[quoted] = mask(pc.match_substring_regex(texts, rf"^{one}(?:{d}{one})*$"))
    return closed


def _holds(lines: Lines, character: str) -> Bools:
    """`[n]` whether each line holds an ASCII character."""
    found = np.zeros(len(lines), dtype=bool)
    places = np.flatnonzero(np.frombuffer(lines.data, dtype=np.uint8) == ord(character))
    line = np.searchsorted(lines.starts, places, side="right") - 1
    inside = (line >= 0) & (places < lines.ends[np.maximum(line, 0)])
    found[line[inside]] = True
    return found


def _parse_csv(
    data: bytes, header: list[str], wanted: Sequence[str], delimiter: str
) -> tuple[pa.Table, list[tuple[int, str]]]:
    """Wanted columns as text, and (row, detail) of each line with another number of columns."""
    names = [f"{position}" for position in range(len(header))]
    chosen = [names[header.index(name)] for name in wanted]
    skipped: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        skipped.append((row.number, f"{row.actual_columns} columns instead of {row.expected_columns}"))
        return "skip"

    if not data:
        return pa.table({name: pa.array([], pa.string()) for name in wanted}), skipped
    table = pacsv.read_csv(
        io.BytesIO(data),
        read_options=pacsv.ReadOptions(use_threads=False, column_names=names, block_size=8 * MAX_LINE),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
        convert_options=pacsv.ConvertOptions(
            column_types={name: pa.string() for name in chosen}, include_columns=chosen, check_utf8=False
        ),
    )
    return table.rename_columns(list(wanted)), skipped


def _line_faults(lines: Lines, bad: Bools, reason: Reason, detail: str | list[str]) -> pa.Table:
    index = np.flatnonzero(bad)
    shown = [lines.text(line)[:MAX_SHOWN] for line in index.tolist()]
    return fault_rows(index.astype(np.int64) + 1, "(line)", pa.array(shown, pa.string()), reason, detail)


def _json_lines(path: Path, lines: Lines, wanted: Sequence[str]) -> RawTable:
    refuse_array(path, lines.text(0))
    raw, seen = json_rows(lines, wanted)
    if not raw.table.num_rows:
        raise unreadable(path, raw.num_rows, FileFormat.JSONL)
    require_columns(path, seen, wanted)
    return raw


def refuse_array(path: Path, line: str) -> None:
    """Refuse a JSON document in place of JSON Lines, told by the first line."""
    if line.lstrip().startswith("["):
        remedy = "write one object per line, for example with `jq -c '.[]'`"
        raise DataError(path, "is one JSON array, not JSON Lines", remedy)


def json_rows(lines: Lines, wanted: Sequence[str]) -> tuple[RawTable, list[str]]:
    """The values `wanted` of one object per line, as text, and the names that were seen."""
    columns: dict[str, list[str | None]] = {name: [] for name in wanted}
    seen: dict[str, None] = {}
    problems: dict[int, str] = {}
    for line in np.flatnonzero(lines.utf8).tolist():
        record = _json_object(lines, line)
        if isinstance(record, str):
            problems[line] = record
            continue
        seen.update(dict.fromkeys(record))
        for name in wanted:
            columns[name].append(record.get(name))
    kept = lines.utf8.copy()
    kept[list(problems)] = False
    broken = ~kept & lines.utf8
    details = [problems[line] for line in np.flatnonzero(broken).tolist()]
    faults = [
        _line_faults(lines, ~lines.utf8, Reason.NOT_UTF8, "bytes that are not UTF-8"),
        _line_faults(lines, broken, Reason.BROKEN_LINE, details),
    ]
    numbers = np.arange(1, len(lines) + 1, dtype=np.int64)
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    return RawTable(table, numbers[kept], join_faults(faults), len(lines)), list(seen)


def _json_object(lines: Lines, line: int) -> dict[str, str | None] | str:
    """The object on a line with every scalar as text, or what is wrong with the line."""
    try:
        record = json.loads(lines.text(line), parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {str(error)[:80]}"
    if not isinstance(record, dict):
        return "not a JSON object"
    return {name: _scalar(value) for name, value in record.items()}


def _scalar(value: Any) -> str | None:
    """Text of a JSON value; booleans as `true` and `false`, nested values as JSON."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()
    return json.dumps(value)


def _parquet(path: Path, data: bytes, wanted: Sequence[str]) -> RawTable:
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            parquet_columns(path, file.schema_arrow, wanted)
            table = file.read(columns=list(wanted))
            table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(path, error) from None
    if not table.num_rows:
        raise DataError(path, "has no rows", "export it again with at least one row")
    return RawTable.of(table.select(list(wanted)))


def damaged(path: Path, error: Exception) -> DataError:
    """The refusal of a Parquet file that cannot be decoded."""
    remedy = "write it again: a Parquet file that was cut off cannot be read"
    return DataError(path, f"is damaged Parquet ({str(error).splitlines()[0][:120]})", remedy)


def parquet_columns(path: Path, schema: pa.Schema, wanted: Sequence[str]) -> None:
    """`DataError` unless each of `wanted` is there and of a type that can be read."""
    require_columns(path, schema.names, wanted)
    for name in wanted:
        kind = schema.field(name).type
        if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
            raise DataError(path, f"column {name!r} holds {kind}", "flatten it to plain values")
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            raise DataError(path, f"column {name!r} holds bytes, not text", "write it as a string column")
