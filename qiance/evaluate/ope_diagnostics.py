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
_HEAVIEST = 5


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Health of an importance-weighted estimate.

    rows, units: logged rows, and independent units (users) among them.
    effective_sample_size: (Σ W_g)² / Σ W_g² over the units' weights W_g (Kish): how many units' worth of
        evidence the log holds about this policy.
    max_weight, max_weight_share: largest row weight; largest unit's share of the total weight.
    mean_weight: about 1 when the propensities are right and every action of the policy was logged;
        mean_weight_low, mean_weight_high: its interval at 99.7 % (3 standard errors), which should hold 1.
    unsupported_mass: mean probability that the policy gives to actions never logged (at that position).
    unsupported_rows: share of rows in which it gives them any.
    unsupported_actions: number of such actions.
    overlap: share of rows whose logged action the policy could have taken.
    heaviest: (row, weight) of the five largest weights.
    warnings: what is wrong and what to do about it, one sentence each; empty when nothing is.
    """

    rows: int
    units: int
    effective_sample_size: float
    max_weight: float
    max_weight_share: float
    mean_weight: float
    mean_weight_low: float
    mean_weight_high: float
    unsupported_mass: float
    unsupported_rows: float
    unsupported_actions: int
    overlap: float
    heaviest: tuple[tuple[int, float], ...]
    warnings: tuple[str, ...] = ()

    @property
    def effective_share(self) -> float:
        """Effective sample size as a share of the units."""
        return self.effective_sample_size / self.units


def diagnose(log: BanditLog, probs: NDArray[Any], weight: FloatArray, units: Units) -> Diagnostics:
    """Diagnostics of the policy `probs` `[n, n_actions]` whose importance weights are `weight` `[n]`."""
    totals = units.total(weight)
    squares, total = float(np.square(totals).sum()), float(totals.sum())
    size = total**2 / squares if squares > 0 else 0.0
    mass, examples = _unsupported(log, probs)
    mean = float(weight.mean())
    share = float(totals.max()) / total if total > 0 else 0.0
    slack = _WEIGHT_SIGMAS * standard_error(weight - mean, units) if units.count > 1 else float("inf")
    off = abs(mean - 1) > max(slack, _WEIGHT_SLACK)
    heavy = np.argsort(-weight, kind="stable")[:_HEAVIEST]
    return Diagnostics(
        rows=len(log),
        units=units.count,
        effective_sample_size=size,
        max_weight=float(weight.max()),
        max_weight_share=share,
        mean_weight=mean,
        mean_weight_low=max(0.0, mean - slack),
        mean_weight_high=mean + slack,
        unsupported_mass=float(mass.mean()),
        unsupported_rows=float((mass > 0).mean()),
        unsupported_actions=len(examples),
        overlap=float((weight > 0).mean()),
        heaviest=tuple((int(row), float(weight[row])) for row in heavy),
        warnings=_warnings(size, units.count, share, int(heavy[0]), mean, off, float(mass.mean()), examples),
    )


def worse_of(policy: Diagnostics, baseline: Diagnostics) -> Diagnostics:
    """Field by field the worse of two, with the baseline's warnings marked as such."""
    off = max(policy, baseline, key=lambda one: abs(one.mean_weight - 1))
    return Diagnostics(
        rows=policy.rows,
        units=policy.units,
        effective_sample_size=min(policy.effective_sample_size, baseline.effective_sample_size),
        max_weight=max(policy.max_weight, baseline.max_weight),
        max_weight_share=max(policy.max_weight_share, baseline.max_weight_share),
        mean_weight=off.mean_weight,
        mean_weight_low=off.mean_weight_low,
        mean_weight_high=off.mean_weight_high,
        unsupported_mass=max(policy.unsupported_mass, baseline.unsupported_mass),
        unsupported_rows=max(policy.unsupported_rows, baseline.unsupported_rows),
        unsupported_actions=max(policy.unsupported_actions, baseline.unsupported_actions),
        overlap=min(policy.overlap, baseline.overlap),
        heaviest=max(policy, baseline, key=lambda one: one.max_weight).heaviest,
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


def _warnings(
    size: float, units: int, share: float, row: int, mean: float, off: bool, mass: float, never: list[int]
) -> tuple[str, ...]:
    found = []
    if size < _LOW_SAMPLE:
        found.append(
            f"effective sample size is {size:.0f} of {units}: the estimate rests on few decisions; log more "
            "exploration (a larger epsilon) or evaluate a policy closer to the logged one"
        )
    if share > _HEAVY_SHARE:
        found.append(
            f"one unit carries {share:.0%} of the total weight (the heaviest row is {row}): look whether its "
            "propensity is right, and raise the least propensity of the logging policy"
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
