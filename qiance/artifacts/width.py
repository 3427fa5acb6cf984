"""Factors on the spread of the heads: by segment, and whether there were groups enough to fit them on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GROUP = 500  # rows of a group that a factor is fitted on
CONFIDENCE = 0.9


def enough_groups(groups: int, confidence: float = CONFIDENCE) -> bool:
    """Whether the conformal rank ⌈c (G + 1)⌉ is one of G groups: at 90 % from nine on.

    With fewer no factor covers a further group that often, whatever it was fitted on (Lei et al., 2018).
    """
    return math.ceil(confidence * (groups + 1)) <= groups


@dataclass(frozen=True, slots=True)
class WidthScale:
    """Factors of one model.

    marginal: for groups of any rows. segments: for groups of one segment, of those with enough groups of
    their own. groups: how many groups without a common row `marginal` rests on; None of models from before
    they were counted.
    """

    marginal: float
    segments: Mapping[str, float] = field(default_factory=dict)
    groups: int | None = None

    def of_rows(self, segments: NDArray[Any] | None, count: int) -> Floats:
        """`[count]` factor of each row: its segment's, where it has one."""
        found = np.full(count, self.marginal)
        if segments is not None:
            for name, scale in self.segments.items():
                found[np.asarray(segments) == name] = scale
        return found

    def of_group(self, segments: NDArray[Any] | None) -> float:
        """Of the mean over some rows: their segment's, where all are of one that has it."""
        if segments is None or not len(segments) or np.any(segments != segments[0]):
            return self.marginal
        return self.segments.get(str(segments[0]), self.marginal)

    @property
    def doubt(self) -> str | None:
        """Why they may not be called 90 % intervals; None where they may, or where it is not known."""
        if self.groups is None or enough_groups(self.groups):
            return None
        rest = "one group" if self.groups == 1 else f"{self.groups} groups without a common row"
        return f"the width of 90 % intervals rests on {rest}; nine of {GROUP} rows are needed to count on it"
