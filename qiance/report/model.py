"""The document of a run: `report.json`, and all that the page shows.

Money is minor units of `currency`: per decision where it belongs to a policy's value, a total where the
field says so. Rates are fractions. A number that is NaN or infinite becomes null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from qiance.domain import StrategyKind, StrategyState
from qiance.report.parts import (
    Count,
    DataQuality,
    Estimated,
    Foreign,
    Machine,
    Models,
    Number,
    Part,
    Stage,
)


class AudienceView(Part):
    """An audience by name and by its rule in words."""

    name: str
    rule: str = ""


class CreativeView(Part):
    """Words with their facts bound, as a customer reads them. source: `llm`, `template` or `person`."""

    headline: str
    body: str = ""
    call_to_action: str = ""
    language: str = ""
    source: str = ""


class ActionView(Part):
    """One action of a strategy; `offer` in words such as `20% off`."""

    action_id: str
    item_id: str | None = None
    product: str | None = None
    offer: str | None = None
    channel: str = ""
    creative: CreativeView | None = None


class EffectView(Part):
    """Predicted effect per contacted user; ctr and cvr are fractions, the others minor units."""

    ctr: Estimated = Estimated()
    cvr: Estimated = Estimated()
    sales: Estimated = Estimated()
    margin: Estimated = Estimated()
    uplift: Estimated = Estimated()


class MeasuredStrategy(Part):
    """What decisions with this strategy led to: share converted, margin per decision in minor units."""

    decisions: Count
    conversion: Number = None
    margin: Number = None


class StrategyView(Part):
    """A strategy as a marketer reads it."""

    strategy_id: str
    kind: StrategyKind
    title: str
    state: StrategyState
    audience: AudienceView
    reach: Count = 0
    actions: list[ActionView] = Field(default_factory=list)
    effect: EffectView | None = None
    measured: MeasuredStrategy | None = None
    reasons: list[str] = Field(default_factory=list)
    provenance: dict[str, str] = Field(default_factory=dict)


class BudgetView(Part):
    """Totals in minor units. unconstrained: what the policy would spend if money did not matter."""

    cap: Number = None
    spent: Number = None
    reserved: Number = None
    unconstrained: Number = None


class ShadowPrice(Part):
    """The shadow price λ in force from the `day`-th setting on: margin asked per unit of spending."""

    day: int
    value: Number = None


class Gate(Part):
    """Whether the policy was allowed to go live; value, low, high: its estimated improvement per decision."""

    passed: bool
    reason: str = ""
    value: Number = None
    low: Number = None
    high: Number = None


class Latency(Part):
    """Milliseconds from request to answer."""

    p50: Number = None
    p99: Number = None


class PolicyReport(Part):
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
    shadow_prices: list[ShadowPrice] = Field(default_factory=list)
    decisions: Count | None = None
    outcomes_sent: Count | None = None
    outcomes_accepted: Count | None = None
    retries: Count | None = None
    latency_ms: Latency | None = None
    decisions_per_s: Number = None
    degraded: dict[str, Count] = Field(default_factory=dict)
    gate: Gate | None = None
    comparisons: dict[str, Number] = Field(default_factory=dict)
    confidence: float = 0.95


class Return(Foreign):
    """Return of a pacing policy on held-out seeds."""

    mean: Number = None
    low: Number = None
    high: Number = None


class RlReport(Part):
    """Pacing policies tried, and the one that was taken."""

    chosen: str
    returns: dict[str, Return] = Field(default_factory=dict)


class Arm(Part):
    """One arm of a randomised log; `rates`: mean outcome by label, a fraction or minor units."""

    arm: str
    n: Count
    rates: dict[str, Number] = Field(default_factory=dict)


class LoggedResponses(Part):
    """The log that an offline run learns from."""

    n: Count
    arms: list[Arm] = Field(default_factory=list)


class PolicyEstimate(Estimated):
    """An off-policy estimate by one estimator."""

    estimator: str


class OfflinePolicy(Part):
    """A policy and what the log says it would have earned."""

    name: str
    estimates: list[PolicyEstimate] = Field(default_factory=list)
    diagnostics: dict[str, Any] = Field(default_factory=dict)


class OfflineReport(Part):
    """Off-policy evaluation on a real log; nothing here is simulated.

    label: the outcome that was optimised. unit: `fraction`, `minor` (money) or `number`.
    chosen: name of the policy that Qiance proposes; the first of `policies` where it is not given.
    """

    logged: LoggedResponses
    policies: list[OfflinePolicy] = Field(default_factory=list)
    label: str
    unit: Literal["fraction", "minor", "number"] = "fraction"
    chosen: str | None = None


class RunReport(Part):
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
    notes: list[str] = Field(default_factory=list)
    simulated: bool = False
    stages: list[Stage] = Field(default_factory=list)
    data: DataQuality | None = None
    models: Models = Models()
    strategies: list[StrategyView] = Field(default_factory=list)
    effect_confidence: float = 0.9
    policy: PolicyReport
    rl: RlReport | None = None
    offline: OfflineReport | None = None

    @property
    def unit(self) -> str:
        """Unit of the policy's values: `minor` money per decision, or the offline label's unit."""
        return self.offline.unit if self.offline else "minor"
