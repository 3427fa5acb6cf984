"""How good a response model is, by cross-validation: every row judged by models that never saw its unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.artifacts.response import outcome_interval
from qiance.evaluate.prediction import auc, ece, ece_floor, log_loss, normalised_entropy
from training.effect.baselines import ModelScore, compare
from training.effect.split import Split, split_by_unit
from training.response.members import ResponseSettings
from training.response.rows import Mask, ResponseRows, folds_of, held_out
from training.response.stack import Stack, fit_stack, groups_of, segments_of
from training.response.value import value_scores

Floats = NDArray[np.float64]
Tell = Callable[[float, str], None]
_VALID = 0.15  # of the units that a baseline trains on, for those that stop early


@dataclass(frozen=True)
class Judged:
    """held_out: `[N]` predictions by models without the row's fold; the rest: see `cross_validate`."""

    held_out: Floats
    metrics: Mapping[str, float]
    folds: tuple[Mapping[str, float], ...]
    baselines: Mapping[str, Mapping[str, Any]]


def cross_validate(
    rows: ResponseRows, folds: int, settings: ResponseSettings, tell: Tell, baselines: bool = True
) -> Judged:
    """Fit and judge `folds` times; blend, calibration and widths are fitted anew without each fold.

    metrics: auc, log_loss and ne are means over the folds; ece and ece_floor are of all held-out predictions
    together; coverage90_group, width90_group: of 90 % intervals of the mean outcome of held-out groups of 500
    rows or more, NaN where a fold has fewer rows than two groups; with sales, what `value_scores` gives.
    """
    fold = folds_of(rows, folds, settings.seed)
    held_out_p = np.empty(len(rows))
    found, beside = list[dict[str, float]](), list[list[ModelScore]]()
    for number, (train, held) in enumerate(held_out(fold)):

        def told(share: float, text: str, number: int = number) -> None:
            tell((number + share) / folds, f"fold {number + 1} of {folds}: {text}")

        stack = fit_stack(rows.take(train), settings, told)
        draws = stack.predict(rows.take(held))
        held_out_p[held] = draws.mean(axis=1)
        found.append(_fold_scores(rows.take(held), draws, stack, settings.seed))
        if baselines:
            beside.append(_baselines(rows, train, held, settings))
    metrics = _means(found) | {
        "ece": ece(rows.target, held_out_p),
        "ece_floor": ece_floor(held_out_p),
    }
    return Judged(held_out_p, metrics, tuple(found), _beside(beside))


def _fold_scores(rows: ResponseRows, draws: Floats, stack: Stack, seed: int) -> dict[str, float]:
    p, y = draws.mean(axis=1), rows.target
    groups = groups_of(rows, draws, seed)
    covered, widths = group_intervals(y, draws, stack, groups, segments_of(rows))
    judged = len(covered) > 1
    value = {} if stack.value is None else value_scores(stack.value, rows)
    return {
        "rows": float(len(rows)),
        "auc": auc(y, p),
        "log_loss": log_loss(y, p),
        "ne": normalised_entropy(y, p),
        "network_weight": stack.scorer.weight,
        "leaves": float(stack.leaves),
        "coverage90_group": float(np.mean(covered)) if judged else float("nan"),
        "width90_group": float(np.mean(widths)) if judged else float("nan"),
        **value,
    }


def group_intervals(
    target: Floats,
    draws: Floats,
    stack: Stack,
    groups: Sequence[NDArray[np.intp]],
    segments: NDArray[np.str_] | None = None,
) -> tuple[list[bool], list[float]]:
    """By group: whether its mean outcome lies in its 90 % interval, and the interval's width.

    segments: `[N]`, so that a group of one segment gets the width of that, as it will when served.
    """
    covered, widths = list[bool](), list[float]()
    for group in groups:
        scale = stack.width.served.of_group(None if segments is None else segments[group])
        interval = outcome_interval(draws[group], scale, stack.design)
        covered.append(interval.low <= float(target[group].mean()) <= interval.high)
        widths.append(interval.high - interval.low)
    return covered, widths


def _means(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for fold in folds for name in fold if name not in ("rows", "leaves"))
    return {name: float(np.mean([fold.get(name, np.nan) for fold in folds])) for name in names}


def _baselines(rows: ResponseRows, train: Mask, held: Mask, settings: ResponseSettings) -> list[ModelScore]:
    table = pa.table({**rows.columns, rows.label: rows.target.astype(np.int8)})
    rest = (1 - _VALID) / 2
    valid = train & split_by_unit(rows.units, settings.seed, (_VALID, rest, rest)).train
    split = Split(train & ~valid, valid, held)
    return compare(table, rows.schema, rows.label, split, threads=settings.trees.threads, seed=settings.seed)


def _beside(folds: Sequence[Sequence[ModelScore]]) -> dict[str, dict[str, Any]]:
    """Means over the folds by baseline; the note is the first fold's."""
    found = {}
    for scores in zip(*folds, strict=True):
        values = {
            name: float(np.mean([getattr(score, name) for score in scores]))
            for name in ("auc", "log_loss", "ne", "rmse", "mse")
        }
        found[scores[0].name] = {**values, "note": scores[0].note}
    return found
