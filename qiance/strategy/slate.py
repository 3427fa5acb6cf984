"""A slate for one customer: of what is likely next, what brings most, and not too much of one kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def rank_slate(
    value: NDArray[np.float64], kind: Sequence[str], count: int, diversity: float = 0.3
) -> list[tuple[int, float]]:
    """Places of at most `count` items with what each adds to the slate, the largest first.

    value: `[n]` what showing the item brings by itself; items that bring nothing or less stay out. kind:
    `[n]`, e.g. categories: the k-th item of a kind adds (1 - diversity)^(k - 1) of its value, since whoever
    passed over one coffee passes over the next more likely. Within a kind these only fall when the better
    item comes first, so the `count` largest are the slate of the largest sum.
    """
    if count < 1:
        raise ValueError(f"count: {count} items are none; ask for at least 1")
    if not 0.0 <= diversity < 1.0:
        raise ValueError(f"diversity: {diversity} is outside [0, 1)")
    turns: dict[str, int] = {}
    found = []
    for place in np.argsort(-value, kind="stable").tolist():
        if not value[place] > 0:
            break
        turn = turns[kind[place]] = turns.get(kind[place], -1) + 1
        found.append((place, float(value[place]) * (1.0 - diversity) ** turn))
    return sorted(found, key=lambda one: -one[1])[:count]
