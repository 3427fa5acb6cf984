"""Hard floors, in integer arithmetic: no action may sell below its margin floor."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.evaluate.arrays import BoolArray, IndexArray

_PARTS = 1_000_000
# price · parts must stay inside int64.
_MAX_PRICE = 10**12


def discounted_price(price: ArrayLike, depth: ArrayLike) -> IndexArray:
    """Price after a discount, minor units, rounded down: ⌊price · (1 − depth)⌋.

    price: integers, 1 to 10¹² minor units. depth: fractions in [0, 1); the decimal as written counts (0.1 is
    one tenth), and more than six decimals are rounded up. The arguments broadcast.
    """
    full = _minor("price", price, least=1)
    off = _parts_per_million("depth", depth)
    return np.asarray(full * (_PARTS - off) // _PARTS, dtype=np.int64)


def margin_floor_mask(
    price: ArrayLike, unit_cost: ArrayLike, depth: ArrayLike, min_margin: float
) -> BoolArray:
    """True where the discounted price keeps its margin: p − c ≥ min_margin · p, with p = `discounted_price`.

    price, unit_cost: integer minor units per unit. depth: fractions in [0, 1). min_margin: fraction of the
    discounted price in [0, 1). The arguments broadcast, e.g. `[A]` or `[U, A]`. Rounding always goes against
    the action, so that the exact price keeps the floor too. An action that would be given away (p = 0) is
    refused. Control sells nothing: set its column to True afterwards.
    """
    paid = discounted_price(price, depth)
    goods = _minor("unit_cost", unit_cost, least=0)
    floor = int(_parts_per_million("min_margin", min_margin))
    return np.asarray((paid >= 1) & ((paid - goods) * _PARTS >= floor * paid), dtype=np.bool_)


def _minor(name: str, values: ArrayLike, least: int) -> IndexArray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: dtype is {array.dtype}; must be integer minor units, never a float")
    bad = (array < least) | (array > _MAX_PRICE)
    if bad.any():
        value = array[bad].flat[0]
        raise ValueError(f"{name}: {value} is outside [{least}, {_MAX_PRICE}] minor units")
    return array.astype(np.int64)


def _parts_per_million(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """Fractions in [0, 1) as parts per million, rounded up from their shortest decimal."""
    array = np.asarray(values, dtype=np.float64)
    bad = ~((array >= 0) & (array < 1))
    if bad.any():
        raise ValueError(f"{name}: {array[bad].flat[0]} is outside [0, 1)")
    distinct, where = np.unique(array, return_inverse=True)
    parts = [int((Decimal(repr(float(x))) * _PARTS).to_integral_value(ROUND_CEILING)) for x in distinct]
    return np.asarray(parts, dtype=np.int64)[where].reshape(array.shape)
