"""The document of a run: `report.json`, and all that the page shows.

Money is minor units of `currency`: per decision where it belongs to a policy's value, a total where the
field says so. Rates are fractions. A number that is NaN or infinite becomes null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from qiance.domain import StrategyKind, StrategyState

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


class _Part(BaseModel):
    """A part whose fields are ours: an unknown name is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        return finite(value)


class _Foreign(_Part):
    """A part whose fields belong to another room: a name added there is kept in the JSON, not refused."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Estimated(_Part):
    """A point with its lower and upper bound."""

    value: Number = None
    low: Number = None
    high: Number = None


class Stage(_Part):
    """A step of the run and how long it took."""

    name: str
    seconds: Number = None


class Machine(_Part):
    """What the run ran on; `ray` and `torch` are versions."""

    cores: int | None = None
    memory_gb: Number = None
    python: str | None = None
    ray: str | None = None
    torch: str | None = None


class Fault(_Foreign):
    """How often one field was at fault for one reason."""

    field: str | None = None
    reason: str
    count: Count


class SourceTable(_Foreign):
    """What became of the rows of one source table: rows_read = accepted + quarantined."""

    table: str
    source: str | None = None
    rows_read: Count
    accepted: Count
    quarantined: Count
    faults: list[Fault] = []
    quarantine: str | None = None


class DataQuality(_Part):
    """What was read. left_out: sound rows without a place in the canonical tables, by reason."""

    dataset: str
    source: str = ""
    fingerprint: str = ""
    terms: str = ""
    tables: list[SourceTable] = []
    left_out: dict[str, Count] = {}


class CalibrationBin(_Foreign):
    """One bin: mean predicted probability against the share observed, with the interval of the share."""

    n: Count
    predicted: Number = None
    observed: Number = None
    low: Number = None
    high: Number = None


class ModelScore(_Foreign):
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
    calibration: list[CalibrationBin] = []
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


class ModelReport(_Part):
    """A trained model beside its baselines; `scores` by label."""

    version: str
    name: str
    rows: Count
    parents: list[str] = []
    seconds: Number = None
    metrics: dict[str, Number] = {}
    scores: Scores = {}

    _group = field_validator("scores", mode="before")(_by_label)


class Redemption(_Part):
    """Scores on real coupon redemptions; a flat list is grouped by label."""

    scores: Scores = {}

    _group = field_validator("scores", mode="before")(_by_label)


class Models(_Part):
    """round2 was trained on what the first round's decisions led to."""

    effect: ModelReport | None = None
    round2: ModelReport | None = None
    redemption: Redemption | None = None


class AudienceView(_Part):
    """An audience by name and by its rule in words."""

    name: str
    rule: str = ""


class CreativeView(_Part):
    """Words with their facts bound, as a customer reads them. source: `llm`, `template` or `person`."""

    headline: str
    body: str = ""
    call_to_action: str = ""
    language: str = ""
    source: str = ""


class ActionView(_Part):
    """One action of a strategy; `offer` in words such as `20% off`."""

    action_id: str
    item_id: str | None = None
    product: str | None = None
    offer: str | None = None
    channel: str = ""
    creative: CreativeView | None = None


class EffectView(_Part):
    """Predicted effect per contacted user; ctr and cvr are fractions, the others minor units."""

    ctr: Estimated = Estimated()
    cvr: Estimated = Estimated()
    sales: Estimated = Estimated()
    margin: Estimated = Estimated()
    uplift: Estimated = Estimated()


class MeasuredStrategy(_Part):
    """What decisions with this strategy led to: share converted, margin per decision in minor units."""

    decisions: Count
    conversion: Number = None
    margin: Number = None


class StrategyView(_Part):
    """A strategy as a marketer reads it."""

    strategy_id: str
    kind: StrategyKind
    title: str
    state: StrategyState
    audience: AudienceView
    reach: Count = 0
    actions: list[ActionView] = []
    effect: EffectView | None = None
    measured: MeasuredStrategy | None = None
    reasons: list[str] = []
    provenance: dict[str, str] = {}


