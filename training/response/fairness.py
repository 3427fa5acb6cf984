"""Is the model as right about every group: error, calibration and exposure by protected attribute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.prediction import auc, log_loss

Floats = NDArray[np.float64]

MIN_GROUP = 100  # rows; of fewer nothing is claimed
TOP = 0.2  # share of all rows that counts as being chosen
_DRAWS = 100
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One group of one attribute, on rows that the model has not seen.

    observed, predicted: mean outcome and prediction; gap: predicted − observed, with its 95 % interval by the
    bootstrap over rows: above 0 the group is promised too much. exposure: share of its rows that belong to
    the fifth of all rows with the highest predictions. auc is None where the group has one outcome only.
    """

    group: str
    rows: int
    observed: float
    predicted: float
    gap: float
    gap_low: float
    gap_high: float
    exposure: float
    log_loss: float
    auc: float | None


@dataclass(frozen=True, slots=True)
class Fairness:
    """groups: by attribute. broken: a sentence per group whose gap is surely above the threshold."""

    max_gap: float
    groups: Mapping[str, tuple[GroupReport, ...]]
    broken: tuple[str, ...]


def audit(
    target: Floats, prediction: Floats, protected: Mapping[str, NDArray[Any]], max_gap: float, seed: int = 0
) -> Fairness:
    """By group of every protected attribute, by fairlearn's `MetricFrame`.

    target, prediction: `[N]`; protected: attribute → `[N]` values, of which a missing one is a group too.
    max_gap: largest |gap| that is let through; a group breaks it when its whole interval lies beyond.
    """
    top = float(np.quantile(prediction, 1 - TOP))
    groups = {name: _by_group(target, prediction, values, top, seed) for name, values in protected.items()}
    broken = [
        _sentence(name, one, max_gap)
        for name, found in groups.items()
        for one in found
        if one.gap_low > max_gap or one.gap_high < -max_gap
    ]
    return Fairness(max_gap, groups, tuple(broken))


def _sentence(name: str, one: GroupReport, max_gap: float) -> str:
    interval = f"{one.gap_low:+.1%} to {one.gap_high:+.1%}"
    return (
        f"{name} {one.group!r}: predicted {one.predicted:.1%} where {one.observed:.1%} were observed "
        f"(gap {one.gap:+.1%}, 95 % interval {interval}; allowed ±{max_gap:.1%})"
    )


def _by_group(
    target: Floats, prediction: Floats, values: NDArray[Any], top: float, seed: int
) -> tuple[GroupReport, ...]:
    from fairlearn.metrics import MetricFrame

    names = np.asarray(values, dtype=object).astype(np.str_)
    found, counts = np.unique(names, return_counts=True)
    kept = np.isin(names, found[counts >= MIN_GROUP])
    if not kept.any():
        return ()
    edge = (1 - _CONFIDENCE) / 2
    frame = MetricFrame(
        metrics={"gap": lambda y, p: float(np.mean(p) - np.mean(y))},
        y_true=target[kept],
        y_pred=prediction[kept],
        sensitive_features=names[kept],
        n_boot=_DRAWS,
        ci_quantiles=[edge, 1 - edge],
        random_state=seed,
    )
    low, high = (table["gap"] for table in frame.by_group_ci)
    reports = []
    for name in found[counts >= MIN_GROUP]:
        here = names == name
        y, p = target[here], prediction[here]
        reports.append(
            GroupReport(
                group=str(name),
                rows=int(here.sum()),
                observed=float(y.mean()),
                predicted=float(p.mean()),
                gap=float(frame.by_group["gap"][name]),
                gap_low=float(low[name]),
                gap_high=float(high[name]),
                exposure=float((p >= top).mean()),
                log_loss=log_loss(y, p),
                auc=auc(y, p) if 0 < y.mean() < 1 else None,
            )
        )
    return tuple(reports)
