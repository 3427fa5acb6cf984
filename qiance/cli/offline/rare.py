"""Intervals where responses are rare: what a handful of clicks, or none, can say.

The intervals of off-policy estimators come from the spread of the weighted responses. Where the log holds
next to no response under a policy there is next to no spread, and the interval is far too narrow: no click
in 118 decisions does not show a click rate of zero, it shows one below about 3 %. There the score interval
of a proportion, on the effective sample size, takes over. Sources: Wilson, JASA 22 (1927), 209-212;
Newcombe, Statistics in Medicine 17 (1998), 873-890 (method 10, for the difference).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy import stats

from qiance.evaluate.ope import Estimate

MIN_RESPONSES = 10.0
_RATE_WARNING = (
    "the log holds next to no responses under this policy: the interval is that of a proportion on the "
    "effective sample size"
)
_MONEY_WARNING = "the log holds next to no responses under this policy: no interval can be given"


@dataclass(frozen=True, slots=True)
class Support:
    """What the log holds under a policy.

    size: effective sample size. rate: weighted share of decisions with a response.
    """

    size: float
    rate: float

    @property
    def is_rare(self) -> bool:
        """Fewer than ten responses, or fewer than ten without one, in the effective sample."""
        return self.size * min(self.rate, 1.0 - self.rate) < MIN_RESPONSES

    def interval(self, confidence: float) -> tuple[float, float]:
        """Wilson's score interval of the rate."""
        z = float(stats.norm.ppf(0.5 + confidence / 2))
        n, p = max(self.size, 1.0), self.rate
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def widened(found: Estimate, support: Support, is_rate: bool) -> Estimate:
    """`found` with an interval that holds where responses are rare; money has none there."""
    if not support.is_rare:
        return found
    if not is_rate:
        return _replaced(found, -math.inf, math.inf, _MONEY_WARNING)
    low, high = support.interval(found.confidence)
    return _replaced(found, low, high, _RATE_WARNING)


def widened_difference(found: Estimate, policy: Support, base: Support, is_rate: bool) -> Estimate:
    """The same for a difference, as if the two were independent: too wide rather than too narrow."""
    if not (policy.is_rare or base.is_rare):
        return found
    if not is_rate:
        return _replaced(found, -math.inf, math.inf, _MONEY_WARNING)
    low, high = policy.interval(found.confidence)
    base_low, base_high = base.interval(found.confidence)
    below = math.hypot(policy.rate - low, base_high - base.rate)
    above = math.hypot(high - policy.rate, base.rate - base_low)
    return _replaced(found, found.value - below, found.value + above, _RATE_WARNING)


def _replaced(found: Estimate, low: float, high: float, warning: str) -> Estimate:
    warnings = (*found.diagnostics.warnings, warning)
    return replace(
        found,
        low=min(found.low, low),
        high=max(found.high, high),
        diagnostics=replace(found.diagnostics, warnings=warnings),
    )
