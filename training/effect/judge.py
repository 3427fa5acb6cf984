"""What is fitted on the validation rows (calibration, widths of intervals) and told of the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.effect import Calibration, segments_of
from qiance.evaluate.prediction import ece
from training.effect.calibrate import (
    SegmentCalibration,
    cross_calibrated,
    fit_calibration,
    segment_report,
)
from training.effect.export import curves_of
from training.effect.network import EffectNetwork
from training.effect.prepared import Draws, Prepared
from training.effect.scores import PROBABILITIES, task_scores
from training.effect.served import ServedNetwork
from training.effect.split import Mask, Split
from training.effect.width import Width, coverage, fit_widths, make_groups


@dataclass(frozen=True)
class Judged:
    """calibration, width: as the artifact has them. metrics, segments: of the test rows."""

    calibration: Calibration
    width: Width
    metrics: dict[str, float]
    segments: tuple[SegmentCalibration, ...]


def judge(network: EffectNetwork, rows: Prepared, split: Split, feature: str | None, seed: int) -> Judged:
    """Calibrate and widen on the validation rows, score on the test rows.

    feature: by whose values calibration differs. Widths are fitted on predictions that were corrected by
    calibrators which had not seen the user, so that they do not count on a fit that new users will not have.
    """
    plain = ServedNetwork(network).eval()
    unseen, truth = rows.draws(plain, split.valid), rows.of(split.valid)
    segments = segments_of(rows.encoder, feature, rows.cat[split.valid])
    product = rows.config.entire_space
    calibration = fit_calibration(unseen, truth, segments, feature, product)
    corrected = cross_calibrated(unseen, truth, rows.units[split.valid], segments, product, seed)
    natural = [values[split.valid] for values in rows.natural]
    width = fit_widths(corrected, truth, natural, segments, seed)
    served = ServedNetwork(network, curves_of(calibration, rows.encoder)).eval()
    before, after = rows.draws(plain, split.test), rows.draws(served, split.test)
    segments = segments_of(rows.encoder, feature, rows.cat[split.test])
    metrics = _metrics(before, after, rows, split.test, width, segments, seed)
    told = segment_report(before, after, rows.of(split.test), segments)
    return Judged(calibration, width, metrics | _by_segment(told), told)


def _metrics(
    before: Mapping[str, Draws],
    after: Mapping[str, Draws],
    rows: Prepared,
    test: Mask,
    width: Width,
    segments: NDArray[np.str_] | None,
    seed: int,
) -> dict[str, float]:
    found = _width_metrics(width)
    truth, groups = rows.of(test), _groups(after, rows, test, seed)
    own = [width.served.of_group(None if segments is None else segments[group]) for group in groups]
    for task, draws in after.items():
        found |= task_scores(task, truth[task], draws.mean(axis=1, dtype=np.float64))
        if task in PROBABILITIES:
            plain = np.clip(before[task].mean(axis=1, dtype=np.float64), 0.0, 1.0)
            found[f"{task}_ece_uncalibrated"] = ece(truth[task], plain)
        found[f"{task}_coverage_90_raw"] = coverage(draws, truth[task], groups, 1.0)
        found[f"{task}_coverage_90"] = coverage(draws, truth[task], groups, np.array(own))
    return found


def _width_metrics(width: Width) -> dict[str, float]:
    """width_groups: disjoint groups; width_enough: 1 where these are enough to count on 90 %, else 0."""
    found = {
        "width_scale": width.scale,
        "width_groups": float(width.disjoint),
        "width_enough": float(width.served.doubt is None),
    }
    return found | {f"width_scale/{name}": scale for name, scale in width.segments.items()}


def _by_segment(told: tuple[SegmentCalibration, ...]) -> dict[str, float]:
    found = {}
    for one in told:
        found[f"{one.task}_ece/{one.segment}"] = one.ece_after
        found[f"{one.task}_ece_uncalibrated/{one.segment}"] = one.ece_before
    return found


def _groups(draws: Mapping[str, Draws], rows: Prepared, mask: Mask, seed: int) -> list[NDArray[np.intp]]:
    means = {task: values.mean(axis=1, dtype=np.float64) for task, values in draws.items()}
    return make_groups(means, [values[mask] for values in rows.natural], seed)
