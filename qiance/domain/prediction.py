"""Predicted outcomes of users × actions, with the draws that intervals come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.domain.action import Action, Effect, Interval

Draws = NDArray[np.float32]


@dataclass(frozen=True)
class GridPrediction:
    """Predictions for U users × A actions by H bootstrap heads, each `[U, A, H]` float32.

    click, conversion: probabilities per contact within the outcome window.
    sales, margin: expected minor units; margin is after goods and discount, before contact cost.
    control_margin: `[U, H]`, margin of doing nothing to the same users.
    contact_cost: `[A]` minor units; width_scale: factor by which the spread of the heads is
    widened so that intervals of group means cover as stated (fitted on validation groups).
    """

    click: Draws
    conversion: Draws
    sales: Draws
    margin: Draws
    control_margin: Draws
    contact_cost: NDArray[np.float32]
    width_scale: float = 1.0

    def uplift(self) -> Draws:
        """Incremental margin over control after contact cost, minor units, `[U, A, H]`."""
        net = self.margin - self.contact_cost[None, :, None]
        return (net - self.control_margin[:, None, :]).astype(np.float32)

    def summarise(
        self, action: int, mask: NDArray[np.bool_] | None = None, confidence: float = 0.9
    ) -> Effect:
        """Mean effect of action number `action` over the users where `mask` (everybody if None)."""
        rows = slice(None) if mask is None else mask
        cost = self.contact_cost[action]

        def mean(draws: Draws, low: float = -np.inf, high: float = np.inf) -> Interval:
            return interval_of(draws[rows].mean(axis=0), self.width_scale, confidence, low, high)

        return Effect(
            ctr=mean(self.click[:, action], 0.0, 1.0),
            cvr=mean(self.conversion[:, action], 0.0, 1.0),
            sales=mean(self.sales[:, action], 0.0),
            margin=mean(self.margin[:, action] - cost),
            uplift=mean(self.margin[:, action] - cost - self.control_margin),
        )


def interval_of(
    draws: NDArray[np.floating], scale: float, confidence: float, low: float = -np.inf, high: float = np.inf
) -> Interval:
    """Student-t interval around the mean of `[H]` head means, widened by `scale`, clipped to [low, high]."""
    value = float(draws.mean())
    spread = float(draws.std(ddof=1)) if draws.size > 1 else 0.0
    half = _student_quantile(confidence, max(draws.size - 1, 1)) * scale * spread
    bounded = np.clip([value, value - half, value + half], low, high)
    return Interval(*(float(x) for x in bounded))


@lru_cache(maxsize=64)
def _student_quantile(confidence: float, degrees: int) -> float:
    # Imported here: scipy.stats takes a second, and most processes that know the domain never need it.
    from scipy import stats

    return float(stats.t.ppf(0.5 + confidence / 2, degrees))


class EffectPredictor(Protocol):
    """Whatever predicts effects: the served model, a local one, or the market's truth."""

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions for every user × action; unknown users get population defaults."""
        ...
