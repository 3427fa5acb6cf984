"""Rows of a response log as arrays, and how they are dealt into folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.data.errors import DataError
from qiance.data.responses import ARM, ResponseTable
from qiance.features.schema import Columns, FeatureSchema

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

LABELS = ("conversion", "click")  # in order of preference
MIN_EVENTS = 10  # of the rarer outcome in each fold


@dataclass(frozen=True)
class ResponseRows:
    """N rows: columns by feature `[N]`, the outcome `[N]` (0 or 1), the unit of each row `[N]`.

    segment: feature whose values are calibrated apart. left_out: features without a single value. protected:
    `[N]` values of the features that the model must not see, by name: by their groups it is audited. sales:
    `[N]` minor units, where they are mapped. depth: `[N]` of the offer that the row had, NaN where unknown.
    """

    name: str
    label: str
    schema: FeatureSchema
    columns: Columns
    target: Floats
    units: NDArray[np.str_]
    segment: str | None
    fingerprint: str
    left_out: tuple[str, ...] = ()
    protected: Columns = field(default_factory=dict)
    sales: Floats | None = None
    depth: Floats | None = None

    def __len__(self) -> int:
        return int(self.target.size)

    def take(self, rows: Mask | NDArray[np.intp]) -> ResponseRows:
        """Some of the rows."""
        return replace(
            self,
            columns={name: values[rows] for name, values in self.columns.items()},
            target=self.target[rows],
            units=self.units[rows],
            protected={name: values[rows] for name, values in self.protected.items()},
            sales=None if self.sales is None else self.sales[rows],
            depth=None if self.depth is None else self.depth[rows],
        )


def response_rows(
    responses: ResponseTable,
    label: str | None = None,
    segment: str | None = None,
    protected: Sequence[str] = (),
    depth: str | None = None,
) -> ResponseRows:
    """The features (the arm among them, if there is one) and the outcome to learn.

    label: click or conversion; None takes conversion where it is mapped. segment: None takes the arm.
    protected: features that the model does not see. depth: the numeric feature that says how deep the offer
    was. `DataError` where there is no such label or feature, or nothing to learn from.
    """
    source = responses.report.source
    chosen = _label(responses, label)
    arms = (ARM,) if responses.arms else ()
    _check_protected(responses, protected)
    numeric, empty = _known(responses, protected)
    categorical = tuple(name for name in responses.categorical if name not in protected)
    if not (numeric or categorical or arms):
        raise DataError(source, "has no feature with a value", "map columns under features")
    schema = FeatureSchema("response_log", numeric, (*categorical, *arms))
    if segment is not None and segment not in schema.categorical:
        known = ", ".join(schema.categorical) or "none"
        raise DataError(source, f"has no categorical feature {segment!r}", f"calibrate by one of: {known}")
    table = responses.table
    return ResponseRows(
        name=responses.name,
        label=chosen,
        schema=schema,
        columns=schema.columns(table),
        target=np.asarray(table[chosen].to_numpy(zero_copy_only=False), dtype=np.float64),
        units=table["unit_id"].to_numpy(zero_copy_only=False).astype(np.str_),
        segment=segment if segment is not None else (ARM if arms else None),
        fingerprint=responses.fingerprint,
        left_out=empty,
        protected={name: table[name].to_numpy(zero_copy_only=False) for name in protected},
        sales=_sales(responses),
        depth=None if depth is None else _depth(responses, depth),
    )


def _sales(responses: ResponseTable) -> Floats | None:
    if "sales" not in responses.labels:
        return None
    return np.asarray(responses.table["sales"].to_numpy(zero_copy_only=False), dtype=np.float64)


def _depth(responses: ResponseTable, name: str) -> Floats:
    source = responses.report.source
    if name not in responses.numeric:
        known = ", ".join(responses.numeric) or "none"
        raise DataError(source, f"has no numeric feature {name!r}", f"take the depth from one of: {known}")
    values = np.asarray(responses.table[name].to_numpy(zero_copy_only=False), dtype=np.float64)
    if (values < 0).any():
        row = int(np.flatnonzero(values < 0)[0])
        problem = f"has the depth {values[row]:g} in row {row} of {name!r}"
        raise DataError(source, problem, "a depth is 0, for no offer, or more")
    return values


def _check_protected(responses: ResponseTable, protected: Sequence[str]) -> None:
    """Groups are categories; a number has to be cut into bands first."""
    for name in protected:
        if name not in responses.categorical:
            known = ", ".join(responses.categorical) or "none"
            raise DataError(
                responses.report.source, f"has no categorical feature {name!r}", f"protect one of: {known}"
            )


def _label(responses: ResponseTable, wanted: str | None) -> str:
    found = [label for label in LABELS if label in responses.labels]
    source = responses.report.source
    if not found:
        raise DataError(source, "maps no yes-or-no outcome", "map labels.click or labels.conversion")
    if wanted is not None and wanted not in found:
        raise DataError(source, f"maps no label {wanted!r}", f"use one of: {', '.join(found)}")
    return wanted or found[0]


def _known(responses: ResponseTable, protected: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Numeric features with a value anywhere, and those without."""
    finite = {
        name: np.isfinite(responses.table[name].to_numpy(zero_copy_only=False).astype(np.float64)).any()
        for name in responses.numeric
        if name not in protected
    }
    return tuple(n for n in finite if finite[n]), tuple(n for n in finite if not finite[n])


def folds_of(rows: ResponseRows, folds: int, seed: int) -> NDArray[np.int64]:
    """`[N]` fold of each row, in [0, folds): units stay whole, and the outcome's rate is alike in all.

    `DataError` where a fold would have fewer than 10 rows of either outcome.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    _, units = np.unique(rows.units, return_inverse=True)
    rarer = int(min(rows.target.sum(), (1 - rows.target).sum()))
    if rarer < folds * MIN_EVENTS:
        problem = f"has {rarer} rows of the rarer outcome of {rows.label}, too few for {folds} folds"
        raise DataError(
            rows.name,
            problem,
            f"log more, or use fewer folds; each needs {MIN_EVENTS}",
        )
    shuffled: dict[str, Any] = {"n_splits": folds, "shuffle": True, "random_state": seed}
    if units.max() + 1 == len(rows):
        parts = StratifiedKFold(**shuffled).split(np.zeros(len(rows)), rows.target)
    else:
        parts = StratifiedGroupKFold(**shuffled).split(np.zeros(len(rows)), rows.target, units.ravel())
    fold = np.empty(len(rows), dtype=np.int64)
    for number, (_, held) in enumerate(parts):
        fold[held] = number
    return fold


def held_out(fold: NDArray[np.int64]) -> Iterator[tuple[Mask, Mask]]:
    """Rows that train and rows that are held out, fold by fold."""
    for number in range(int(fold.max()) + 1):
        yield fold != number, fold == number
