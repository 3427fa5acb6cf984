"""Predicted outcomes of users × actions, with the draws that intervals come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.domain.action import Action, Effect, Interval

Draws = NDArray[np.float32]
# What the fields of `Effect` can be: rates, sales, and margins.
_BOUNDS = ((0.0, 0.0, 0.0, -np.inf, -np.inf), (1.0, 1.0, np.inf, np.inf, np.inf))


@dataclass(frozen=True)
class GridPrediction:
    """Predictions for U users × A actions by H bootstrap heads, each `[U, A, H]` float32.

    click, conversion: probabilities per contact within the outcome window.
    sales, margin: expected minor units; margin is after goods and discount, before contact cost.
    control_margin: `[U, H]`, margin of doing nothing to the same users.
    contact_cost: `[A]` minor units; width_scale: factor by which the spread of the heads is widened so that
    intervals of group means cover as stated (fitted on validation groups), one or `[A]`.
    """

    click: Draws
    conversion: Draws
    sales: Draws
    margin: Draws
    control_margin: Draws
    contact_cost: NDArray[np.float32]
    width_scale: float | NDArray[np.float64] = 1.0

    def uplift(self) -> Draws:
        """Incremental margin over control after contact cost, minor units, `[U, A, H]`."""
        net = self.margin - self.contact_cost[None, :, None]
        return (net - self.control_margin[:, None, :]).astype(np.float32)

    def summarise(
        self, action: int, mask: NDArray[np.bool_] | None = None, confidence: float = 0.9
    ) -> Effect:
        """Mean effect of action number `action` over the users where `mask` (everybody if None)."""
        rows = slice(None) if mask is None else mask
        net = self.margin[:, action] - self.contact_cost[action]
        draws = (self.click[:, action], self.conversion[:, action], self.sales[:, action], net)
        means = [d[rows].mean(axis=0) for d in (*draws, net - self.control_margin)]
        return self._effects(np.stack(means)[:, None], self._scales(np.array([action])), confidence)[0]

    def effect_on(self, user: int, action: int, confidence: float = 0.9) -> Effect:
        """Effect of action number `action` on user number `user` alone."""
        return self.effects_on([user], [action], confidence)[0]

    def effects_on(
        self,
        users: Sequence[int],
        actions: Sequence[int],
        confidence: float = 0.9,
        unknown: NDArray[np.float64] | None = None,
    ) -> list[Effect]:
        """Effects of `[n]` actions on as many users, each on the user of the same place.

        unknown: `[5, n]` variance, in the order of the fields of `Effect`, of what is not known of the user
        or the item; it widens the interval.
        """
        at = np.asarray(users, dtype=np.int64), np.asarray(actions, dtype=np.int64)
        net = self.margin[at] - self.contact_cost[at[1]][:, None]
        draws = (self.click[at], self.conversion[at], self.sales[at], net, net - self.control_margin[at[0]])
        return self._effects(np.stack(draws), self._scales(at[1]), confidence, unknown)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`[5, U, A]` means over the heads and squares of their widened spread, in the order of the fields of
        `Effect`."""
        net = self.margin - self.contact_cost[None, :, None]
        draws = (self.click, self.conversion, self.sales, net, self.uplift())
        means = np.stack([part.mean(axis=2, dtype=np.float64) for part in draws])
        spread = np.stack([_spread(part) for part in draws]).astype(np.float64)
        return means, (self.width_scale * spread) ** 2

    def _scales(self, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[n]` factors of as many actions."""
        return np.broadcast_to(self.width_scale, self.contact_cost.shape)[actions]

    def _effects(
        self,
        draws: Draws,
        scales: NDArray[np.float64],
        confidence: float,
        unknown: NDArray[np.float64] | None = None,
    ) -> list[Effect]:
        """From `[5, n, H]` head means, in the order of the fields of `Effect`, and `[n]` scales."""
        values = draws.mean(axis=2).T.tolist()
        half = _half_width(draws, scales, confidence)
        if unknown is not None:
            # Errors of the model and what is not known of the user are independent: variances add up.
            half = np.hypot(half, _normal_quantile(confidence) * np.sqrt(unknown))
        halves = half.T.tolist()
        return [
            Effect(*(_interval(*part) for part in zip(value, half, *_BOUNDS, strict=True)))
            for value, half in zip(values, halves, strict=True)
        ]


def intervals_of(
    draws: NDArray[np.floating],
    scale: float | NDArray[np.float64],
    confidence: float,
    low: float,
    high: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds `[n]` as `interval_of` gives them for each row of `[n, H]`; scale: one or `[n]`."""
    mean, half = draws.mean(axis=1), _half_width(draws, scale, confidence)
    return np.clip(mean - half, low, high), np.clip(mean + half, low, high)


def interval_of(
    draws: NDArray[np.floating], scale: float, confidence: float, low: float = -np.inf, high: float = np.inf
) -> Interval:
    """Student-t interval around the mean of `[H]` head means, widened by `scale`, clipped to [low, high]."""
    return _interval(float(draws.mean()), float(_half_width(draws, scale, confidence)), low, high)


def _interval(value: float, half: float, low: float, high: float) -> Interval:
    return Interval(*(min(max(bound, low), high) for bound in (value, value - half, value + half)))


def _half_width(
    draws: NDArray[np.floating], scale: float | NDArray[np.float64], confidence: float
) -> NDArray[Any]:
    """Half of the interval's width for `[..., H]` head means; 0 where there is one head only."""
    degrees = max(draws.shape[-1] - 1, 1)
    return np.asarray(_student_quantile(confidence, degrees) * scale * _spread(draws))


def _spread(draws: NDArray[np.floating]) -> NDArray[Any]:
    """Standard deviation over the heads; 0 where there is one only."""
    return draws.std(axis=-1, ddof=1) if draws.shape[-1] > 1 else np.zeros(draws.shape[:-1])


@lru_cache(maxsize=64)
def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


@lru_cache(maxsize=64)
def _student_quantile(confidence: float, degrees: int) -> float:
    # Imported here, and not scipy.stats, which takes a second: most processes that know the domain never
    # need it.
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))


class EffectPredictor(Protocol):
    """Whatever predicts effects: the served model, a local one, or the market's truth."""

    def predict(self, user_ids: Sequence[str], actions: Sequence[Action]) -> GridPrediction:
        """Predictions for every user × action; unknown users get population defaults."""
        ...
