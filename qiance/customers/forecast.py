"""From a corrected chance of buying and a corrected count to whole distributions. U users, D days, M
points."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv

from qiance.customers.history import History
from qiance.customers.process import BuyingProcess, Posterior
from qiance.customers.spend import SpendModel

Floats = NDArray[np.float64]
CONFIDENCE = 0.9
POINTS = 256
_GOLDEN = (5**0.5 - 1) / 2
_TURNS = 40
_CLOSE = 1e-7
_NEVER = 1e-12
_STEEPEST = 40.0
_CHUNK = 2_048


@dataclass(frozen=True)
class Forecast:
    """Over the next `horizon` days from a cutoff, `[U]` each.

    churn: P(no purchase within the horizon). alive: P(not gone for good at the cutoff), by the buying
    process.
    purchases: expected number of days with a purchase; purchases_median. value: expected value, minor units,
    with median and 90 % interval of what will be spent. next_median, next_low, next_high: days to the next
    purchase (median, 5th and 95th percentile), inf where that lies beyond the horizon or never comes.
    within: `[U, D]` P(the next purchase comes by day d), d = 1 … D = horizon.
    """

    user_ids: NDArray[np.str_]
    horizon: int
    churn: Floats
    alive: Floats
    purchases: Floats
    purchases_median: Floats
    value: Floats
    value_median: Floats
    value_low: Floats
    value_high: Floats
    next_median: Floats
    next_low: Floats
    next_high: Floats
    within: Floats

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class Corrected:
    """`[U]` each: churn P(no purchase), excess: expected purchases after the first of those who buy, above
    0."""

    churn: Floats
    excess: Floats

    @property
    def purchases(self) -> Floats:
        """Expected number of purchases."""
        return np.asarray((1 - self.churn) * (1 + self.excess))


@dataclass(frozen=True)
class Forecaster:
    """process, spend: see there. horizon: days. level: of the interval of values, at least 0.9, widened until
    90 % of held-out customers lay within."""

    process: BuyingProcess
    spend: SpendModel
    horizon: int
    level: float = CONFIDENCE

    def forecast(self, history: History, posterior: Posterior, corrected: Corrected) -> Forecast:
        """Everything at once; see `Forecast`."""
        within = self.within(posterior, corrected.churn)
        draws, counts = self.draws(history, posterior, corrected)
        low, high = (np.quantile(draws, (1 + side * self.level) / 2, axis=1) for side in (-1, 1))
        tail = (1 - CONFIDENCE) / 2
        # A mean beyond the interval would be read as a fault: of heavy tails it can be one.
        mean = corrected.purchases * self.spend.mean(history)
        return Forecast(
            user_ids=history.user_ids,
            horizon=self.horizon,
            churn=corrected.churn,
            alive=posterior.alive.sum(axis=1),
            purchases=corrected.purchases,
            purchases_median=np.quantile(counts, 0.5, axis=1, method="inverted_cdf"),
            value=mean,
            value_median=np.median(draws, axis=1),
            value_low=np.minimum(low, mean),
            value_high=np.maximum(high, mean),
            next_median=days_until(within, 0.5),
            next_low=days_until(within, tail),
            next_high=days_until(within, 1 - tail),
            within=within,
        )

    def within(self, posterior: Posterior, churn: Floats) -> Floats:
        """`[U, D]` P(next purchase by day d): the process says when, `churn` whether within the horizon."""
        curve = self.process.next_within(posterior, np.arange(1.0, self.horizon + 1))
        return np.asarray(curve / curve[:, -1:] * (1 - churn)[:, None])

    def draws(self, history: History, posterior: Posterior, corrected: Corrected) -> tuple[Floats, Floats]:
        """`[U, M]` values and purchases at the same M evenly spread points for everybody: nothing is
        random."""
        chance, luck = points()
        counts: Floats = np.zeros((len(history), POINTS))
        values: Floats = np.zeros((len(history), POINTS))
        mean = self.spend.mean(history)[:, None]
        for low in range(0, len(history), _CHUNK):
            part = slice(low, low + _CHUNK)
            some = Posterior(posterior.alive[part])
            given = tilted(self.process.count_given_any(some, self.horizon), corrected.excess[part])
            counts[part] = _counts(given, corrected.churn[part], chance)
        shape = self.spend.shape(history, counts)
        scale = counts * mean / shape
        buys = counts > 0
        values[buys] = (gammaincinv(shape, np.broadcast_to(luck, shape.shape)) * scale)[buys]
        return values, counts


def points() -> tuple[Floats, Floats]:
    """`[M]` twice: points of the unit square, spread evenly by the golden ratio (a Fibonacci lattice)."""
    place = np.arange(POINTS, dtype=np.float64)
    return (place + 0.5) / POINTS, np.asarray((place * _GOLDEN + 0.5) % 1)


def tilted(given: Floats, excess: Floats) -> Floats:
    """`[U, D]` P(n | n ≥ 1) ∝ given(n) · exp(θ n), θ chosen so that its mean is 1 + excess `[U]`.

    Of all distributions with that mean it is the closest to `given` (Csiszár, 1975). θ by Newton's method,
    kept between bounds that close in; what nobody does (below 1e-12) is left out while it is sought.
    """
    reach = int(np.flatnonzero(given.max(axis=0) > _NEVER).max(initial=1)) + 1
    seen = min(max(reach, int(4 * excess.max(initial=0.0)) + 10), given.shape[1])
    with np.errstate(divide="ignore"):
        score = np.log(given[:, :seen])
    steps = np.arange(float(seen))
    low, high = np.full(len(given), -_STEEPEST), np.full(len(given), _STEEPEST)
    theta = np.zeros(len(given))
    for _ in range(_TURNS):
        chances = _tilt(score, theta)
        mean = chances @ steps
        if np.all(np.abs(mean - excess) <= _CLOSE * (1 + excess)):
            break
        low, high = np.where(mean > excess, low, theta), np.where(mean > excess, theta, high)
        step = theta - (mean - excess) / np.maximum(chances @ steps**2 - mean**2, _NEVER)
        theta = np.where((step > low) & (step < high), step, (low + high) / 2)
    found = np.zeros_like(given)
    found[:, :seen] = _tilt(score, theta)
    return found


def _tilt(score: Floats, theta: Floats) -> Floats:
    tilted_score = score + np.outer(theta, np.arange(score.shape[1]))
    chances = np.exp(tilted_score - tilted_score.max(axis=1, keepdims=True))
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def _counts(given: Floats, churn: Floats, chance: Floats) -> Floats:
    """`[U, M]` purchases where the distribution function passes `chance`."""
    found = np.zeros((len(given), len(chance)))
    total = np.cumsum(given, axis=1)
    for row, (steps, none) in enumerate(zip(total, churn, strict=True)):
        buys = chance > none
        found[row, buys] = 1 + np.searchsorted(steps, (chance[buys] - none) / max(1 - none, 1e-12))
    return np.minimum(found, given.shape[1])


def days_until(within: Floats, share: float) -> Floats:
    """`[U]` first day by which the next purchase has come with probability `share`; inf if beyond the
    last."""
    reached = within >= share
    return np.where(reached[:, -1], reached.argmax(axis=1) + 1.0, np.inf)


def joined(parts: list[Forecast]) -> Forecast:
    """Forecasts of different users as one."""
    names = [f.name for f in fields(Forecast) if f.name != "horizon"]
    together = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Forecast(**together, horizon=parts[0].horizon)
