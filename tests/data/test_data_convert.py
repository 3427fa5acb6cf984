"""Typed reading of columns: what passes, what is at fault, and for which reason."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qiance.data.convert import Column, Kind, convert
from qiance.data.faults import Reason
from qiance.domain import Money

UTC = dt.UTC


def read(values: list[object], kind: Kind, source: pa.DataType | None = None, **options: object) -> tuple:
    column = Column("c", "c", kind, required=False, **options)  # type: ignore[arg-type]
    converted = convert(pa.array(values, source or pa.string()), column)
    reasons = {row: reason for reason, bad in converted.faults for row in bad.nonzero()[0].tolist()}
    return converted.values.to_pylist(), reasons


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (Kind.INTEGER, "1.5", Reason.NOT_AN_INTEGER),
        (Kind.INTEGER, "1e3", Reason.NOT_AN_INTEGER),
        (Kind.INTEGER, "12 apples", Reason.NOT_AN_INTEGER),
        (Kind.INTEGER, "--1", Reason.NOT_AN_INTEGER),
        (Kind.INTEGER, "1_000", Reason.NOT_AN_INTEGER),
        (Kind.INTEGER, "9" * 19, Reason.TOO_LARGE),
        (Kind.INTEGER, "NaN", Reason.NOT_FINITE),
        (Kind.NUMBER, "1,5", Reason.NOT_A_NUMBER),
        (Kind.NUMBER, "0x10", Reason.NOT_A_NUMBER),
        (Kind.NUMBER, ".", Reason.NOT_A_NUMBER),
        (Kind.NUMBER, "nan", Reason.NOT_FINITE),
        (Kind.NUMBER, "-Infinity", Reason.NOT_FINITE),
        (Kind.NUMBER, "1e999", Reason.TOO_LARGE),
        (Kind.MONEY, "$5", Reason.NOT_A_NUMBER),
        (Kind.MONEY, "1e16", Reason.TOO_LARGE),
        (Kind.MONEY, "inf", Reason.NOT_FINITE),
        (Kind.FLAG, "2", Reason.NOT_A_FLAG),
        (Kind.FLAG, "yes please", Reason.NOT_A_FLAG),
        (Kind.TIMESTAMP, "2025-02-30", Reason.NOT_A_TIMESTAMP),
        (Kind.TIMESTAMP, "2025-13-01T00:00:00Z", Reason.NOT_A_TIMESTAMP),
        (Kind.TIMESTAMP, "2025-01-01T25:00:00", Reason.NOT_A_TIMESTAMP),
        (Kind.TIMESTAMP, "yesterday", Reason.NOT_A_TIMESTAMP),
        (Kind.TIMESTAMP, "9999-01-01", Reason.NOT_A_TIMESTAMP),
        (Kind.STRING, "x" * 1025, Reason.TOO_LONG),
        (Kind.STRING, "a\x00b", Reason.NOT_TEXT),
    ],
)
def test_bad_text_has_one_reason_and_no_value(kind: Kind, text: str, reason: Reason) -> None:
    values, reasons = read([text], kind)
    assert reasons == {0: reason}
    assert values == [None]


@pytest.mark.parametrize(
    ("kind", "text", "value", "options"),
    [
        (Kind.INTEGER, " +7 ", 7, {}),
        (Kind.INTEGER, "-007", -7, {}),
        (Kind.INTEGER, "3.0", 3, {}),
        (Kind.NUMBER, ".5", 0.5, {}),
        (Kind.NUMBER, "+1e-3", 0.001, {}),
        (Kind.NUMBER, "-1,25", -1.25, {"decimal": ","}),
        (Kind.MONEY, "12.30", 1230, {"scale": 100}),
        (Kind.MONEY, "0.125", 12, {"scale": 100}),
        (Kind.MONEY, "1.015", 102, {"scale": 100}),
        (Kind.FLAG, "TRUE", 1, {}),
        (Kind.FLAG, "0.0", 0, {}),
        (Kind.TIMESTAMP, "2025-03-01", dt.datetime(2025, 3, 1, tzinfo=UTC), {}),
        (Kind.TIMESTAMP, "2025-03-01T10:00:00+0200", dt.datetime(2025, 3, 1, 8, tzinfo=UTC), {}),
        (
            Kind.TIMESTAMP,
            "2025-07-01 10:00",
            dt.datetime(2025, 7, 1, 8, tzinfo=UTC),
            {"timezone": "Europe/Berlin"},
        ),
        (
            Kind.TIMESTAMP,
            "2025-07-01T10:00:00Z",
            dt.datetime(2025, 7, 1, 10, tzinfo=UTC),
            {"timezone": "Europe/Berlin"},
        ),
        # 02:30 happens twice on the night the clock goes back; the earlier one is summer time.
        (
            Kind.TIMESTAMP,
            "2025-10-26 02:30",
            dt.datetime(2025, 10, 26, 0, 30, tzinfo=UTC),
            {"timezone": "Europe/Berlin"},
        ),
        (
            Kind.TIMESTAMP,
            "2025-03-30 02:30",
            dt.datetime(2025, 3, 30, 1, 0, tzinfo=UTC),
            {"timezone": "Europe/Berlin"},
        ),
        (
            Kind.TIMESTAMP,
            "24.12.2025 18:05",
            dt.datetime(2025, 12, 24, 18, 5, tzinfo=UTC),
            {"timestamp_format": "%d.%m.%Y %H:%M"},
        ),
        (
            Kind.TIMESTAMP,
            "1735689600000",
            dt.datetime(2025, 1, 1, tzinfo=UTC),
            {"timestamp_format": "epoch_ms"},
        ),
        (Kind.STRING, "  a b ", "a b", {}),
        (Kind.NUMBER, "n/a", None, {"null_values": ("n/a",)}),
    ],
)
def test_good_text(kind: Kind, text: str, value: object, options: dict[str, object]) -> None:
    assert read([text], kind, **options) == ([value], {})


@pytest.mark.parametrize(
    ("kind", "source", "value", "expected", "reason"),
    [
        (Kind.INTEGER, pa.float64(), 3.0, 3, None),
        (Kind.INTEGER, pa.float64(), 3.5, None, Reason.NOT_AN_INTEGER),
        (Kind.INTEGER, pa.float64(), math.nan, None, Reason.NOT_FINITE),
        (Kind.INTEGER, pa.uint64(), 2**64 - 1, None, Reason.TOO_LARGE),
        (Kind.NUMBER, pa.float16(), 0.5, 0.5, None),
        (Kind.NUMBER, pa.bool_(), True, 1.0, None),
        (Kind.NUMBER, pa.date32(), dt.date(2025, 1, 1), None, Reason.NOT_A_NUMBER),
        (Kind.MONEY, pa.decimal128(9, 2), Decimal("1.05"), 105, None),
        (Kind.MONEY, pa.float32(), math.inf, None, Reason.NOT_FINITE),
        (Kind.FLAG, pa.bool_(), True, 1, None),
        (Kind.FLAG, pa.int8(), 3, None, Reason.NOT_A_FLAG),
        (Kind.STRING, pa.float64(), 12.0, "12", None),
        (Kind.STRING, pa.int64(), 12, "12", None),
        (Kind.STRING, pa.dictionary(pa.int8(), pa.string()), "a", "a", None),
        (Kind.TIMESTAMP, pa.date32(), dt.date(2025, 1, 1), dt.datetime(2025, 1, 1, tzinfo=UTC), None),
        (Kind.TIMESTAMP, pa.int64(), 1, None, Reason.NOT_A_TIMESTAMP),
    ],
)
def test_native_types(
    kind: Kind, source: pa.DataType, value: object, expected: object, reason: Reason | None
) -> None:
    scale = {"scale": 100} if kind is Kind.MONEY else {}
    assert read([value, None], kind, source, **scale) == ([expected, None], {0: reason} if reason else {})


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "source", [pa.string(), pa.float64(), pa.int64(), pa.bool_(), pa.null(), pa.time32("s")]
)
def test_a_column_without_values_is_never_at_fault(kind: Kind, source: pa.DataType) -> None:
    assert read([None, None], kind, source) == ([None, None], {})
    assert read([], kind, source) == ([], {})


def test_bounds_are_in_the_units_of_the_file() -> None:
    options = {"scale": 100, "minimum": 0, "maximum": 50}
    values, reasons = read(["-0.01", "0", "50", "50.01"], Kind.MONEY, **options)
    assert reasons == {0: Reason.BELOW_MINIMUM, 3: Reason.ABOVE_MAXIMUM}
    assert values[1:3] == [0, 5000]


def test_an_exclusive_bound_refuses_the_bound_itself() -> None:
    assert read(["0", "0.1"], Kind.NUMBER, above=0)[1] == {0: Reason.BELOW_MINIMUM}


def test_renaming_comes_before_the_allowed_values() -> None:
    values, reasons = read(["S", "buy", "x"], Kind.STRING, rename={"S": "buy"}, allowed=("buy",))
    assert values[:2] == ["buy", "buy"]
    assert reasons == {2: Reason.NOT_ALLOWED}


@given(st.decimals(-(10**9), 10**9, places=3))
def test_money_rounds_as_the_domain_does(amount: Decimal) -> None:
    values, reasons = read([f"{amount:f}"], Kind.MONEY, scale=100)
    assert not reasons
    assert values == [Money.of(f"{amount:f}").minor]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=20),
    st.sampled_from(list(Kind)),
)
def test_any_text_is_a_value_or_missing_or_at_fault(texts: list[str], kind: Kind) -> None:
    values, reasons = read(list(texts), kind)
    for row, (text, value) in enumerate(zip(texts, values, strict=True)):
        if text.strip():
            assert (value is None) == (row in reasons), (text, value, reasons)
