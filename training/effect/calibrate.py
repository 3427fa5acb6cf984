"""Calibration of the effect model's probabilities on users that training did not see, by segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qiance.artifacts.effect import Calibration
from qiance.evaluate.calibration import cross_calibrate, fit_calibrator
from qiance.evaluate.prediction import ece
from qiance.features.schema import FeatureSchema
from training.effect.randomness import text_hash, uniform
from training.effect.scores import PROBABILITIES

Draws = NDArray[np.float32]
Labels = Mapping[str, NDArray[np.float64]]

_FOLDS = 5
_MIN_SEGMENT = 200  # rows below which nothing is said about a segment


@dataclass(frozen=True, slots=True)
class SegmentCalibration:
    """A segment of the test rows: share observed, mean predicted and calibration error, before and after."""

    task: str
    segment: str
    rows: int
    observed: float
    before: float
    after: float
    ece_before: float
    ece_after: float


def segment_feature(schema: FeatureSchema, wanted: str | None) -> str | None:
    """The categorical feature to calibrate by: `wanted`, else the arm, else the first there is."""
    if wanted is not None and wanted not in schema.categorical:
        known = ", ".join(schema.categorical) or "none"
        raise ValueError(
            f"settings.calibrate_by: {wanted!r} is not a categorical feature; there are: {known}"
        )
    if wanted is not None or not schema.categorical:
        return wanted
    return "arm" if "arm" in schema.categorical else schema.categorical[0]


def fit_calibration(
    draws: Mapping[str, Draws],
    labels: Labels,
    segments: NDArray[np.str_] | None,
    feature: str | None,
    entire_space: bool,
) -> Calibration:
    """draws: task → `[n, H]` of users that training did not see; labels: task → `[n]`."""
    tasks = {}
    for task, (chances, known) in _factors(draws, labels, entire_space).items():
        names = None if segments is None else segments[known]
        mean = chances[known].mean(axis=1, dtype=np.float64)
        tasks[task] = fit_calibrator(labels[task][known], mean, names)
    return Calibration(feature, tasks)


def cross_calibrated(
    draws: Mapping[str, Draws],
    labels: Labels,
    units: ArrayLike,
    segments: NDArray[np.str_] | None,
    entire_space: bool,
    seed: int,
) -> dict[str, Draws]:
    """The draws as calibrators that did not see the user would correct them; money follows conversions."""
    fold = np.floor(uniform(text_hash(np.asarray(units).astype(np.str_)), seed) * _FOLDS).astype(np.int64)
    found = dict(draws)
    for task, (chances, known) in _factors(draws, labels, entire_space).items():
        found[task] = cross_calibrate(labels[task], chances, fold, segments, known).astype(np.float32)
    if entire_space:
        found["conversion"] = found["conversion"] * found["click"]
    for task in ("sales", "margin"):
        if task in found:
            found[task] = draws[task] * (found["conversion"] / _positive(draws["conversion"]))
    return found


def _factors(
    draws: Mapping[str, Draws], labels: Labels, entire_space: bool
) -> dict[str, tuple[Draws, NDArray[np.bool_]]]:
    """What is corrected by task, `[n, H]`, and the rows that tell: of P(conversion | click) those clicked."""
    found = {
        task: (draws[task], np.ones(len(labels[task]), dtype=np.bool_))
        for task in PROBABILITIES
        if task in draws
    }
    if entire_space:
        found["conversion"] = (draws["conversion"] / _positive(draws["click"]), labels["click"] > 0)
    return found


def _positive(values: Draws) -> Draws:
    return np.maximum(values, np.finfo(np.float32).tiny)


def segment_report(
    before: Mapping[str, Draws], after: Mapping[str, Draws], labels: Labels, segments: NDArray[np.str_] | None
) -> tuple[SegmentCalibration, ...]:
    """By task and segment of 200 rows or more, on test rows."""
    if segments is None:
        return ()
    found = []
    names, counts = np.unique(segments, return_counts=True)
    for task in PROBABILITIES:
        for name in names[counts >= _MIN_SEGMENT] if task in after else ():
            here = segments == name
            y = labels[task][here]
            old, new = (draws[task][here].mean(axis=1, dtype=np.float64) for draws in (before, after))
            means = float(y.mean()), float(old.mean()), float(new.mean())
            errors = (ece(y, np.clip(p, 0.0, 1.0)) for p in (old, new))
            found.append(SegmentCalibration(task, str(name), int(here.sum()), *means, *errors))
    return tuple(found)
