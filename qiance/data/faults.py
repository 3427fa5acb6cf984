"""Quarantined rows: which row, which field, which value, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Rows = NDArray[np.int64]
MAX_SHOWN = 200
FAULT_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("field", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class Reason(StrEnum):
    """Why a row was put aside; stable words for programs, `detail` carries the sentence."""

    MISSING = "missing"
    NOT_AN_INTEGER = "not_an_integer"
    NOT_A_NUMBER = "not_a_number"
    NOT_FINITE = "not_finite"
    NOT_A_FLAG = "not_a_flag"
    NOT_A_TIMESTAMP = "not_a_timestamp"
    NOT_TEXT = "not_text"
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    BELOW_MINIMUM = "below_minimum"
    ABOVE_MAXIMUM = "above_maximum"
    NOT_ALLOWED = "not_allowed"
    DUPLICATE_KEY = "duplicate_key"
    BROKEN_LINE = "broken_line"
    NOT_UTF8 = "not_utf8"


def fault_rows(
    rows: Rows, field: str, values: Any, reason: Reason, detail: str | Sequence[str] | None = None
) -> pa.Table:
    """`[n]` row numbers (1-based data rows of the source) and values as a table of faults."""
    size = len(rows)
    shown = pc.utf8_slice_codeunits(pc.cast(pa.array(values), pa.string()), 0, MAX_SHOWN)
    details = [detail] * size if detail is None or isinstance(detail, str) else list(detail)
    columns = [
        pa.array(rows, pa.int64()),
        pa.array([field] * size, pa.string()),
        shown,
        pa.array([reason.value] * size, pa.string()),
        pa.array(details, pa.string()),
    ]
    return pa.table(columns, schema=FAULT_SCHEMA)


def join_faults(tables: Iterable[pa.Table]) -> pa.Table:
    """All faults in one table, ordered by row."""
    joined = pa.concat_tables([FAULT_SCHEMA.empty_table(), *tables])
    return joined.sort_by([("row", "ascending")]).combine_chunks()


@dataclass(frozen=True, slots=True)
class FaultCount:
    """How often one field was at fault for one reason."""

    field: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class TableReport:
    """What became of the rows of one source table: rows_read = accepted + quarantined.

    A row with several faults counts once in `quarantined` and once per fault in `faults`.
    quarantine: where the faults were written, None if there were none or no place was given.
    """

    table: str
    source: str
    rows_read: int
    accepted: int
    quarantined: int
    faults: tuple[FaultCount, ...] = ()
    quarantine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "faults": [asdict(fault) for fault in self.faults]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TableReport:
        """The inverse of `to_dict`."""
        return cls(**{**data, "faults": tuple(FaultCount(**fault) for fault in data["faults"])})


def count_faults(faults: pa.Table) -> tuple[FaultCount, ...]:
    """Faults by field and reason, the most frequent first."""
    groups = faults.group_by(["field", "reason"]).aggregate([("row", "count")])
    ordered = groups.sort_by([("row_count", "descending"), ("field", "ascending"), ("reason", "ascending")])
    return tuple(FaultCount(g["field"], g["reason"], g["row_count"]) for g in ordered.to_pylist())