class BudgetView(_Part):
    """Totals in minor units. unconstrained: what the policy would spend if money did not matter."""

    cap: Number = None
    spent: Number = None
    reserved: Number = None
    unconstrained: Number = None


class ShadowPrice(_Part):
    """The shadow price λ in force from the `day`-th setting on: margin asked per unit of spending."""

    day: int
    value: Number = None


class Gate(_Part):
    """Whether the policy was allowed to go live; value, low, high: its estimated improvement per decision."""

    passed: bool
    reason: str = ""
    value: Number = None
    low: Number = None
    high: Number = None


class Latency(_Part):
    """Milliseconds from request to answer."""

    p50: Number = None
    p99: Number = None


class PolicyReport(_Part):
    """The policy, before and after. Null where a run has no live phase.

    predicted, measured, holdout, uplift: per decision, minor units (offline: in `offline.unit`).
    policy_value, oracle_value, comparisons: true incremental margin, totals of the live phase, minor units.
    oracle_share: policy_value / oracle_value. overspend: spending beyond the cap, fraction of the cap.
    confidence: of every interval here.
    """

    predicted: Number
    predicted_low: Number = None
    predicted_high: Number = None
    estimator: str | None = None
    measured: Number
    low: Number
    high: Number
    contains: bool | None = None
    holdout: Number
    holdout_low: Number = None
    holdout_high: Number = None
    uplift: Estimated | None = None
    sample_ratio_p: Number = None
    oracle_share: Number
    oracle_value: Number = None
    policy_value: Number = None
    overspend: Number
    budget: BudgetView | None = None
    shadow_prices: list[ShadowPrice] = []
    decisions: Count | None = None
    outcomes_sent: Count | None = None
    outcomes_accepted: Count | None = None
    retries: Count | None = None
    latency_ms: Latency | None = None
    decisions_per_s: Number = None
    degraded: dict[str, Count] = {}
    gate: Gate | None = None
    comparisons: dict[str, Number] = {}
    confidence: float = 0.95


class Return(_Foreign):
    """Return of a pacing policy on held-out seeds."""

    mean: Number = None
    low: Number = None
    high: Number = None


class RlReport(_Part):
    """Pacing policies tried, and the one that was taken."""

    chosen: str
    returns: dict[str, Return] = {}


class Arm(_Part):
    """One arm of a randomised log; `rates`: mean outcome by label, a fraction or minor units."""

    arm: str
    n: Count
    rates: dict[str, Number] = {}


class LoggedResponses(_Part):
    """The log that an offline run learns from."""

    n: Count
    arms: list[Arm] = []


class PolicyEstimate(Estimated):
    """An off-policy estimate by one estimator."""

    estimator: str


class OfflinePolicy(_Part):
    """A policy and what the log says it would have earned."""

    name: str
    estimates: list[PolicyEstimate] = []
    diagnostics: dict[str, Any] = {}


class OfflineReport(_Part):
    """Off-policy evaluation on a real log; nothing here is simulated.

    label: the outcome that was optimised. unit: `fraction`, `minor` (money) or `number`.
    chosen: name of the policy that Qiance proposes; the first of `policies` where it is not given.
    """

    logged: LoggedResponses
    policies: list[OfflinePolicy] = []
    label: str
    unit: Literal["fraction", "minor", "number"] = "fraction"
    chosen: str | None = None


class RunReport(_Part):
    """Everything that a run found; `model_validate` takes nested plain dicts.

    simulated: the live traffic was the simulated market. notes: parts missing or degraded, a sentence each.
    effect_confidence: of the intervals of the strategies' predicted effects.
    """

    kind: Literal["loop", "offline"]
    title: str
    created_at: AwareDatetime
    version: str
    seed: int
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"
    machine: Machine = Machine()
    notes: list[str] = []
    simulated: bool = False
    stages: list[Stage] = []
    data: DataQuality | None = None
    models: Models = Models()
    strategies: list[StrategyView] = []
    effect_confidence: float = 0.9
    policy: PolicyReport
    rl: RlReport | None = None
    offline: OfflineReport | None = None

    @property
    def unit(self) -> str:
        """Unit of the policy's values: `minor` money per decision, or the offline label's unit."""
        return self.offline.unit if self.offline else "minor"
