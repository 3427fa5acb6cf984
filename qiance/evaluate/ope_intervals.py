"""Intervals of a policy's value that hold for every sample size: empirical Bernstein, and one for any moment.

Both need rewards within a range that is known beforehand, independent rows, and nothing of the weights but
that they have mean 1. Rewards are put on [0, 1]; then w r ≥ 0 has mean V and w (1 − r) ≥ 0 has mean 1 − V, so
a lower bound for the mean of a variable ≥ 0 gives both ends, without a bound on the weights: a rare large
weight that the log happens to lack can only raise such a mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qiance.evaluate.arrays import FloatArray, refuse_where
from qiance.evaluate.inference import Units

Range = tuple[float, float]
Bound = Callable[[FloatArray, float], float]

_CLIPS = 12
# Fractions of the most that may be bet: rare rewards under heavy weights call for small ones.
_BETS = np.geomspace(1e-3, 0.5, 10)
_STEPS = 30
# Rates of the exponential supermartingales that share the error: small ones for long and noisy logs.
_RATES = np.geomspace(3e-3, 0.75, 12)
# ψ(λ) = −ln(1 − λ) − λ
_PRICE = -np.log1p(-_RATES) - _RATES


def known_range(reward: FloatArray, given: Range | None) -> Range:
    """The range that rewards are known to lie in: as given, or [0, 1] where all of them are 0 or 1.

    ValueError where it is needed and not given, or a reward lies outside.
    """
    if given is None:
        if not np.isin(reward, (0.0, 1.0)).all():
            raise ValueError(
                "reward_range: is needed for this interval, for rewards are not all 0 or 1; pass (least, "
                "largest) as known before the log was seen, not as found in it"
            )
        return 0.0, 1.0
    low, high = given
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"reward_range: {given} is no range; pass (least, largest), least < largest")
    outside = (reward < low) | (reward > high)
    refuse_where("reward", reward, outside, f"outside reward_range [{low:g}, {high:g}]")
    return float(low), float(high)


def two_sided(
    bound: Bound, weight: FloatArray, reward: FloatArray, span: Range, confidence: float
) -> tuple[float, float]:
    """Interval of the value from a lower bound for the mean of what is ≥ 0, half the error each side."""
    low, high = span
    scaled, error = (reward - low) / (high - low), (1 - confidence) / 2
    least = bound(weight * scaled, error)
    most = 1 - bound(weight * (1 - scaled), error)
    return low + (high - low) * max(0.0, least), low + (high - low) * min(1.0, most)


def difference_sided(
    bound: Bound, weight: FloatArray, base: FloatArray, reward: FloatArray, span: Range, confidence: float
) -> tuple[float, float]:
    """Interval of what the weights `weight` bring more than `base`, half the error each side.

    With rewards r on [0, 1], w r + b (1 − r) is ≥ 0 and has mean 1 + the improvement; b r + w (1 − r) has
    mean 1 − the improvement.
    """
    low, high = span
    scaled, error = (reward - low) / (high - low), (1 - confidence) / 2
    least = bound(weight * scaled + base * (1 - scaled), error) - 1
    most = 1 - bound(base * scaled + weight * (1 - scaled), error)
    return (high - low) * max(-1.0, least), (high - low) * min(1.0, most)


def certain_interval(
    kind: str,
    weight: FloatArray,
    base: FloatArray | None,
    reward: FloatArray,
    units: Units,
    given: Range | None,
    confidence: float,
) -> tuple[float, float]:
    """The interval "bernstein" or "anytime" of a policy's value, or of its improvement over `base`.

    weight, base, reward: `[n]` importance weights of the policy and of a baseline, and rewards, in the order
    in which they came. given: the range of rewards, see `known_range`.
    """
    if base is None or kind == "bernstein":
        independent_rows(units, kind)
    span = known_range(reward, given)
    bound = bernstein_bound if kind == "bernstein" else betting_bound if base is None else drifting_bound
    if base is None:
        return two_sided(bound, weight, reward, span, confidence)
    return difference_sided(bound, weight, base, reward, span, confidence)


def bernstein_bound(values: FloatArray, error: float) -> float:
    """Lower bound for the mean of independent `values` `[n]` ≥ 0, wrong with probability at most `error`.

        max over c of mean(min(x, c)) − √(2 s_c² L / n) − 7 c L / (3 (n − 1)),  L = ln(2 J / error)

    s_c² being the variance of the clipped values, for J clips c fixed beforehand, in powers of 2 from 1 on.
    Source: Maurer & Pontil, COLT (2009), theorem 4; clipping for off-policy bounds: Thomas, Theocharous &
    Ghavamzadeh, AAAI (2015), 3000-3006.
    """
    n = values.size
    if n < 2:
        return 0.0
    length = float(np.log(2 * _CLIPS / error))
    best = 0.0
    for clip in 2.0 ** np.arange(_CLIPS):
        kept = np.minimum(values, clip)
        slack = np.sqrt(2 * kept.var(ddof=1) * length / n) + 7 * clip * length / (3 * (n - 1))
        best = max(best, float(kept.mean() - slack))
    return best


def betting_bound(values: FloatArray, error: float, least: float = 0.0) -> float:
    """Lower bound for the mean of `values` `[n]` ≥ 0 that may be asked for after every row.

    With probability 1 − `error` the mean is above the bounds of all beginnings of the log, so that one may
    look as often as one likes and stop when one likes. A gambler who bets against "the mean is m" has the
    wealth

        W_t(m) = mean_j Π_{s ≤ t} (1 + c_j (x_s / m − 1)),

    a martingale if the rows, in the order in which they came, have conditional mean m; by Ville's inequality
    it ever reaches 1/`error` with probability at most `error`. The bound is the largest m whose wealth has
    done so: wealth falls in m, so bisection finds it. least: a bound that is known already.
    Source: Waudby-Smith & Ramdas, J. R. Stat. Soc. B 86 (2024), 1-27; off-policy: Waudby-Smith, Wu, Ramdas,
    Karampatziakis & Mineiro, ACM/IMS J. Data Sci. 1 (2024), 3.
    """
    low, high = least, float(values.max(initial=0.0))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle <= low:
            break
        if float(_log_wealth(values, middle).max()) >= -np.log(error):
            low = middle
        else:
            high = middle
    return low


def drifting_bound(values: FloatArray, error: float) -> float:
    """The last of `drifting_bounds`: for the mean of E x_i over `values` x `[n]` ≥ 0."""
    return float(drifting_bounds(values, error)[-1])


def drifting_bounds(values: FloatArray, error: float) -> FloatArray:
    """`[n]` lower bounds, one after each row, of the mean of E x_i so far, for `values` x `[n]` ≥ 0.

    All hold at once with probability 1 − `error`, whatever the E x_i, each given the rows before; they are
    narrow where those are about 1. For every rate λ in (0, 1)

        exp(λ Σ (x_i − E x_i) − ψ(λ) Σ (x_i − 1)²),  ψ(λ) = −ln(1 − λ) − λ

    is a supermartingale, which bounds Σ E x_i from below by Ville's inequality; the best of 12 rates is
    taken, each with its share of the error.
    Source: Howard, Ramdas, McAuliffe & Sekhon, Ann. Stat. 49 (2021), 1055-1080 (empirical Bernstein); for
    policies: Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro, ACM/IMS J. Data Sci. 1 (2024), 3.
    """
    moved = values - 1.0
    total, spread = np.cumsum(moved), np.cumsum(np.square(moved))
    length = np.log(_RATES.size / error)
    best = np.full(values.size, -np.inf)
    for rate, price in zip(_RATES, _PRICE, strict=True):
        np.maximum(best, total - (price * spread + length) / rate, out=best)
    return np.asarray(1.0 + best / np.arange(1, values.size + 1))


def _log_wealth(values: FloatArray, mean: float) -> FloatArray:
    """`[n]` log W_t(mean)."""
    by_bet = np.cumsum(np.log1p(_BETS[:, None] * (values / mean - 1)), axis=1)
    return np.asarray(np.logaddexp.reduce(by_bet, axis=0) - np.log(_BETS.size))


def independent_rows(units: Units, interval: str) -> None:
    """ValueError where rows come in clusters: these bounds are for independent rows."""
    if units.codes is not None and units.count < units.codes.size:
        raise ValueError(
            f"interval: {interval!r} is for independent rows, and cluster has {units.count} units for "
            f"{units.codes.size} rows; use 'default', or keep one row per unit"
        )
