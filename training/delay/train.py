"""Trains a response model on a log whose conversions come late, and says what was corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qiance.artifacts.json_file import write_json
from qiance.data.responses import ResponseTable
from qiance.evaluate.prediction import auc, log_loss
from training.delay.correct import RIPE, Corrected, correct_delays, has_delays
from training.response.fit import METRICS, Tell, TrainedResponse, train_response
from training.response.members import ResponseSettings

_SHARE = 0.05  # of the progress


def train_delayed(
    responses: ResponseTable,
    out: Path,
    *,
    settings: ResponseSettings | None = None,
    seed: int = 0,
    label: str | None = None,
    protected: Sequence[str] = (),
    tell: Tell | None = None,
    **options: Any,
) -> TrainedResponse:
    """`train_response`, after `correct_delays` where the log has converted_at and conversion is predicted.

    metrics.json then has `delay`: see `Corrected.report`, and the model's auc and log loss on ripe rows,
    of which at least 99 % of the conversions have come: their labels are seen, not expected.
    """
    told = tell or (lambda _share, _text: None)
    chosen: dict[str, Any] = {"settings": settings, "seed": seed, "label": label, "protected": protected}
    if not has_delays(responses) or label == "click":
        return train_response(responses, out, tell=told, **chosen, **options)
    told(0.0, "conversions that are still to come")
    corrected = correct_delays(responses, seed if settings is None else settings.seed, protected)
    trained = train_response(
        corrected.responses,
        out,
        tell=lambda share, text: told(_SHARE + (1 - _SHARE) * share, text),
        **chosen,
        **options,
    )
    metrics = {**trained.metrics, "delay": {**corrected.report, "on_ripe_rows": _on_ripe(corrected, trained)}}
    write_json(out / METRICS, metrics, indent=2)
    return replace(trained, metrics=metrics)


def _on_ripe(corrected: Corrected, trained: TrainedResponse) -> Mapping[str, float] | None:
    """None where ripe rows lack one of the outcomes."""
    ripe = corrected.seen >= RIPE
    labels = corrected.responses.table["conversion"].to_numpy(zero_copy_only=False)[ripe]
    if len(np.unique(labels)) < 2:
        return None
    held_out = trained.judged.held_out[ripe]
    return {"rows": float(ripe.sum()), "auc": auc(labels, held_out), "log_loss": log_loss(labels, held_out)}
