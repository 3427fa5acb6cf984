"""A response log with the conversions that are still to come, and an account of what was added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.artifacts.trees import tree_inputs
from qiance.data.errors import DataError
from qiance.data.responses import ResponseTable
from qiance.features.encoder import Encoder
from training.delay.feedback import fit_feedback
from training.delay.hazard import MIN_CONVERSIONS, DelayModel, fit_delay
from training.response.rows import response_rows

Floats = NDArray[np.float64]
DAY_US = 86_400e6
RIPE = 0.99  # of the conversions have come: such a row is taken as it is when a model is judged
_AGES = (0.0, 1.0, 3.0, 7.0, 14.0, 30.0, 60.0, float("inf"))
_SHARES = (0.5, 0.9, 0.99)
_ROWS = 2_000  # that the mean curve of the report is made of


@dataclass(frozen=True, slots=True)
class AgeReport:
    """Contacts of one age at the end of the log (days, from ≤ age < to; to is None for the last): the share
    that had converted, and that is expected to in the end."""

    from_days: float
    to_days: float | None
    rows: int
    observed_rate: float
    corrected_rate: float


@dataclass(frozen=True)
class Corrected:
    """responses: the log with conversions drawn where they are still expected. seen: `[N]` P(a conversion
    would have come by now). still: `[N]` P(one is still to come). report: what metrics.json says."""

    responses: ResponseTable
    seen: Floats
    still: Floats
    report: Mapping[str, Any]


def has_delays(responses: ResponseTable) -> bool:
    """Whether the log says when conversions came."""
    return "converted_at" in responses.table.column_names


def correct_delays(responses: ResponseTable, seed: int = 0, protected: Sequence[str] = ()) -> Corrected:
    """Draw for every contact that has not converted whether it still will, with its estimated chance.

    Models of any kind then learn from the labels as they would from a log that was left to ripen: by one
    stochastic imputation (Rubin, 1987). A label that was seen is never changed. DataError for times that
    cannot be, or too few conversions. protected: features that are not looked at.
    """
    elapsed, delay, observed = _times(responses)
    rows = response_rows(responses, "conversion", protected=protected)
    encoder = Encoder.fit(rows.schema, rows.columns)
    features = tree_inputs(rows.schema, rows.columns, encoder.encode(rows.columns)[1])
    timed = np.isfinite(delay)
    if timed.sum() < MIN_CONVERSIONS:
        problem = (
            f"has {int(timed.sum())} conversions with a time; {MIN_CONVERSIONS} are needed to learn delays"
        )
        raise DataError(
            responses.report.source, problem, "log more, or leave converted_at out of the mapping"
        )
    when = np.column_stack([features, _weekday(responses)])
    model = fit_delay(delay[timed], elapsed[timed], when[timed], rows.units[timed])
    seen = model.seen(elapsed, when)
    found = fit_feedback(observed, seen, features, rows.units, seed)
    comes = np.random.default_rng([seed, 11]).random(len(observed)) < found.still
    label = pa.array((observed + comes).astype(np.int8))
    table = responses.table.set_column(responses.table.column_names.index("conversion"), "conversion", label)
    report = _report(responses, model, when, elapsed, observed, seen, found.still)
    return Corrected(replace(responses, table=table), seen, found.still, report)


def _times(responses: ResponseTable) -> tuple[Floats, Floats, Floats]:
    """`[N]` days from contact to the end of the log, days to the conversion (NaN without a time),
    conversion."""
    source = responses.report.source
    at, converted = (_days(responses.table[name]) for name in ("occurred_at", "converted_at"))
    observed = np.asarray(responses.table["conversion"].to_numpy(zero_copy_only=False), dtype=np.float64)
    last = float(np.nanmax(np.concatenate([at, converted])))
    end = last if responses.log_end is None else _utc(responses.log_end).timestamp() / 86_400
    if end < last:
        problem = f"has times up to {(last - end) * 24:.1f} hours after log_end"
        raise DataError(source, problem, "set log_end to when the log was cut, or leave it out")
    strange = np.isfinite(converted) & ((observed == 0) | (converted < at))
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        what = "without a conversion" if observed[row] == 0 else "before occurred_at"
        problem = (
            f"has converted_at {what} in {int(strange.sum())} rows (first: row {row + 1} of the good ones)"
        )
        raise DataError(source, problem, "correct the log or the mapping")
    return end - at, np.where(observed > 0, converted - at, np.nan), observed


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _weekday(responses: ResponseTable) -> Floats:
    """`[N]` day of the week of the contact: who orders at the week-end does so later after a Monday."""
    return np.floor(_days(responses.table["occurred_at"]) % 7)


def _days(column: Any) -> Floats:
    micros = column.cast(pa.int64()).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(micros / DAY_US, dtype=np.float64)


def _report(
    responses: ResponseTable,
    model: DelayModel,
    features: Floats,
    elapsed: Floats,
    observed: Floats,
    seen: Floats,
    still: Floats,
) -> dict[str, Any]:
    edges = model.edges
    curve = model.curves(features[:: max(1, len(features) // _ROWS)]).mean(axis=0)
    reached = {
        f"days_to_{share:.0%}": float(edges[min(np.searchsorted(curve, share), len(edges) - 1)])
        for share in _SHARES
    }
    return {
        "log_end": None if responses.log_end is None else _utc(responses.log_end).isoformat(),
        "observed_rate": float(observed.mean()),
        "corrected_rate": float((observed + still).mean()),
        "share_still_expected": float(still.sum() / (observed + still).sum()),
        "ripe_rows": int((seen >= RIPE).sum()),
        "by_age": [asdict(one) for one in _by_age(elapsed, observed, still)],
        "delay": {**reached, "longest_days": float(edges[-1]), "by_features": bool(model.trees)},
    }


def _by_age(elapsed: Floats, observed: Floats, still: Floats) -> list[AgeReport]:
    found = []
    for low, high in pairwise(_AGES):
        here = (elapsed >= low) & (elapsed < high)
        if here.any():
            rate, more = float(observed[here].mean()), float(still[here].mean())
            end = None if np.isinf(high) else high
            found.append(AgeReport(low, end, int(here.sum()), rate, rate + more))
    return found
