"""The point-in-time join on plain arrays: for each row, the newest version of its key that was known then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Array = npt.NDArray[Any]
NOT_FOUND = -1


def nanoseconds(times: pa.ChunkedArray | pa.Array) -> tuple[Array, Array]:
    """Time stamps as nanoseconds since the epoch `[N]` (naive ones are UTC), and which are there `[N]`."""
    column = times.cast(pa.timestamp("ns", "UTC")).cast(pa.int64())
    return np.asarray(pc.fill_null(column, 0)), np.asarray(pc.is_valid(times))


def latest_known(
    left_keys: Sequence[pa.ChunkedArray],
    at: pa.ChunkedArray,
    right_keys: Sequence[pa.ChunkedArray],
    moments: pa.ChunkedArray,
    created: pa.ChunkedArray | None = None,
    ttl_ns: int | None = None,
) -> Array:
    """For each of L rows the place in R versions of what was known of its keys at `at`; int64 `[L]`.

    That is the version with the same keys and the largest moment in [at − ttl, at]; of several at the same
    moment the one created last, then the last in order. NOT_FOUND where there is none, where a key of the row
    is null or where `at` is null. Without keys every version is of the same thing.
    """
    size = len(at)
    left, right = nanoseconds(at), nanoseconds(moments)
    codes, complete = _codes(left_keys, right_keys, size + len(moments))
    times = np.concatenate([left[0], right[0]])
    usable = complete & np.concatenate([left[1], right[1]])
    made = np.zeros(len(times), dtype=np.int64)
    if created is not None:
        made[size:] = np.where(*_valid_or_first(created))
    is_row = np.arange(len(times)) < size
    order = np.lexsort((made, is_row, times, codes))
    order = order[usable[order]]
    place = np.arange(len(order))
    newest = np.maximum.accumulate(np.where(is_row[order], NOT_FOUND, place))
    rows = np.flatnonzero(is_row[order] & (newest >= 0))
    row, version = order[rows], order[newest[rows]]
    same = codes[row] == codes[version]
    if ttl_ns:
        same &= times[row] - times[version] <= ttl_ns
    found = np.full(size, NOT_FOUND, dtype=np.int64)
    found[row[same]] = version[same] - size
    return found


def _valid_or_first(created: pa.ChunkedArray) -> tuple[Array, Array, Array]:
    """Condition and branches: a version without a time of creation comes before those with one."""
    times, valid = nanoseconds(created)
    return valid, times, np.full(len(times), np.iinfo(np.int64).min)


def _codes(
    left: Sequence[pa.ChunkedArray], right: Sequence[pa.ChunkedArray], size: int
) -> tuple[Array, Array]:
    """A number per combination of keys `[L + R]`, and whether all keys are there."""
    codes, complete = np.zeros(size, dtype=np.int64), np.ones(size, dtype=np.bool_)
    for mine, theirs in zip(left, right, strict=True):
        column = pa.chunked_array([*_chunks(mine), *_chunks(theirs)]).combine_chunks()
        encoded = column.dictionary_encode()
        complete &= np.asarray(pc.is_valid(column))
        own = np.asarray(pc.fill_null(encoded.indices, 0)).astype(np.int64)
        # Dense again after each key, so that the product never overflows.
        _, codes = np.unique(codes * (len(encoded.dictionary) + 1) + own, return_inverse=True)
    return codes, complete


def _chunks(column: pa.ChunkedArray | pa.Array) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]
