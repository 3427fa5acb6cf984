"""The row-by-row schema check: typed columns of the good rows, a fault for every bad value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qiance.data.convert import MAX_DIGITS, MAX_TEXT, Bools, Column, convert
from qiance.data.faults import FAULT_SCHEMA, Reason, Rows, TableReport, count_faults, fault_rows, join_faults


@dataclass(frozen=True, slots=True)
class RawTable:
    """Rows of a file before the check.

    table: the wanted columns, text or native types; rows: `[n]` number of each row among the data rows
    of the file, from 1; faults: rows that could not be split into columns; num_rows: all of them.
    """

    table: pa.Table
    rows: Rows
    faults: pa.Table
    num_rows: int

    @classmethod
    def of(cls, table: pa.Table) -> RawTable:
        """A table all of whose rows could be read."""
        numbers = np.arange(1, table.num_rows + 1, dtype=np.int64)
        return cls(table, numbers, join_faults([]), table.num_rows)

    def starting_at(self, first: int) -> RawTable:
        """The same rows as a part of a file: what was row 1 is row `first`."""
        shift = first - 1
        numbers = pc.add(self.faults["row"], shift)
        faults = self.faults.set_column(0, FAULT_SCHEMA.field("row"), numbers)
        return RawTable(self.table, self.rows + shift, faults, self.num_rows)


@dataclass(frozen=True, slots=True)
class Checked:
    """Outcome of the check.

    table: typed columns of the accepted rows; rows: their numbers in the file; faults: see
    `FAULT_SCHEMA`; num_rows: rows of the file.
    """

    table: pa.Table
    rows: Rows
    faults: pa.Table
    num_rows: int

    def report(self, table: str, source: str, quarantine: str | None = None) -> TableReport:
        """The counts; every row of the file is either accepted or quarantined."""
        bad = len(pc.unique(self.faults["row"]))
        return TableReport(
            table, source, self.num_rows, self.table.num_rows, bad, count_faults(self.faults), quarantine
        )


def check_table(raw: RawTable, columns: Sequence[Column], key: Sequence[str] = ()) -> Checked:
    """Convert `columns` of `raw`, and put aside rows with a bad value or a repeated `key`.

    Of rows with the same key the first good one stays. A key column must be among the targets.
    """
    names, arrays, faults = [], [], [raw.faults]
    good = np.ones(len(raw.rows), dtype=bool)
    for column in columns:
        source = raw.table[column.source]
        converted = convert(source, column)
        for reason, bad in converted.faults:
            faults.append(_faults(raw.rows, source, column, reason, bad))
            good &= ~bad
        names.append(column.name)
        arrays.append(converted.values)
    table = pa.table(arrays, names=names).filter(pa.array(good))
    rows = raw.rows[good]
    if key:
        table, rows, repeated = drop_repeats(table, rows, key)
        faults.append(repeated)
    return Checked(table, rows, join_faults(faults), raw.num_rows)


def put_aside(checked: Checked, bad: Bools, field: str, values: Any, reason: Reason, detail: str) -> Checked:
    """Move the accepted rows where `bad` `[n]` to the faults, e.g. for a check across tables."""
    if not bad.any():
        return checked
    index = np.flatnonzero(bad)
    faults = fault_rows(checked.rows[index], field, pc.take(values, pa.array(index)), reason, detail)
    kept = checked.table.filter(pa.array(~bad))
    return Checked(kept, checked.rows[~bad], join_faults([checked.faults, faults]), checked.num_rows)


def join_key(table: pa.Table, names: Sequence[str]) -> Any:
    """One text per row from the columns `names`, joined by `/`; distinct values stay distinct."""
    parts = [table[name].combine_chunks().cast(pa.string()) for name in names]
    if len(parts) == 1:
        return parts[0]
    for old, new in (("%", "%25"), ("/", "%2F")):
        parts = [pc.replace_substring(part, pattern=old, replacement=new) for part in parts]
    return pc.binary_join_element_wise(*parts, "/")


def drop_repeats(table: pa.Table, rows: Rows, key: Sequence[str]) -> tuple[pa.Table, Rows, pa.Table]:
    """Rows whose key came before become faults that name the row where it was first seen."""
    joined = join_key(table, key)
    codes = joined.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    origin = first[inverse]
    repeated: Bools = origin != np.arange(len(codes))
    if not repeated.any():
        return table, rows, join_faults([])
    details = [f"first seen in row {row}" for row in rows[origin[repeated]]]
    values = joined.filter(pa.array(repeated))
    faults = fault_rows(rows[repeated], "+".join(key), values, Reason.DUPLICATE_KEY, details)
    return table.filter(pa.array(~repeated)), rows[~repeated], faults


def _faults(rows: Rows, source: Any, column: Column, reason: Reason, bad: Bools) -> pa.Table:
    index = np.flatnonzero(bad)
    values = pc.take(source, pa.array(index))
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return fault_rows(rows[index], column.source, values, reason, _detail(column, reason))


def _detail(column: Column, reason: Reason) -> str | None:
    """What would have been right."""
    low = f"must be above {column.above:g}" if column.above is not None else f"minimum is {column.minimum}"
    details = {
        Reason.MISSING: f"{column.name} is required",
        Reason.BELOW_MINIMUM: low,
        Reason.ABOVE_MAXIMUM: f"maximum is {column.maximum}",
        Reason.NOT_ALLOWED: "allowed: " + ", ".join((*column.rename, *column.allowed)[:20]),
        Reason.NOT_A_FLAG: "expected 0, 1, true or false",
        Reason.NOT_A_TIMESTAMP: f"expected format {column.timestamp_format}",
        Reason.NOT_AN_INTEGER: "expected a whole number",
        Reason.NOT_A_NUMBER: f"expected a number with {column.decimal!r} as the decimal mark",
        Reason.TOO_LARGE: f"at most {MAX_DIGITS} digits",
        Reason.TOO_LONG: f"at most {MAX_TEXT} characters",
        Reason.NOT_TEXT: "holds control characters",
        Reason.NOT_FINITE: "NaN and infinity are not values; file.null_values can declare them missing",
    }
    return details.get(reason)
