"""Choose the policy: shadow price by allocation, pacing by RL, estimate off-policy, gate, launch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.allocate import allocate
from qiance.artifacts.pacing import write_rule
from qiance.cli.loop.world import World
from qiance.cli.stages import Stage
from qiance.decide.pacing import EvenPace
from qiance.decide.plan import Plan
from qiance.decide.predictor import FramePredictor, GridPredictor
from qiance.decide.rule import policy_probabilities
from qiance.domain import Action, Money
from qiance.evaluate.gate import Verdict, judge
from qiance.evaluate.ope import BanditLog, Estimate, estimate
from qiance.launch import GateSetup, write_plan
from qiance.ledger import NO_VERSION
from qiance.market.market import ActionTable
from qiance.market.simulate import MarketLog
from qiance.settings import Settings
from qiance.workspace import Workspace

Floats = NDArray[np.float64]
ARRIVAL_SHARE = 0.4  # of the users a day, as in the simulated log
FORECAST = "dr"
LEAST_PRICE = 1e-3  # where the budget does not bind there is next to nothing to pace


@dataclass(frozen=True)
class Optimised:
    """The launched plan and what was estimated of it before.

    predicted: mean margin per decision under the policy, minor units, by off-policy estimation;
    gate: what is said of its improvement over the logging policy; rl: returns of the pacing policies on
    held-out seeds.
    """

    plan: Plan
    policy_version: str
    predicted: Estimate
    gate: Verdict
    rl: dict[str, Any]
    unconstrained_cost: float


def value_and_cost(
    predictor: FramePredictor, users: Sequence[str], actions: Sequence[Action], contacts: Floats
) -> tuple[Floats, Floats]:
    """Predicted incremental margin and cost `[n, A]`, control in column 0, minor units."""
    prediction, cost = predictor.predict_with_cost(users, actions[1:], contacts)
    zeros = np.zeros((len(users), 1))
    value = prediction.uplift().mean(axis=2).astype(np.float64)
    return np.hstack([zeros, value]), np.hstack([zeros, cost])


def optimise(
    workspace: Workspace,
    world: World,
    explored: tuple[ActionTable, MarketLog, NDArray[np.bool_]],
    model: Any,
    budget_id: str,
    settings: Settings,
    stage: Stage,
    live: str = NO_VERSION,
) -> Optimised:
    """From the exploring log to a plan that may go live in the place of the policy `live`."""
    actions, log, admits = explored
    predictor = frame_predictor(model, world)
    ids = world.snapshot.users.user_ids
    stage.tell(0.1, "allocating under the budget")
    everyone = np.arange(len(ids))
    value, cost = value_and_cost(predictor, ids, actions.actions, world.window.counts(everyone))
    budget = budget_minor(settings)
    share = len(ids) / expected_decisions(settings)
    free = allocate(value, cost, float(cost.max(axis=1).sum()) + 1.0, admits)
    bound = allocate(value, cost, budget * share, admits)
    price = float(bound.shadow_price[0])
    pacing, rl = _pacing(workspace, world, actions, value, cost, admits, price, settings, stage)
    stage.tell(0.9, "estimating off-policy")
    judging = _Judging.of(predictor, world, actions, log, admits, price, settings)
    predicted = judging.predicted(settings)
    plan = Plan(
        budget_id, price, settings.serve.epsilon, world.now, settings.market.live_days, pacing, model.version
    )
    version = write_plan(workspace, plan, {"predicted": predicted.value})
    verdict = judging.verdict(budget_id, version, live, settings)
    stage.note(
        f"shadow price {price:.3f}; predicted {predicted.value:.1f} minor units a decision "
        f"[{predicted.low:.1f}, {predicted.high:.1f}] by {predicted.estimator}; gate: {verdict.reason}"
    )
    free_cost = float(np.asarray(free.cost).sum()) / share
    return Optimised(plan, version, predicted, verdict, rl, free_cost)


def frame_predictor(model: Any, world: World) -> FramePredictor:
    """The model over the snapshot's users."""
    snapshot = world.snapshot
    grid = GridPredictor(model, snapshot.catalogue, snapshot.item, snapshot.categories, world.words)
    return FramePredictor(grid, snapshot.users, snapshot.user_category)


def budget_minor(settings: Settings) -> int:
    """The budget in minor units."""
    return Money.of(settings.budget.amount, settings.currency).minor


