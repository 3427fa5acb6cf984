"""Parts of the document that describe data and models, and the rules that every part follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Number = float | None
Count = Annotated[int, Field(ge=0)]


def finite(value: Any) -> Any:
    """`value` with every NaN and infinity, however deep, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


class Part(BaseModel):
    """A part whose fields are ours: an unknown name is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        return finite(value)


class Foreign(Part):
    """A part whose fields belong to another room: a name added there is kept in the JSON, not refused."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Estimated(Part):
    """A point with its lower and upper bound."""

    value: Number = None
    low: Number = None
    high: Number = None


class Stage(Part):
    """A step of the run and how long it took."""

    name: str
    seconds: Number = None


class Machine(Part):
    """What the run ran on; `ray` and `torch` are versions."""

    cores: int | None = None
    memory_gb: Number = None
    python: str | None = None
    ray: str | None = None
    torch: str | None = None


class Fault(Foreign):
    """How often one field was at fault for one reason."""

    field: str | None = None
    reason: str
    count: Count


class SourceTable(Foreign):
    """What became of the rows of one source table: rows_read = accepted + quarantined."""

    table: str
    source: str | None = None
    rows_read: Count
    accepted: Count
    quarantined: Count
    faults: list[Fault] = Field(default_factory=list)
    quarantine: str | None = None


class DataQuality(Part):
    """What was read. left_out: sound rows without a place in the canonical tables, by reason."""

    dataset: str
    source: str = ""
    fingerprint: str = ""
    terms: str = ""
    tables: list[SourceTable] = Field(default_factory=list)
    left_out: dict[str, Count] = Field(default_factory=dict)


class CalibrationBin(Foreign):
    """One bin: mean predicted probability against the share observed, with the interval of the share."""

    n: Count
    predicted: Number = None
    observed: Number = None
    low: Number = None
    high: Number = None


class ModelScore(Foreign):
    """One model's scores for one label on the test rows; what does not apply to the label is null."""

    name: str
    label: str = ""
    log_loss: Number = None
    ne: Number = None
    auc: Number = None
    rmse: Number = None
    mse: Number = None
    ece: Number = None
    n_test: Count = 0
    calibration: list[CalibrationBin] = Field(default_factory=list)
    note: str = ""


Scores = dict[str, list[ModelScore]]


def _by_label(scores: Any) -> Any:
    """A flat list of scores as lists by label."""
    if not isinstance(scores, list | tuple):
        return scores
    grouped: dict[str, list[Any]] = {}
    for score in scores:
        label = score.get("label", "") if isinstance(score, Mapping) else getattr(score, "label", "")
        grouped.setdefault(str(label), []).append(score)
    return grouped


class SegmentCalibration(Foreign):
    """Test rows of one segment: share observed, mean predicted and error before and after calibration."""

    task: str
    segment: str
    rows: Count
    observed: Number = None
    before: Number = None
    after: Number = None
    ece_before: Number = None
    ece_after: Number = None


class Promotion(Part):
    """Whether the model was let serve, and why; in words."""

    passed: bool
    reason: str


class ModelReport(Part):
    """A trained model beside its baselines; `scores` by label, `segments` as it is calibrated by them."""

    version: str
    name: str
    rows: Count
    parents: list[str] = Field(default_factory=list)
    seconds: Number = None
    metrics: dict[str, Number] = Field(default_factory=dict)
    scores: Scores = Field(default_factory=dict)
    segments: list[SegmentCalibration] = Field(default_factory=list)
    promotion: Promotion | None = None

    _group = field_validator("scores", mode="before")(_by_label)


class Redemption(Part):
    """Scores on real coupon redemptions; a flat list is grouped by label."""

    scores: Scores = Field(default_factory=dict)

    _group = field_validator("scores", mode="before")(_by_label)


class Models(Part):
    """round2 was trained on what the first round's decisions led to."""

    effect: ModelReport | None = None
    round2: ModelReport | None = None
    redemption: Redemption | None = None
