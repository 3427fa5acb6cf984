"""How models are compared on the page: one table and one calibration chart per label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qiance.report.charts import calibration
from qiance.report.figures import money, score, words
from qiance.report.model import RunReport
from qiance.report.parts import ModelScore, Scores
from qiance.report.summary import is_ours

# Metric, heading, whether more is better.
_METRICS = (
    ("log_loss", "Log loss", False),
    ("ne", "Norm. entropy", False),
    ("auc", "AUC", True),
    ("ece", "Calib. error", False),
    ("rmse", "RMSE", False),
)
_COMPARED = {
    "log_loss": "log loss",
    "ne": "normalised entropy",
    "auc": "AUC",
    "ece": "calibration error",
    "rmse": "RMSE",
    "coverage_90": "coverage of 90% intervals",
}
MONEY_LABELS = frozenset({"sales", "margin", "spend", "revenue", "value"})


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of a table and whether it is the best of its column."""

    text: str
    best: bool


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One model of a table; `ours` marks the model that the loop uses."""

    name: str
    ours: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class LabelView:
    """All models on one label.

    columns: heading, and `↑` where more is better, `↓` where less is. notes: how each model was made, for
    the linear regression its formula.
    """

    label: str
    n_test: int
    columns: tuple[tuple[str, str], ...]
    rows: tuple[ScoreRow, ...]
    chart: Markup | None
    notes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of the first and of the second round."""

    name: str
    before: str
    after: str
    delta: str


def label_views(scores: Scores, currency: str) -> list[LabelView]:
    """A view per label that has scores, in the order given."""
    return [_label(label, found, currency) for label, found in scores.items() if found]


def _label(label: str, found: Sequence[ModelScore], currency: str) -> LabelView:
    shown = [m for m in _METRICS if any(getattr(s, m[0]) is not None for s in found)]
    is_money = label in MONEY_LABELS
    best = {name: _best([getattr(s, name) for s in found], more) for name, _, more in shown}
    rows = []
    for entry in found:
        cells = []
        for name, _, _ in shown:
            value = getattr(entry, name)
            text = money(value, currency) if is_money and name == "rmse" else score(value)
            cells.append(Cell(text, value is not None and value == best[name]))
        rows.append(ScoreRow(entry.name, is_ours(entry.name), tuple(cells)))
    columns = tuple((heading, "↑" if more else "↓") for _, heading, more in shown)
    notes = tuple((s.name, s.note) for s in found if s.note)
    return LabelView(label, max(s.n_test for s in found), columns, tuple(rows), _chart(found), notes)


def _best(values: Sequence[float | None], more: bool) -> float | None:
    known = [v for v in values if v is not None]
    return None if not known else max(known) if more else min(known)


def _chart(found: Sequence[ModelScore]) -> Markup | None:
    """Calibration of our model; None where the label is money or nothing was binned."""
    ours = next((s for s in found if is_ours(s.name)), None)
    bins = ours.calibration if ours else []
    points = [
        (b.predicted, b.observed, b.low, b.high, b.n)
        for b in bins
        if b.predicted is not None and b.observed is not None
    ]
    return calibration(points)


def changes(report: RunReport) -> list[Change]:
    """Telling metrics that both rounds have, side by side."""
    first, second = report.models.effect, report.models.round2
    if first is None or second is None:
        return []
    found = []
    for name, before in first.metrics.items():
        metric = next((m for m in _COMPARED if name.endswith(f"_{m}")), None)
        if metric is not None and name in second.metrics:
            found.append(_change(name, metric, before, second.metrics[name], report.currency))
    return found


def _change(name: str, metric: str, before: float | None, after: float | None, currency: str) -> Change:
    label = name.removesuffix(f"_{metric}")
    is_money = label in MONEY_LABELS and metric == "rmse"

    def show(value: float | None) -> str:
        return money(value, currency) if is_money else score(value)

    delta = None if before is None or after is None else after - before
    sign = "+" if delta is not None and delta > 0 else ""
    return Change(f"{words(label)}: {_COMPARED[metric]}", show(before), show(after), sign + show(delta))