def expected_decisions(settings: Settings) -> float:
    """Live decisions that may spend: all but the holdout's."""
    market = settings.market
    return market.live_days * market.live_per_day * (1.0 - settings.serve.holdout)


@dataclass(frozen=True)
class _Judging:
    """The exploring log with the new policy's probabilities `[n, A]`, and predicted rewards `[n, A]`."""

    bandit: BanditLog
    policy: Floats
    logging: Floats
    model: Floats

    @classmethod
    def of(
        cls,
        predictor: FramePredictor,
        world: World,
        actions: ActionTable,
        log: MarketLog,
        admits: NDArray[np.bool_],
        price: float,
        settings: Settings,
    ) -> _Judging:
        ids = np.array(world.snapshot.users.user_ids, dtype=object)[log.user].tolist()
        prediction, spend = predictor.predict_with_cost(ids, actions.actions[1:], log.contacts_7d)
        control = prediction.control_margin.mean(axis=1).astype(np.float64)[:, None]
        zeros = np.zeros((len(log), 1))
        value = np.hstack([zeros, prediction.uplift().mean(axis=2).astype(np.float64)])
        cost = np.hstack([zeros, spend])
        policy = policy_probabilities(value, cost, admits[log.user], price, settings.serve.epsilon)
        reward = log.margin - actions.contact_cost[log.action]
        bandit = BanditLog(action=log.action, reward=reward, propensity=log.propensity, cluster=log.user)
        return cls(bandit, policy, log.probabilities, value + control)

    def predicted(self, settings: Settings) -> Estimate:
        """Doubly robust value of the new policy, per decision."""
        return estimate(
            self.bandit, self.policy, reward_model=self.model, estimator=FORECAST, seed=settings.seed
        )

    def verdict(self, budget_id: str, version: str, live: str, settings: Settings) -> Verdict:
        """What the gate says: all actions are of one campaign, and nothing was live but the exploration."""
        choice = np.asarray((self.logging[:, 1:] > 0).any(axis=1))
        # The estimator of the forecast, or forecast and improvement would not add up in the report.
        rule = replace(GateSetup.of(settings).rule, estimator=FORECAST)
        return judge(
            self.bandit,
            self.policy,
            self.logging,
            self.model,
            {budget_id: choice},
            rule,
            policy=version,
            live=live,
            seed=settings.seed,
        )


def _pacing(
    workspace: Workspace,
    world: World,
    actions: ActionTable,
    value: Floats,
    cost: Floats,
    admits: NDArray[np.bool_],
    price: float,
    settings: Settings,
    stage: Stage,
) -> tuple[str, dict[str, Any]]:
    """Version of the pacing policy that won on held-out seeds, and the returns of all."""
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    from rllib.train import train_pacing
    from rllib.world import Campaign, save_world

    if not settings.rl.enabled:
        rule = write_rule(workspace.artifacts, EvenPace(), metrics={}, data_fingerprint="untrained")
        return rule.version, {"chosen": "even_pace"}
    rng = np.random.default_rng([settings.seed, 13])
    users = np.sort(rng.choice(len(value), min(settings.rl.users, len(value)), replace=False))
    folder = workspace.root / "rl"
    folder.mkdir(exist_ok=True)
    share = len(users) * ARRIVAL_SHARE * settings.rl.horizon / expected_decisions(settings)
    campaign = Campaign(
        budget=max(1, int(budget_minor(settings) * share)),
        shadow_price=max(price, LEAST_PRICE),
        arrivals_per_day=ARRIVAL_SHARE * len(users),
        horizon_days=settings.rl.horizon,
        epsilon=settings.serve.epsilon,
    )
    path = save_world(
        folder / "world.npz",
        world.market,
        actions,
        value[users],
        cost[users],
        campaign,
        users=users,
        admissible=admits[users],
    )
    trained = train_pacing(
        path,
        iterations=settings.rl.iterations,
        seed=settings.seed,
        out=workspace.artifacts,
        storage=workspace.root / "rl",
        progress=lambda done, what: stage.tell(0.15 + 0.7 * done, what),
    )
    returns = {n: {"mean": r.value, "low": r.low, "high": r.high} for n, r in trained.returns.items()}
    stage.note(f"pacing: {trained.chosen} kept of {', '.join(returns)}")
    return trained.artifact.version, {"returns": returns, "chosen": trained.chosen}
