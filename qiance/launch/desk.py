"""Judging policies by the decisions in the ledger, watching them in shadow, and making them live."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from qiance.artifacts.effect import KIND as EFFECT
from qiance.artifacts.effect import EffectModel
from qiance.artifacts.manifest import load_manifest
from qiance.decide.plan import Plan
from qiance.decide.rescore import Rescorer
from qiance.domain import StrategyState
from qiance.evaluate.gate import CampaignVerdict, Verdict, judge
from qiance.evaluate.ope_result import Estimate
from qiance.features.columns import EFFECT_SCHEMA
from qiance.launch.log import LogBuilder, Policy, PolicyLog
from qiance.launch.plans import UnknownPolicyError, read_plan
from qiance.launch.scoring import open_rescorer
from qiance.launch.setup import GateSetup
from qiance.launch.shadow import ShadowDay, development
from qiance.ledger import NO_VERSION, Ledger, Override, Versions
from qiance.ledger.schema import from_micros
from qiance.workspace import Workspace

Tick = Callable[[float, str], None]
_DEARER = 1.05  # a policy that would spend more than this times what the live one does is told


@dataclass(frozen=True)
class Evaluation:
    """A policy as the log judges it, against the live one.

    verdict: what the gate says, by campaign. value, live_value: margin per decision, minor units, estimated;
    None where there is no estimate. decisions, users: used; since, until: the first and last of them.
    left_out: reason → decisions of the period that could not be used. spend, live_spend: mean predicted use
    of the budgets per decision, minor units. notes: what to know about the estimate, a sentence each.
    """

    verdict: Verdict
    value: float | None
    live_value: float | None
    decisions: int
    users: int
    since: datetime | None
    until: datetime | None
    left_out: Mapping[str, int]
    spend: float | None
    live_spend: float | None
    notes: tuple[str, ...]

    @property
    def improvement(self) -> Estimate | None:
        """Of the policy over the live one, per decision."""
        return self.verdict.improvement


@dataclass(frozen=True)
class Launched:
    """A policy that was to go live. versions: what serves since; None where the gate is closed."""

    evaluation: Evaluation | None
    versions: Versions | None
    overridden: bool = False


class PolicyDesk:
    """Evaluates, shadows and launches policies of one workspace; nothing of it is on the decision path."""

    def __init__(
        self,
        workspace: Workspace,
        ledger: Ledger,
        setup: GateSetup,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._workspace, self._ledger, self._setup, self._now = workspace, ledger, setup, now
        self._rescorer: Rescorer | None = None

    def plan(self, version: str) -> Plan:
        """The policy as the workspace keeps it; UnknownPolicyError where it does not."""
        return read_plan(self._workspace, version)

    def evaluate(self, version: str, tick: Tick = lambda done, what: None) -> Evaluation:
        """What `version` would have earned against the live policy on the logged decisions; changes nothing.

        tick: called with the share that is done and what is being done; what it raises ends the work. Raises
        UnknownPolicyError, and ValueError for a policy that could not be served.
        """
        return self._evaluate(version, self._setup, tick)[0]

    def shadow(
        self, version: str, tick: Tick = lambda done, what: None
    ) -> tuple[Evaluation, tuple[ShadowDay, ...]]:
        """How the estimate of `version` developed, day by day; the policy decides in thought only."""
        found, log = self._evaluate(version, self._setup, tick)
        return found, () if log is None else development(log, self._setup.rule, self._setup.largest)

    def promote(
        self,
        version: str,
        by: str,
        override: Override | None = None,
        tick: Tick = lambda done, what: None,
    ) -> Launched:
        """Makes `version` live, with the model it was judged with, if the gate opens or is overridden.

        An override does not need the log to be able to tell; what it tells is kept with it.
        """
        plan = self._servable(version)
        if version == self._ledger.versions().policy:
            raise ValueError(f"policy version {version!r} is live already")
        found: Evaluation | None = None
        try:
            found = self.evaluate(version, tick)
        except (ValueError, TimeoutError):
            if override is None:
                raise
        verdict = None if found is None else found.verdict
        if override is None and not (verdict and verdict.passed):
            return Launched(found, None)
        versions = self._ledger.launch_policy(
            version,
            shadow_price=plan.shadow_price,
            model=plan.effect_model,
            by=by,
            verdict=verdict,
            override=override,
        )
        return Launched(found, versions, override is not None)

    def _servable(self, version: str) -> Plan:
        """The plan, once it is known that the service can load what it names."""
        plan = read_plan(self._workspace, version)
        EffectModel.load(self._workspace.artifact(EFFECT, plan.effect_model), EFFECT_SCHEMA)
        load_manifest(self._workspace.artifact("pacing-policy", plan.pacing))
        return plan

    def _evaluate(self, version: str, setup: GateSetup, tick: Tick) -> tuple[Evaluation, PolicyLog | None]:
        plan, serving = read_plan(self._workspace, version), self._ledger.versions()
        policy = Policy(version, plan.effect_model, plan.shadow_price, self._made_at(plan.effect_model))
        builder = LogBuilder(
            self._scorer(),
            policy,
            self._live(serving),
            {s.strategy_id: s.brief_id for s in self._ledger.strategies(StrategyState.LIVE)},
            self._price_of(),
            setup.epsilon,
            setup.margin_rate,
            setup.max_rows,
        )
        self._read(builder, setup, tick)
        log = builder.build()
        tick(0.85, "estimating")
        verdict = self._judge(version, serving.policy, log, builder, setup)
        tick(1.0, "done")
        return _evaluation(verdict, log, builder, self._notes(plan, log, setup)), log

    def _read(self, builder: LogBuilder, setup: GateSetup, tick: Tick) -> None:
        """The newest decisions whose outcomes are known, and so many days back from there."""
        tick(0.0, "reading decisions")
        since: datetime | None = None
        for page in self._ledger.decided(self._now() - setup.window, setup.unrecorded):
            since = since or page[0].decision.decided_at - timedelta(days=setup.days)
            builder.add([row for row in page if row.decision.decided_at >= since])
            tick(0.8 * min(builder.rows / setup.max_rows, 1.0), f"{builder.rows:,} decisions")
            if builder.is_full or page[-1].decision.decided_at < since:
                return

    def _judge(
        self, version: str, live: str, log: PolicyLog | None, builder: LogBuilder, setup: GateSetup
    ) -> Verdict:
        if log is not None:
            arrays = (log.bandit, log.policy, log.live, log.model, log.campaigns, setup.rule)
            return judge(*arrays, policy=version, live=live, seed=setup.seed)
        reason = (
            "no logged decision can be used, see what was left out; let the live policy decide for a while"
        )
        campaigns = sorted(set(builder.campaign_of.values()))
        told = tuple(CampaignVerdict(c, 0, setup.rule.margin_of(c), False, reason) for c in campaigns)
        return Verdict(version, live, False, reason, None, told)

    def _live(self, serving: Versions) -> Policy:
        if serving.policy == NO_VERSION:
            return Policy(NO_VERSION, serving.model, 0.0)
        try:
            plan = read_plan(self._workspace, serving.policy)
        except UnknownPolicyError:
            raise ValueError(
                f"workspace: has no policy {serving.policy!r}, which is live; name the one it was made in"
            ) from None
        return Policy(serving.policy, serving.model, plan.shadow_price)

    def _price_of(self) -> Callable[[str], float | None]:
        known: dict[str, float | None] = {}

        def price(version: str) -> float | None:
            if version not in known:
                try:
                    known[version] = read_plan(self._workspace, version).shadow_price
                except ValueError:
                    known[version] = None
            return known[version]

        return price

    def _made_at(self, model: str) -> datetime:
        made = load_manifest(self._workspace.artifact(EFFECT, model)).created_at
        return datetime.fromisoformat(made)

    def _scorer(self) -> Rescorer:
        if self._rescorer is None:
            self._rescorer = open_rescorer(self._workspace, self._ledger)
        return self._rescorer

    def _notes(self, plan: Plan, log: PolicyLog | None, setup: GateSetup) -> tuple[str, ...]:
        notes = []
        if plan.epsilon != setup.epsilon:
            notes.append(
                f"the plan was made for an exploration of {plan.epsilon:g}; the service explores with "
                f"{setup.epsilon:g}, and so it was judged"
            )
        if log is not None and log.spend > _DEARER * log.live_spend:
            notes.append(
                f"it would spend {log.spend:.1f} minor units a decision where the live policy spends "
                f"{log.live_spend:.1f}: pacing will raise its price, and less will be earned than estimated"
            )
        return tuple(notes)


def _evaluation(
    verdict: Verdict, log: PolicyLog | None, builder: LogBuilder, notes: tuple[str, ...]
) -> Evaluation:
    gain = verdict.improvement
    base = None if gain is None else gain.baseline_value
    return Evaluation(
        verdict,
        None if gain is None or base is None else base + gain.value,
        base,
        builder.rows,
        0 if log is None else log.bandit.units().count,
        None if log is None else from_micros(int(log.at[0])),
        None if log is None else from_micros(int(log.at[-1])),
        dict(builder.left_out),
        None if log is None else log.spend,
        None if log is None else log.live_spend,
        notes,
    )
