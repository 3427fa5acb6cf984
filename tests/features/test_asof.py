"""The point-in-time join on arrays against a plain loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qiance.features.asof import NOT_FOUND, latest_known, nanoseconds

EPOCH = datetime(2017, 1, 1, tzinfo=UTC)
KEY = st.sampled_from(["a", "b", "c", None])
SECOND = st.integers(0, 6)
ROW = st.tuples(KEY, st.integers(0, 2), st.none() | SECOND)
VERSION = st.tuples(KEY, st.integers(0, 2), st.none() | SECOND, st.none() | SECOND)
Cell = str | int | None


def moments(seconds: list[int | None]) -> pa.ChunkedArray:
    values = [None if second is None else EPOCH + timedelta(seconds=second) for second in seconds]
    return pa.chunked_array([pa.array(values, pa.timestamp("us", "UTC"))])


def strings(values: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


def numbers(values: list[int]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.int64())])


def by_loop(row: tuple[Cell, ...], versions: list[tuple[Cell, ...]], ttl: int | None) -> int:
    best, found = (-1, -1, -1), NOT_FOUND
    for place, (key, number, moment, created) in enumerate(versions):
        if row[0] is None or row[2] is None or moment is None or (key, number) != row[:2]:
            continue
        if moment > row[2] or (ttl and row[2] - moment > ttl):
            continue
        rank = (moment, -1 if created is None else created, place)
        if rank > best:
            best, found = rank, place
    return found


@settings(deadline=None)
@given(st.lists(ROW, max_size=12), st.lists(VERSION, max_size=12), st.none() | st.integers(1, 4))
def test_each_row_finds_what_a_loop_finds(
    rows: list[tuple[Cell, ...]], versions: list[tuple[Cell, ...]], ttl: int | None
) -> None:
    left = list(zip(*rows, strict=True)) or [(), (), ()]
    right = list(zip(*versions, strict=True)) or [(), (), (), ()]
    found = latest_known(
        [strings(list(left[0])), numbers(list(left[1]))],
        moments(list(left[2])),
        [strings(list(right[0])), numbers(list(right[1]))],
        moments(list(right[2])),
        moments(list(right[3])),
        ttl * 10**9 if ttl else None,
    )
    assert found.tolist() == [by_loop(row, versions, ttl) for row in rows]


def test_without_keys_all_versions_are_of_one_thing() -> None:
    assert latest_known([], moments([5, 0, 1]), [], moments([4, 1])).tolist() == [0, NOT_FOUND, 1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parts_of_a_second_count(unit: str) -> None:
    at = pa.chunked_array([pa.array([1_000, 999], pa.timestamp("ns", "UTC"))])
    known = pa.chunked_array([pa.array([1_000], pa.timestamp("ns", "UTC"))])
    assert latest_known([], at, [], known).tolist() == [0, NOT_FOUND]
    values, valid = nanoseconds(pa.array([3, None], pa.timestamp(unit)))
    assert values[0] == 3 * {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    np.testing.assert_array_equal(valid, [True, False])
