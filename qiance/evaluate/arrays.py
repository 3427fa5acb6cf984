"""Checks of array arguments; every refusal names the array, the row and the value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def refuse_where(name: str, array: NDArray[Any], bad: BoolArray, must: str) -> None:
    """Raise ValueError for the first True of `bad` (same shape as `array`), e.g. `cost: row 3, column 1 is
    -2.0; must be ≥ 0`; does nothing where there is none."""
    if not bad.any():
        return
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
    words = {1: ("row",), 2: ("row", "column"), 3: ("constraint", "row", "column")}[len(place)]
    where = ", ".join(f"{word} {index}" for word, index in zip(words, place, strict=True))
    others = int(np.count_nonzero(bad)) - 1
    more = f" ({others} more like it)" if others else ""
    raise ValueError(f"{name}: {where} is {array[place]}; {must}{more}")


def _numeric(name: str, values: ArrayLike, ndim: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: dtype {array.dtype} is not numeric; pass an array of numbers")
    if array.ndim != ndim:
        raise ValueError(f"{name}: has shape {array.shape}; must have {ndim} dimension{'s' * (ndim > 1)}")
    if array.size == 0:
        raise ValueError(f"{name}: is empty (shape {array.shape}); at least one row is needed")
    return array


def _same_rows(name: str, array: NDArray[Any], rows: int | None) -> None:
    if rows is not None and array.shape[0] != rows:
        raise ValueError(f"{name}: has {array.shape[0]} rows; must have {rows}, one per row of the others")


def finite_vector(name: str, values: ArrayLike, rows: int | None = None) -> FloatArray:
    """`values` as `[n]` float64; ValueError if not 1-D, empty, of another length than `rows`, or not
    finite."""
    array = _numeric(name, values, 1)
    _same_rows(name, array, rows)
    refuse_where(name, array, ~np.isfinite(array), "must be finite: fill or drop missing values first")
    return array.astype(np.float64, copy=False)


def index_vector(name: str, values: ArrayLike, rows: int | None = None) -> IndexArray:
    """`values` as `[n]` int64; ValueError if not whole numbers ≥ 0."""
    array = _numeric(name, values, 1)
    _same_rows(name, array, rows)
    if array.dtype.kind == "f":
        refuse_where(name, array, ~(np.isfinite(array) & (array == np.rint(array))), "must be a whole number")
    refuse_where(name, array, array < 0, "must be ≥ 0: a column number, counted from 0")
    return array.astype(np.int64, copy=False)


def finite_matrix(name: str, values: ArrayLike, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """`values` as a finite 2-D array of float32 or float64, of `shape` if given; integers become float64."""
    array = _numeric(name, values, 2)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: has shape {array.shape}; must be {shape}")
    refuse_where(name, array, ~np.isfinite(array), "must be finite")
    keep = array.dtype in (np.float32, np.float64)
    return array if keep else array.astype(np.float64)


def mask_matrix(name: str, values: ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    """`values` as a bool array of `shape`; other dtypes are refused, for 0.5 is not an answer."""
    array = np.asarray(values)
    if array.dtype != np.bool_:
        raise ValueError(f"{name}: dtype is {array.dtype}; must be bool")
    if array.shape != shape:
        raise ValueError(f"{name}: has shape {array.shape}; must be {shape}")
    return array


def fraction(
    name: str, value: float, *, low: float = 0.0, high: float = 1.0, open_ends: bool = False
) -> float:
    """`value` as a float within [low, high] (within (low, high) when `open_ends`), else ValueError."""
    inside = low < value < high if open_ends else low <= value <= high
    if not inside:
        brackets = "()" if open_ends else "[]"
        raise ValueError(f"{name}: {value} is outside {brackets[0]}{low:g}, {high:g}{brackets[1]}")
    return float(value)
