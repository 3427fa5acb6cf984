"""What each policy would have earned, estimated from the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qiance.cli.offline.policies import Policy
from qiance.cli.offline.rare import MIN_RESPONSES, Support, widened, widened_difference
from qiance.cli.offline.study import Floats, Mask, Study
from qiance.evaluate.ope import BanditLog, Estimate, GateResult, clears_gate, difference, estimate

CONFIDENCE = 0.95
# The self-normalised doubly robust one leads: it loses least where weights are heavy.
ESTIMATORS = ("sndr", "snipw", "ipw")
MONEY = ("sales", "margin")
Rows = Mask | slice
_ALL = slice(None)


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

    def value(self, outcome: str, probs: Floats, estimator: str = "sndr") -> Estimate:
        """Mean outcome per decision under `probs` `[N, K]`."""
        found = estimate(self._bandit(outcome), probs, self.models[outcome], estimator, CONFIDENCE)
        return widened(found, self._support(outcome, probs), outcome not in MONEY)

    def gain(
        self, outcome: str, probs: Floats, base: Floats, rows: Rows = _ALL, model: bool = True
    ) -> Estimate:
        """Improvement of `probs` over `base`, both `[n, K]` for the n `rows`; model: use the reward model."""
        rewards = self.models[outcome][rows] if model else None
        name = "sndr" if model else "snipw"
        found = difference(self._bandit(outcome, rows), probs, base, rewards, name, CONFIDENCE)
        supports = self._support(outcome, probs, rows), self._support(outcome, base, rows)
        return widened_difference(found, *supports, outcome not in MONEY)

    def gain_over_logged(self, outcome: str, probs: Floats, rows: Rows = _ALL) -> Estimate:
        """Improvement of `probs` `[n, K]` over the policy that made the log."""
        base = np.broadcast_to(self.logging, (len(self.action), probs.shape[1]))[rows]
        return self.gain(outcome, probs, base, rows, model=self.randomised)

    def _bandit(self, outcome: str, rows: Rows = _ALL) -> BanditLog:
        return BanditLog(
            action=self.action[rows],
            reward=self.rewards[outcome][rows],
            propensity=self.propensity[rows],
            cluster=None if self.cluster is None else self.cluster[rows],
        )

    def _support(self, outcome: str, probs: Floats, rows: Rows = _ALL) -> Support:
        """Responses are counted in the label that money comes with: a contact cost is no response."""
        label = "sales" if outcome == "margin" else outcome
        action, cluster = self.action[rows], None if self.cluster is None else self.cluster[rows]
        weight = probs[np.arange(action.size), action] / self.propensity[rows]
        happened = self.rewards[label][rows] != 0
        units = weight if cluster is None else np.bincount(cluster, weights=weight)
        size = float(weight.sum()) ** 2 / float(np.square(units).sum())
        return Support(size, float(weight @ happened) / float(weight.sum()))


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
    others *= ((1.0 - study.propensity) / others.sum(axis=1))[:, None]
    others[row, study.action] = study.propensity
    return others


def evaluate(log: Log, policy: Policy, primary: str, control: bool) -> Evaluated:
    """Judge one policy; an estimate that cannot be made is a `problem`, not an error of the run."""
    contacted = float(1.0 - policy.probs[:, 0].mean()) if control else None
    try:
        found = tuple(log.value(primary, policy.probs, name) for name in ESTIMATORS)
        gain = log.gain_over_logged(primary, policy.probs)
        others = {name: log.value(name, policy.probs) for name in log.rewards if name != primary}
        random = policy.random
        targeting = None if random is None else log.gain(primary, policy.probs, random)
    except ValueError as error:
        return Evaluated(policy.name, contacted=contacted, problem=str(error))
    return Evaluated(policy.name, found, gain, clears_gate(gain), targeting, others, contacted)


def proposed_of(evaluated: Sequence[Evaluated], names: Sequence[str], rate: float) -> Evaluated:
    """The first of `names` that the log can judge, else the last.

    rate: of responses in the whole log. A policy can be judged if its effective sample would hold ten
    responses at that rate: a matter of weights alone, so that no estimate is flattered by the choice.
    """
    by_name = {found.name: found for found in evaluated}
    for name in names:
        found = by_name[name]
        if found.estimates:
            size = found.estimates[0].diagnostics.effective_sample_size
            if size * min(rate, 1.0 - rate) >= MIN_RESPONSES:
                return found
    return by_name[names[-1]]
