"""What each policy would have earned, estimated from the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qiance.cli.offline.policies import Policy
from qiance.cli.offline.study import Floats, Mask, Study
from qiance.evaluate.ope import BanditLog, Estimate, GateResult, clears_gate, difference, estimate

CONFIDENCE = 0.95
# The self-normalised doubly robust one leads: it loses least where weights are heavy.
ESTIMATORS = ("sndr", "dr", "snipw", "ipw")


@dataclass(frozen=True)
class Log:
    """The log as off-policy evaluation reads it.

    action, propensity: `[N]`; cluster: `[N]` or None. logging: `[N, K]` or `[K]` probabilities of the
    logging policy; where it is not `randomised` only those of the logged arms are known, the others are
    filled in by how often arms were shown, and differences from it do without a reward model.
    rewards: outcome → `[N]`. models: outcome → `[N, K]` predictions out of fold.
    """

    action: NDArray[np.int64]
    propensity: Floats
    cluster: NDArray[np.int64] | None
    logging: Floats
    randomised: bool
    rewards: Mapping[str, Floats]
    models: Mapping[str, Floats]

    def bandit(self, outcome: str, rows: Mask | slice = slice(None)) -> BanditLog:
        """The rows with one outcome as the reward."""
        return BanditLog(
            action=self.action[rows],
            reward=self.rewards[outcome][rows],
            propensity=self.propensity[rows],
            cluster=None if self.cluster is None else self.cluster[rows],
        )

    def gain(self, outcome: str, probs: Floats, base: Floats, rows: Mask | slice = slice(None)) -> Estimate:
        """Improvement of `probs` over `base`, both `[n, K]` for the n `rows`."""
        return difference(
            self.bandit(outcome, rows), probs, base, self.models[outcome][rows], confidence=CONFIDENCE
        )

    def gain_over_logged(self, outcome: str, probs: Floats, rows: Mask | slice = slice(None)) -> Estimate:
        """Improvement of `probs` `[n, K]` over the policy that made the log."""
        base = np.broadcast_to(self.logging, (len(self.action), probs.shape[1]))[rows]
        if self.randomised:
            return self.gain(outcome, probs, base, rows)
        return difference(self.bandit(outcome, rows), probs, base, confidence=CONFIDENCE)


@dataclass(frozen=True)
class Evaluated:
    """A policy as the log judges it.

    estimates: of the primary outcome, by each estimator. gain: over the logging policy; gate: what it says.
    targeting: gain over as many contacts at random. others: outcome → estimate. contacted: share of rows
    that get another arm than control. problem: why there is no estimate, else empty.
    """

    name: str
    estimates: tuple[Estimate, ...] = ()
    gain: Estimate | None = None
    gate: GateResult | None = None
    targeting: Estimate | None = None
    others: Mapping[str, Estimate] = field(default_factory=dict)
    contacted: float | None = None
    problem: str = ""


def make_log(study: Study, means: Mapping[str, Floats], cost_fraction: float) -> Log:
    """The log with every outcome.

    Where sales are known, so is margin: (1 − cost_fraction) · sales − contact cost, minor units.
    """
    rewards = {label: study.outcome(label) for label in study.labels}
    models = dict(means)
    if "sales" in study.labels:
        rest = 1.0 - cost_fraction
        rewards["margin"] = rest * rewards["sales"] - study.cost[study.action]
        models["margin"] = rest * models["sales"] - study.cost
    randomised = study.responses.randomised
    logging = study.shares if randomised else _filled_in(study)
    return Log(study.action, study.propensity, study.cluster, logging, randomised, rewards, models)


def _filled_in(study: Study) -> Floats:
    """`[N, K]`: the logged arm has its propensity, the others share the rest by how often they were shown."""
    row = np.arange(len(study))
    others = np.tile(study.shares, (len(study), 1))
    others[row, study.action] = 0.0
    rest = (1.0 - study.propensity) / np.maximum(others.sum(axis=1), 1e-300)
    others *= rest[:, None]
    others[row, study.action] = 1.0 - others.sum(axis=1)
    return others


def evaluate(log: Log, policy: Policy, primary: str, control: bool) -> Evaluated:
    """Judge one policy; an estimate that cannot be made is a `problem`, not an error of the run."""
    contacted = float(1.0 - policy.probs[:, 0].mean()) if control else None
    try:
        bandit, model = log.bandit(primary), log.models[primary]
        found = tuple(estimate(bandit, policy.probs, model, name, CONFIDENCE) for name in ESTIMATORS)
        gain = log.gain_over_logged(primary, policy.probs)
        others = {
            outcome: estimate(log.bandit(outcome), policy.probs, log.models[outcome], "sndr", CONFIDENCE)
            for outcome in log.rewards
            if outcome != primary
        }
        random = policy.random
        targeting = None if random is None else log.gain(primary, policy.probs, random)
    except ValueError as error:
        return Evaluated(policy.name, contacted=contacted, problem=str(error))
    return Evaluated(policy.name, found, gain, clears_gate(gain), targeting, others, contacted)
