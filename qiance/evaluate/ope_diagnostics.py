"""What to look at before an off-policy estimate is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import FloatArray
from qiance.evaluate.bandit_log import BanditLog
from qiance.evaluate.inference import Units, standard_error

_LOW_SAMPLE = 100.0
_HEAVY_SHARE = 0.1
_UNSUPPORTED = 0.01
# A mean weight is called off when it misses 1 by 3 standard errors and by at least 1 %.
_WEIGHT_SIGMAS, _WEIGHT_SLACK = 3.0, 0.01


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Health of an importance-weighted estimate.

    rows, units: logged rows, and independent units (users) among them.
    effective_sample_size: (Σ W_g)² / Σ W_g² over the units' weights W_g (Kish): how many units' worth of
        evidence the log holds about this policy.
    max_weight, max_weight_share: largest row weight; largest unit's share of the total weight.
    mean_weight: about 1 when the propensities are right and every action of the policy was logged.
    unsupported_mass: mean probability that the policy gives to actions never logged (at that position).
    unsupported_rows: share of rows in which it gives them any.
    warnings: what is wrong and what to do about it, one sentence each; empty when nothing is.
    """

    rows: int
    units: int
    effective_sample_size: float
    max_weight: float
    max_weight_share: float
    mean_weight: float
    unsupported_mass: float
    unsupported_rows: float
    warnings: tuple[str, ...] = ()


def diagnose(log: BanditLog, probs: NDArray[Any], weight: FloatArray, units: Units) -> Diagnostics:
    """Diagnostics of the policy `probs` `[n, n_actions]` whose importance weights are `weight` `[n]`."""
    totals = units.total(weight)
    squares, total = float(np.square(totals).sum()), float(totals.sum())
    size = total**2 / squares if squares > 0 else 0.0
    mass, examples = _unsupported(log, probs)
    mean = float(weight.mean())
    share = float(totals.max()) / total if total > 0 else 0.0
    off = _weight_is_off(weight, mean, units)
    return Diagnostics(
        rows=len(log),
        units=units.count,
        effective_sample_size=size,
        max_weight=float(weight.max()),
        max_weight_share=share,
        mean_weight=mean,
        unsupported_mass=float(mass.mean()),
        unsupported_rows=float((mass > 0).mean()),
        warnings=_warnings(size, units.count, share, mean, off, float(mass.mean()), examples),
    )


def worse_of(policy: Diagnostics, baseline: Diagnostics) -> Diagnostics:
    """Field by field the worse of two, with the baseline's warnings marked as such."""
    off = max(policy.mean_weight, baseline.mean_weight, key=lambda mean: abs(mean - 1))
    return Diagnostics(
        rows=policy.rows,
        units=policy.units,
        effective_sample_size=min(policy.effective_sample_size, baseline.effective_sample_size),
        max_weight=max(policy.max_weight, baseline.max_weight),
        max_weight_share=max(policy.max_weight_share, baseline.max_weight_share),
        mean_weight=off,
        unsupported_mass=max(policy.unsupported_mass, baseline.unsupported_mass),
        unsupported_rows=max(policy.unsupported_rows, baseline.unsupported_rows),
        warnings=policy.warnings + tuple(f"baseline: {text}" for text in baseline.warnings),
    )


def _unsupported(log: BanditLog, probs: NDArray[Any]) -> tuple[FloatArray, list[int]]:
    """Per row the policy's probability of actions never logged (at its position), and such actions."""
    position = np.zeros(len(log), dtype=np.int64) if log.position is None else log.position
    slots, slot = np.unique(position, return_inverse=True)
    logged = np.zeros((slots.size, probs.shape[1]), dtype=np.bool_)
    logged[slot, log.action] = True
    mass = np.zeros(len(log))
    never: set[int] = set()
    for number in range(slots.size):
        missing = np.flatnonzero(~logged[number])
        if missing.size == 0:
            continue
        rows = slot == number
        part = probs[np.ix_(rows, missing)].astype(np.float64)
        mass[rows] = part.sum(axis=1)
        never.update(int(action) for action in missing[part.max(axis=0) > 0])
    return mass, sorted(never)


def _weight_is_off(weight: FloatArray, mean: float, units: Units) -> bool:
    if units.count < 2:
        return False
    error = standard_error(weight - mean, units)
    return abs(mean - 1) > max(_WEIGHT_SIGMAS * error, _WEIGHT_SLACK)


def _warnings(
    size: float, units: int, share: float, mean: float, off: bool, mass: float, never: list[int]
) -> tuple[str, ...]:
    found = []
    if size < _LOW_SAMPLE:
        found.append(
            f"effective sample size is {size:.0f} of {units}: the estimate rests on few decisions; log more "
            "exploration (a larger epsilon) or evaluate a policy closer to the logged one"
        )
    if share > _HEAVY_SHARE:
        found.append(
            f"one unit carries {share:.0%} of the total weight: raise the least propensity of the logging "
            "policy"
        )
    if mass > _UNSUPPORTED:
        names = ", ".join(map(str, never[:5])) + (", …" if len(never) > 5 else "")
        found.append(
            f"the policy gives {mass:.1%} of its probability to actions that were never logged ({names}): "
            "nothing is known about them; take them out of the policy or explore them first"
        )
    if off:
        found.append(
            f"mean importance weight is {mean:.3f} where about 1 is expected: the logged propensities are "
            "not those with which the actions were chosen, or the policy's actions were hardly ever logged"
        )
    return tuple(found)
