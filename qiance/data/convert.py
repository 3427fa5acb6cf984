"""From what a file holds to typed values, column by column, with a fault for every value that does not fit.

Nothing here loops over rows: text is tested by regular expressions on whole Arrow arrays and cast where
it passes, so a million rows take well under a second a column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qiance.data.faults import Reason

Bools = NDArray[np.bool_]
MAX_TEXT = 1024
MAX_DIGITS = 18
MAX_MINOR = 9e15  # whole numbers up to here are exact in a float64
_NON_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
_ISO = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?$"
_EPOCH_US = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
_EPOCH_LIMIT_US = 9_000_000_000_000_000  # the year 2255


class Kind(StrEnum):
    """Types that a column can be read as; money becomes integer minor units, a flag 0 or 1."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    MONEY = "money"
    FLAG = "flag"
    TIMESTAMP = "timestamp"


ARROW_TYPES: dict[Kind, Any] = {
    Kind.STRING: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.float64(),
    Kind.MONEY: pa.int64(),
    Kind.FLAG: pa.int8(),
    Kind.TIMESTAMP: pa.timestamp("us", "UTC"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """How one source column becomes one target column.

    name, source: target and source name; kind: target type.
    minimum, maximum: inclusive bounds in the units of the source; above: exclusive lower bound.
    allowed: admitted text values, after `rename`; empty admits all.
    scale: minor units per source unit (money only), e.g. 100 for dollars.
    timestamp_format: `iso`, `epoch_s`, `epoch_ms`, `epoch_us`, or a strptime pattern.
    timezone: IANA name for timestamps without an offset; decimal: the decimal mark in text.
    null_values: texts that mean missing, besides the empty one.
    """

    name: str
    source: str
    kind: Kind
    required: bool = True
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    allowed: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    scale: int = 1
    timestamp_format: str = "iso"
    timezone: str = "UTC"
    decimal: str = "."
    null_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Converted:
    """`[n]` values of the target type, null where missing or at fault, and who is at fault for what."""

    values: pa.Array
    faults: tuple[tuple[Reason, Bools], ...]


def mask(condition: Any) -> Bools:
    """A boolean Arrow array as numpy, null as False."""
    flat = condition.combine_chunks() if isinstance(condition, pa.ChunkedArray) else condition
    result: Bools = pc.fill_null(flat, False).to_numpy(zero_copy_only=False)
    return result


def convert(raw: Any, column: Column) -> Converted:
    """Read the source array `raw` as `column.kind`, then rename and check bounds and allowed values."""
    flat = _plain(raw, column)
    converted = _READERS[column.kind](flat, column)
    missing = mask(pc.is_null(flat))
    values, faults = converted.values, list(converted.faults)
    if column.required:
        faults.append((Reason.MISSING, missing))
    faults.extend(_bounds(values, column))
    if column.rename:
        values = _renamed(values, column.rename)
    if column.allowed:
        known = mask(pc.is_in(values, value_set=pa.array(column.allowed, pa.string())))
        faults.append((Reason.NOT_ALLOWED, ~known & mask(pc.is_valid(values))))
    return Converted(values, tuple((reason, bad) for reason, bad in faults if bad.any()))


def _plain(raw: Any, column: Column) -> Any:
    """One chunk without dictionaries; text trimmed, with the texts that mean missing as null."""
    flat = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
    if pa.types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    if (
        pa.types.is_null(flat.type)
        or pa.types.is_large_string(flat.type)
        or pa.types.is_string_view(flat.type)
    ):
        flat = flat.cast(pa.string())
    if pa.types.is_decimal(flat.type):
        exact = column.kind in (Kind.STRING, Kind.MONEY)
        flat = flat.cast(pa.string() if exact else pa.float64())
    if pa.types.is_float16(flat.type):
        flat = flat.cast(pa.float32())
    nulls = ["", *column.null_values]
    if pa.types.is_string(flat.type):
        flat = pc.utf8_trim_whitespace(flat)
        return pc.if_else(pc.is_in(flat, value_set=pa.array(nulls, pa.string())), None, flat)
    if pa.types.is_floating(flat.type) and "nan" in {text.lower() for text in nulls}:
        return pc.if_else(pc.is_nan(flat), None, flat)
    return flat


def _as_text(flat: Any) -> tuple[Any, Bools]:
    """Any scalar array as text, whole floats without their `.0`; and where a float is not finite."""
    if pa.types.is_string(flat.type):
        return flat, np.zeros(len(flat), dtype=bool)
    if not pa.types.is_floating(flat.type):
        return flat.cast(pa.string()), np.zeros(len(flat), dtype=bool)
    wild = mask(pc.invert(pc.is_finite(flat)))
    whole = pc.and_(pc.is_finite(flat), pc.less(pc.abs(flat), MAX_MINOR))
    whole = pc.and_(whole, pc.equal(pc.floor(flat), flat))
    integers = pc.if_else(whole, flat, None).cast(pa.int64()).cast(pa.string())
    return pc.if_else(wild, None, pc.coalesce(integers, flat.cast(pa.string()))), wild


def _string(flat: Any, column: Column) -> Converted:
    text, wild = _as_text(flat)
    long = mask(pc.greater(pc.utf8_length(text), MAX_TEXT))
    control = mask(pc.match_substring_regex(text, r"[\x00-\x08\x0b\x0c\x0e-\x1f]"))
    faults = ((Reason.NOT_FINITE, wild), (Reason.TOO_LONG, long), (Reason.NOT_TEXT, control & ~long))
    return Converted(pc.if_else(long | control, None, text), faults)


def _number(flat: Any, column: Column) -> Converted:
    if pa.types.is_string(flat.type):
        return _number_of_text(flat, column.decimal)
    if not _is_numeric(flat.type):
        return _all_wrong(flat, Reason.NOT_A_NUMBER, pa.float64())
    values = flat.cast(pa.int8() if pa.types.is_boolean(flat.type) else flat.type)
    values = values.cast(pa.float64(), safe=False)
    wild = mask(pc.invert(pc.is_finite(values)))
    return Converted(pc.if_else(wild, None, values), ((Reason.NOT_FINITE, wild),))


def _number_of_text(text: Any, decimal: str) -> Converted:
    point = re.escape(decimal)
    pattern = rf"^[+-]?(?:\d+(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?$"
    fits = mask(pc.match_substring_regex(text, pattern))
    wild = mask(pc.match_substring_regex(text, _NON_FINITE))
    safe = pc.utf8_ltrim(pc.if_else(fits, text, None), characters="+")
    if decimal != ".":
        safe = pc.replace_substring(safe, pattern=decimal, replacement=".")
    values = safe.cast(pa.float64())
    huge = mask(pc.invert(pc.is_finite(values)))
    wrong = mask(pc.is_valid(text)) & ~fits & ~wild
    faults = ((Reason.NOT_FINITE, wild), (Reason.TOO_LARGE, huge), (Reason.NOT_A_NUMBER, wrong))
    return Converted(pc.if_else(huge, None, values), faults)


def _integer(flat: Any, column: Column) -> Converted:
    if pa.types.is_string(flat.type):
        return _integer_of_text(flat)
    if pa.types.is_integer(flat.type):
        wide = flat.cast(pa.uint64() if pa.types.is_uint64(flat.type) else pa.int64())
        huge = mask(pc.greater_equal(wide, pa.scalar(10**MAX_DIGITS, wide.type)))
        return Converted(pc.if_else(huge, None, flat).cast(pa.int64()), ((Reason.TOO_LARGE, huge),))
    number = _number(flat, column)
    huge = mask(pc.greater(pc.abs(number.values), MAX_MINOR))
    broken = mask(pc.not_equal(pc.floor(number.values), number.values)) & ~huge
    kept = pc.if_else(huge | broken, None, number.values)
    faults = (*number.faults, (Reason.TOO_LARGE, huge), (Reason.NOT_AN_INTEGER, broken))
    return Converted(kept.cast(pa.int64()), faults)


def _integer_of_text(text: Any) -> Converted:
    fits = mask(pc.match_substring_regex(text, r"^[+-]?\d+(?:\.0*)?$"))
    wild = mask(pc.match_substring_regex(text, _NON_FINITE))
    body = pc.replace_substring_regex(pc.if_else(fits, text, None), pattern=r"\.0*$", replacement="")
    digits = pc.utf8_ltrim(body, characters="+-0")
    huge = mask(pc.greater(pc.utf8_length(digits), MAX_DIGITS))
    values = pc.utf8_ltrim(pc.if_else(huge, None, body), characters="+").cast(pa.int64())
    wrong = mask(pc.is_valid(text)) & ~fits & ~wild
    faults = ((Reason.NOT_FINITE, wild), (Reason.TOO_LARGE, huge), (Reason.NOT_AN_INTEGER, wrong))
    return Converted(values, faults)


def _money(flat: Any, column: Column) -> Converted:
    """Amount × scale as whole minor units; a half minor unit goes to the even one, as in `Money.of`."""
    number = _number(flat, column)
    scaled = pc.multiply(number.values, float(column.scale))
    huge = mask(pc.greater(pc.abs(scaled), MAX_MINOR))
    kept = pc.if_else(huge, None, scaled)
    # 1.015 × 100 is 101.49999999999999 in binary: settle the last digits before the half is judged.
    whole = pc.round(pc.round(kept, ndigits=6), ndigits=0, round_mode="half_to_even").cast(pa.int64())
    if pa.types.is_string(flat.type):
        exact = _exact_money(pc.if_else(pc.is_valid(kept), flat, None), column)
        whole = pc.coalesce(exact, whole)
    return Converted(whole, (*number.faults, (Reason.TOO_LARGE, huge)))


def _exact_money(text: Any, column: Column) -> Any:
    """Minor units by decimal arithmetic; null where the text has an exponent."""
    plain = pc.invert(pc.match_substring_regex(text, "[eE]"))
    digits = pc.utf8_ltrim(pc.if_else(plain, text, None), characters="+")
    if column.decimal != ".":
        digits = pc.replace_substring(digits, pattern=column.decimal, replacement=".")
    digits = pc.replace_substring_regex(digits, pattern=r"(\.\d{12})\d+$", replacement=r"\1")
    amount = digits.cast(pa.decimal128(31, 12))
    scaled = pc.multiply(amount, pa.scalar(column.scale, pa.decimal128(5, 0)))
    return pc.round(scaled, ndigits=0, round_mode="half_to_even").cast(pa.int64())


def _flag(flat: Any, column: Column) -> Converted:
    text, wild = _as_text(flat)
    lower = pc.utf8_lower(text)
    yes = pc.is_in(lower, value_set=pa.array(["1", "true", "1.0"]))
    no = pc.is_in(lower, value_set=pa.array(["0", "false", "0.0"]))
    wrong = mask(pc.is_valid(text)) & ~mask(yes) & ~mask(no)
    values = pc.if_else(pc.or_(yes, no), yes.cast(pa.int8()), None)
    return Converted(values, ((Reason.NOT_FINITE, wild), (Reason.NOT_A_FLAG, wrong)))


def _timestamp(flat: Any, column: Column) -> Converted:
    if column.timestamp_format in _EPOCH_US:
        return _timestamp_of_epoch(flat, column)
    if pa.types.is_date(flat.type):
        flat = flat.cast(pa.timestamp("us"))
    if pa.types.is_timestamp(flat.type):
        micros = flat.cast(pa.timestamp("us", flat.type.tz), safe=False)
        return Converted(_utc(micros.to_pandas(), column.timezone), ())
    if not pa.types.is_string(flat.type):
        return _all_wrong(flat, Reason.NOT_A_TIMESTAMP, ARROW_TYPES[Kind.TIMESTAMP])
    values = _timestamp_of_text(flat, column)
    return Converted(values, ((Reason.NOT_A_TIMESTAMP, mask(pc.is_valid(flat)) & mask(pc.is_null(values))),))


def _timestamp_of_text(text: Any, column: Column) -> Any:
    """UTC instants; pandas parses, for Arrow's strptime takes 30 February for 1 March."""
    iso = column.timestamp_format == "iso"
    kept = pc.if_else(pc.match_substring_regex(text, _ISO), text, None) if iso else text
    pattern = "ISO8601" if iso else column.timestamp_format
    parsed = pd.to_datetime(kept.to_pandas(), format=pattern, utc=True, errors="coerce")
    if iso:
        bare = ~mask(pc.match_substring_regex(kept, r"(?:Z|[+-]\d{2}:?\d{2})$"))
    else:
        bare = np.full(len(kept), "%z" not in pattern)
    if column.timezone != "UTC" and bare.any():
        parsed = parsed.where(~bare, _localise(parsed.dt.tz_localize(None), column.timezone))
    return pa.Array.from_pandas(parsed).cast(ARROW_TYPES[Kind.TIMESTAMP], safe=False)


def _timestamp_of_epoch(flat: Any, column: Column) -> Converted:
    number = _number(flat, column)
    micros = pc.multiply(number.values, float(_EPOCH_US[column.timestamp_format]))
    huge = mask(pc.greater(pc.abs(micros), float(_EPOCH_LIMIT_US)))
    values = pc.round(pc.if_else(huge, None, micros)).cast(pa.int64()).cast(ARROW_TYPES[Kind.TIMESTAMP])
    return Converted(values, (*number.faults, (Reason.TOO_LARGE, huge)))


def _utc(series: Any, timezone: str) -> Any:
    aware = series if series.dt.tz is not None else _localise(series, timezone)
    return pa.Array.from_pandas(aware).cast(ARROW_TYPES[Kind.TIMESTAMP], safe=False)


def _localise(naive: Any, timezone: str) -> Any:
    """Local wall-clock times as UTC: a time that occurs twice is the earlier, one that never is, the next."""
    first = np.ones(len(naive), dtype=bool)
    local = naive.dt.tz_localize(timezone, ambiguous=first, nonexistent="shift_forward")
    return local.dt.tz_convert("UTC")


def _bounds(values: Any, column: Column) -> list[tuple[Reason, Bools]]:
    scale = column.scale if column.kind is Kind.MONEY else 1
    faults: list[tuple[Reason, Bools]] = []
    if column.minimum is not None:
        faults.append((Reason.BELOW_MINIMUM, mask(pc.less(values, column.minimum * scale))))
    if column.above is not None:
        faults.append((Reason.BELOW_MINIMUM, mask(pc.less_equal(values, column.above * scale))))
    if column.maximum is not None:
        faults.append((Reason.ABOVE_MAXIMUM, mask(pc.greater(values, column.maximum * scale))))
    return faults


def _renamed(text: Any, rename: Mapping[str, str]) -> Any:
    index = pc.index_in(text, value_set=pa.array(list(rename), pa.string()))
    return pc.coalesce(pc.take(pa.array(list(rename.values()), pa.string()), index), text)


def _is_numeric(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _all_wrong(flat: Any, reason: Reason, target: Any) -> Converted:
    return Converted(pa.nulls(len(flat), target), ((reason, mask(pc.is_valid(flat))),))


_READERS = {
    Kind.STRING: _string,
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.MONEY: _money,
    Kind.FLAG: _flag,
    Kind.TIMESTAMP: _timestamp,
}
