"""What a shop earns by an order, from what its log holds: sales, and the offer that was made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]


def order_margin(
    sales: Numbers, depth: Numbers, paid: Numbers, unit_cost: Numbers, basket_rate: float
) -> NDArray[np.int64]:
    """Margin `[n]` that is booked for orders of `sales` after a choice: the offered item at its own cost.

    sales: `[n]` minor units, 0 without an order. depth: `[n]` of the offer, 0 without one; paid, unit_cost:
    `[n]` price of the offered item after the offer and what it cost, minor units. basket_rate: margin of all
    else as a fraction of its sales. The offered item is in every order that followed an offer.
    """
    offered = (depth > 0) & (sales > 0)
    item = np.where(offered, paid, 0.0)
    rest = np.maximum(sales - item, 0.0)
    earned = np.where(offered, item - unit_cost, 0.0) + rest * basket_rate
    return np.rint(np.where(sales > 0, earned, 0.0)).astype(np.int64)
