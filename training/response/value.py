"""Fits how much a purchase is worth; see `qiance.artifacts.value` for what is fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from qiance.artifacts.trees import tree_inputs
from qiance.artifacts.value import MIN_SEGMENT, ValueModel
from qiance.data.errors import DataError
from qiance.evaluate.prediction import rmse
from qiance.features.encoder import Encoder
from training.response.members import ResponseSettings, cut_booster, tree_params
from training.response.rows import ResponseRows, folds_of, held_out

Floats = NDArray[np.float64]
MIN_PURCHASES = 100
_MIN_ROWS = 20  # of a leaf: purchases are few
_LEAVES = 4


@dataclass(frozen=True)
class _Purchases:
    """Rows with a value: inputs of the trees `[n, F]`, value `[n]` in minor units, fold and segment `[n]`."""

    table: Floats
    codes: list[int]
    value: Floats
    fold: NDArray[np.int64]
    segments: NDArray[np.str_] | None

    @classmethod
    def of(cls, rows: ResponseRows, encoder: Encoder, settings: ResponseSettings) -> _Purchases:
        assert rows.sales is not None, "the caller has checked"
        paid = rows.take(rows.sales > 0)
        _, cat = encoder.encode(paid.columns)
        table = tree_inputs(encoder.schema, paid.columns, cat)
        codes = list(range(table.shape[1] - cat.shape[1], table.shape[1]))
        segments = None if rows.segment is None else np.asarray(paid.columns[rows.segment]).astype(np.str_)
        assert paid.sales is not None
        return cls(table, codes, paid.sales, _folds(paid, settings), segments)


def _folds(paid: ResponseRows, settings: ResponseSettings) -> NDArray[np.int64]:
    """Units whole; large and small purchases in every fold alike."""
    assert paid.sales is not None
    large = (paid.sales > np.median(paid.sales)).astype(np.float64)
    try:
        return folds_of(replace(paid, target=large), settings.members, settings.seed)
    except DataError:  # nearly all are of one value
        return np.random.default_rng(settings.seed).permutation(len(paid)) % settings.members


def why_no_value(rows: ResponseRows) -> str | None:
    """Why nothing can be said of the value of a purchase; None where it can."""
    if rows.sales is None:
        return "no sales are mapped"
    if np.any((rows.sales > 0) & (rows.target == 0)):
        return f"there are sales without a {rows.label}: map the outcome that sales come with"
    count = int((rows.sales > 0).sum())
    if count < MIN_PURCHASES:
        return f"{count} rows have sales, and {MIN_PURCHASES} are needed"
    return None


def fit_value(rows: ResponseRows, encoder: Encoder, settings: ResponseSettings) -> ValueModel:
    """Fit on the rows with sales; `why_no_value` must have been asked."""
    assert rows.sales is not None
    bought = _Purchases.of(rows, encoder, settings)
    members, unseen = [], np.empty(bought.value.size)
    for train, held in held_out(bought.fold):
        member = _fit_member(bought, train, held, settings)
        unseen[held] = np.log(member.predict(bought.table[held]))
        members.append(member)
    mean = float(bought.value.mean())
    weight = _best_weight(bought.value, unseen, mean)
    drawn = (1 - weight) * np.log(mean) + weight * unseen
    factor = float(bought.value.sum() / np.exp(drawn).sum())
    share = float((rows.sales > 0).sum() / rows.target.sum())
    scores = _scores(bought, drawn)
    return ValueModel(encoder, rows.segment, members, scores, mean, weight, factor, share)


def _fit_member(
    bought: _Purchases, train: NDArray[np.bool_], held: NDArray[np.bool_], settings: ResponseSettings
) -> Any:
    """Gamma deviance: an error counts in proportion to the value, as purchases of all sizes do."""
    import lightgbm

    params = {
        **tree_params(_LEAVES, settings.trees, settings.seed),
        "objective": "gamma",
        "min_data_in_leaf": _MIN_ROWS,
    }
    rows = lightgbm.Dataset(
        bought.table[train], bought.value[train], categorical_feature=bought.codes, params=params
    )
    others = lightgbm.Dataset(
        bought.table[held], bought.value[held], categorical_feature=bought.codes, reference=rows
    )
    stop = lightgbm.early_stopping(settings.trees.patience, verbose=False)
    found = lightgbm.train(params, rows, settings.trees.rounds, valid_sets=[others], callbacks=[stop])
    return cut_booster(found, found.best_iteration)


def _best_weight(value: Floats, unseen: Floats, mean: float) -> float:
    """The weight with the least gamma deviance, up to its constant: v / μ + log μ."""

    def deviance(weight: float) -> float:
        log_mean = (1 - weight) * np.log(mean) + weight * unseen
        return float(np.mean(value * np.exp(-log_mean) + log_mean))

    found = optimize.minimize_scalar(deviance, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-3})
    return float(min((0.0, 1.0, float(found.x)), key=deviance))


def _scores(bought: _Purchases, drawn: Floats) -> dict[str, list[Floats]]:
    residual = np.log(bought.value) - drawn
    found = {"": _by_fold(residual, bought.fold, np.ones(residual.size, dtype=np.bool_))}
    if bought.segments is None:
        return found
    names, counts = np.unique(bought.segments, return_counts=True)
    own = {
        str(name): _by_fold(residual, bought.fold, bought.segments == name)
        for name in names[counts >= MIN_SEGMENT]
    }
    return found | own


def _by_fold(residual: Floats, fold: NDArray[np.int64], mask: NDArray[np.bool_]) -> list[Floats]:
    return [np.sort(residual[mask & (fold == k)]) for k in range(int(fold.max()) + 1)]


def value_scores(model: ValueModel, rows: ResponseRows) -> dict[str, float]:
    """On rows that the model has not seen: error, bias, and how often an interval holds its purchase.

    value_rmse, value_mae: minor units; value_bias: sum predicted over sum seen, less 1; coverage90_row,
    width90_row: of 90 % intervals of single purchases, minor units. NaN where nobody bought.
    """
    assert rows.sales is not None
    paid = rows.take(rows.sales > 0)
    names = ("value_rmse", "value_mae", "value_bias", "coverage90_row", "width90_row")
    if not len(paid):
        return dict.fromkeys(names, float("nan"))
    seen, found = paid.sales, model.predict(paid.columns)
    assert seen is not None
    figures = (
        rmse(seen, found.mean),
        float(np.abs(seen - found.mean).mean()),
        float(found.mean.sum() / seen.sum()) - 1,
        float(((found.low <= seen) & (seen <= found.high)).mean()),
        float((found.high - found.low).mean()),
    )
    return dict(zip(names, figures, strict=True))
