"""Settings of planning in a model of a log, apart so that they can be had without what they are for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Of the algorithm `model`.

    members: of the ensemble. hidden, steps: widths and at most so many steps of each member's network.
    penalty: what a day's reward loses per unit of disagreement, in standard deviations of the logged daily
    rewards. effective: so many held-out episodes are to stay effective when the policy is judged; the fewer,
    the further it may go from the running one, and the wider the interval. imitation: steps before planning.
    """

    members: int = 5
    hidden: tuple[int, ...] = (64, 64)
    steps: int = 1_500
    penalty: float = 2.0
    effective: float = 100.0
    imitation: int = 300

    def __post_init__(self) -> None:
        if self.members < 2:
            raise ValueError(f"members: {self.members} cannot disagree; use 2 or more")
        for name in ("steps", "imitation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is less than 1")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden: {self.hidden} must name the width of one layer or more")
        if not 0 <= self.penalty < np.inf:
            raise ValueError(f"penalty: {self.penalty} is not a number of 0 or more")
        if not 0 < self.effective < np.inf:
            raise ValueError(f"effective: {self.effective} is not a positive number")
